"""The iterative solver: preconditioned conjugate gradients, until the worst position is good."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops.mesa.preconditioner import Preconditioner, difference, precondition
from mesaopt.ops.mesa.solver import (
    TRACED_CHUNK_SIZE,
    Prepared,
    Solved,
    Solver,
    rounding_level,
)
from mesaopt.ops.mesa.system import System, flatten, power_of_two, select
from mesaopt.ops.packing import Layout
from mesaopt.ops.validation import check_number, traced

_MAX_RESTARTS = 4  # of conjugate gradients from the true residual
# A chunk's forgetting is minus the log of its decay.
_MAX_PRECONDITIONED_FORGETTING = 0.44  # of a chunk: up to here four steps reach a residual of 1e-4
_MIN_PRECONDITIONED_SIZE = (
    14  # positions; factors of shorter chunks cost more than the steps they save
)
_MAX_FACTORISED_FORGETTING = 0.48  # of the shortest chunk: heads that forget more take plain steps


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Solver):
    """Solve by conjugate gradients, preconditioned by the chunk's factors where it remembers its start.

    Every right-hand side is scaled to norm 1 first and there is no absolute tolerance, so solving for
    c b gives c times the solution. All positions step together; chunks whose positions are all done
    leave. A position whose right-hand side is not finite gets a NaN, and the others do not wait for it.
    The residual that decides is the true one: where it is worse than the recursion says, the recursion
    starts again from it, as long as that helps.

    Args:
        rtol: relative residual that every position must reach, > 0. None, the default, means 16 times the
            rounding unit, or as far as rounding allows.
        max_steps: most steps of a chunk, restarts included, 0 or more; 4 * key + 32 if None.

    Raises:
        ValueError: a number is out of range.

    Source: Hestenes and Stiefel (1952); the preconditioner is ours.

    Example:
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> output, _, info = mesa(one, one, one, ridge=1.0, solver=ConjugateGradient(rtol=1e-5))
        >>> output.flatten(), info.steps.item()
        (tensor([0.5000, 0.6667, 0.7500]), 1)
    """

    max_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("max_steps", self.max_steps, least=0)

    def chunk_size(
        self,
        layout: Layout,
        log_decay: Float[Tensor, "batch time head"] | None,
        *,
        ridge_decays: bool,
    ) -> int:
        """See :meth:`Solver.chunk_size`; under a static ridge, chunks with good factors."""
        if log_decay is None or ridge_decays:
            return super().chunk_size(layout, log_decay, ridge_decays=ridge_decays)
        if traced(log_decay):
            return min(layout.limit, TRACED_CHUNK_SIZE)
        size = layout.chunk_size
        rates = -log_decay.detach().mean((0, 1))  # [H]
        slow = rates[rates * _MIN_PRECONDITIONED_SIZE <= _MAX_FACTORISED_FORGETTING]
        fastest = slow.max().item() if len(slow) else 0.0
        forgets = fastest * size > _MAX_PRECONDITIONED_FORGETTING
        wanted = int(_MAX_PRECONDITIONED_FORGETTING / fastest) if forgets else size
        return min(size, max(wanted, _MIN_PRECONDITIONED_SIZE))

    def prepare(self, system: System) -> Preconditioner | None:
        """Make the preconditioner, if any chunk remembers enough for one."""
        return precondition(system)

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Iterate; chunks with an unused preconditioner take plain steps."""
        preconditioner = cast(Preconditioner | None, prepared)
        rtol = 16 * torch.finfo(rhs.dtype).eps if self.rtol is None else self.rtol
        max_steps = 4 * rhs.shape[-1] + 32 if self.max_steps is None else self.max_steps
        hidden = preconditioner is not None and traced(preconditioner.inverse)
        iterate = _iterate_traced if hidden or traced(rhs) else _iterate
        result = _Iterated(*iterate(system, preconditioner, rhs, rtol, max_steps))
        # A tolerance that was asked for is held; the default yields to rounding.
        held = torch.full_like(result.residual, rtol)
        accepted = result.rounding.clamp(min=rtol) if self.rtol is None else held
        return Solved(result.solution, result.residual, accepted, result.steps)


class _Iterated(NamedTuple):
    """Solutions after the last step."""

    solution: Float[Tensor, "*group position key"]
    residual: Float[Tensor, "*group"]
    steps: Int[Tensor, "*group"]
    rounding: Float[Tensor, "*group"]
    """Relative residual that rounding alone explains at the chunk's worst position."""


@torch.no_grad()
def _iterate(
    system: System,
    preconditioner: Preconditioner | None,
    rhs: Float[Tensor, "*group position key"],
    rtol: float,
    max_steps: int,
) -> _Iterated:
    """Descend from the true residual until it is small, or no longer shrinks."""
    group = rhs.shape[:-2]
    system = flatten(system, group)
    preconditioner = preconditioner and flatten(preconditioner, group)
    rhs = rhs.reshape(-1, *rhs.shape[-2:])  # [G,C,K]
    spoiled = ~rhs.isfinite().all(-1, keepdim=True)  # positions without a solution
    rhs = rhs.masked_fill(spoiled, 0.0)
    unit = power_of_two(rhs)
    rhs = rhs / unit
    scale = rhs.norm(dim=-1, keepdim=True)
    residual = rhs / torch.where(scale == 0, 1.0, scale)
    target, solution = residual.clone(), torch.zeros_like(residual)
    worst, norm = _worst(residual), system.frobenius_norm()
    steps = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    goes_on = torch.ones_like(steps, dtype=torch.bool)
    for _ in range(_MAX_RESTARTS):
        rounding = rounding_level(norm, solution)
        wanted = goes_on & (worst > rounding.clamp(min=rtol)) & (steps < max_steps)
        active = wanted.nonzero().squeeze(-1)
        if len(active) == 0:
            break
        part, budget = select(system, active), max_steps - steps[active]
        part_preconditioner = preconditioner and select(preconditioner, active)
        correction, more_steps = _descend_each(
            part, part_preconditioner, residual[active], rtol, budget
        )
        candidate = solution[active] + correction
        remainder = target[active] - part.multiply(candidate)
        reached, before = _worst(remainder), worst[active]
        better = reached < before  # false for a NaN
        solution[active[better]], residual[active[better]] = candidate[better], remainder[better]
        worst[active[better]] = reached[better]
        steps[active] += more_steps
        goes_on[active] = reached < before / 2
    rounding = rounding_level(norm, solution)
    solution = (solution * scale * unit).masked_fill(spoiled, torch.nan)
    worst = worst.masked_fill(spoiled.any(-2).squeeze(-1), torch.nan)
    parts = (solution, worst, steps, rounding)
    return _Iterated(*(x.unflatten(0, group) for x in parts))


def _descend_each(
    system: System,
    preconditioner: Preconditioner | None,
    residual: Tensor,
    rtol: float,
    budget: Tensor,
) -> tuple[Tensor, Tensor]:
    """Descend with the preconditioner where it is of use, and without it elsewhere."""
    if preconditioner is None or preconditioner.unused.all():
        return _descend(system, None, residual, rtol, budget)
    if not preconditioner.unused.any():
        return _descend(system, preconditioner, residual, rtol, budget)
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    for plain in (True, False):
        at = (preconditioner.unused == plain).nonzero().squeeze(-1)
        chosen = None if plain else select(preconditioner, at)
        solution[at], steps[at] = _descend(
            select(system, at), chosen, residual[at], rtol, budget[at]
        )
    return solution, steps


def _descend(
    system: System,
    preconditioner: Preconditioner | None,
    residual: Tensor,
    rtol: float,
    budget: Tensor,
) -> tuple[Tensor, Tensor]:
    """Iterate from zero until every chunk's recursive residual is small or its budget is used up.

    With a preconditioner B, steps carry B direction, whose new part is the residual itself, and A adds
    a diagonal to it: the preconditioner's own products are then the only ones. The share that rounding
    takes from B B^{-1} = 1 shows in the true residual, which the caller measures.
    """
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    running = torch.arange(
        len(residual), device=residual.device
    )  # numbers of the chunks that go on
    iterate, direction, image = (torch.zeros_like(residual) for _ in range(3))
    weight_before = torch.ones_like(residual[..., :1])
    while True:
        steepest = preconditioner.apply(residual) if preconditioner else residual / system.ridge
        weight = (residual * steepest).sum(-1, keepdim=True)
        ratio = _ratio(weight, weight_before)
        direction = steepest + direction * ratio
        if preconditioner is None:
            product = system.multiply(direction)
        else:
            # The preconditioner leaves the decay f out: B steepest = f residual.
            decay = None if preconditioner.correction is None else system.since_start
            image = (residual if decay is None else residual * decay) + image * ratio
            diagonal = difference(system)
            product = image if diagonal is None else image + diagonal * direction
        length = _ratio(weight, (direction * product).sum(-1, keepdim=True))
        iterate, residual = iterate + length * direction, residual - length * product
        weight_before = weight
        steps[running] += 1
        done = ~(_worst(residual) > rtol) | (steps[running] >= budget[running])
        if done.any():
            solution[running[done]] = iterate[done]
            if done.all():
                return solution, steps
            rest = (~done).nonzero().squeeze(-1)
            system = select(system, rest)
            preconditioner = preconditioner and select(preconditioner, rest)
            running, iterate, residual, direction, image, weight_before = (
                x[rest] for x in (running, iterate, residual, direction, image, weight_before)
            )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, or 0 where a position is already solved and the denominator vanishes."""
    return numerator / torch.where(denominator == 0, torch.inf, denominator)


def _worst(residual: Float[Tensor, "group position key"]) -> Float[Tensor, "group"]:
    return residual.norm(dim=-1).amax(-1)


# The same as one operation of a compiled graph, which cannot look into a loop that depends on values.


class _Arguments(NamedTuple):
    """Arguments of the operation, in order: those of a system first."""

    keys: Tensor
    ridge: Tensor
    beta: Tensor | None
    start: Tensor | None
    between: Tensor | None
    since_start: Tensor | None
    ridge_decays: bool
    inverse: Tensor | None
    """Of the preconditioner, as the next two."""
    correction: Tensor | None
    unused: Tensor | None
    rhs: Tensor
    rtol: float
    max_steps: int


def _iterate_traced(
    system: System,
    preconditioner: Preconditioner | None,
    rhs: Tensor,
    rtol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = (None, None, None) if preconditioner is None else preconditioner
    return _operation(*_Arguments(*system, *parts, rhs, rtol, max_steps))


@torch.library.custom_op("mesaopt::conjugate_gradient", mutates_args=())
def _operation(
    keys: Tensor,
    ridge: Tensor,
    beta: Tensor | None,
    start: Tensor | None,
    between: Tensor | None,
    since_start: Tensor | None,
    ridge_decays: bool,
    inverse: Tensor | None,
    correction: Tensor | None,
    unused: Tensor | None,
    rhs: Tensor,
    rtol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    system = System(keys, ridge, beta, start, between, since_start, ridge_decays)
    provided = inverse is not None and unused is not None
    made = Preconditioner(inverse, correction, unused) if provided else None
    return tuple(_iterate(system, made, rhs, rtol, max_steps))


@_operation.register_fake
def _shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rhs = _Arguments(*arguments).rhs
    group = rhs.shape[:-2]
    steps = rhs.new_empty(group, dtype=torch.int64)
    return torch.empty_like(rhs), rhs.new_empty(group), steps, rhs.new_empty(group)


@_operation.register_vmap
def _batch(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
    """Treat the dimension that vmap adds as one more group dimension."""

    def lead(x: Any, dim: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.unsqueeze(0) if dim is None else x.movedim(dim, 0)

    arguments = _Arguments(*(lead(*pair) for pair in zip(given, in_dims, strict=True)))
    rhs = arguments.rhs  # sets the group, and so must have the new dimension in full
    arguments = arguments._replace(rhs=rhs.expand(info.batch_size, *rhs.shape[1:]))
    return _operation(*arguments), (0, 0, 0, 0)
