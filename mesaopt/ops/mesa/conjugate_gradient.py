"""The iterative solver: conjugate gradients or a series, until the worst position is good."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops.mesa.descent import Matrices, descend, worst_norm
from mesaopt.ops.mesa.preconditioner import Preconditioner, Series, precondition, terms_needed
from mesaopt.ops.mesa.solver import (
    TRACED_CHUNK_SIZE,
    Prepared,
    Solved,
    Solver,
    rounding_level,
)
from mesaopt.ops.mesa.system import System, flatten, power_of_two, select
from mesaopt.ops.packing import Layout
from mesaopt.ops.validation import check_count, traced

_BLOCK_NUMBERS = 2**17  # of one tensor of a block of chunks, of which a dozen are in use
_MAX_RESTARTS = 4  # of conjugate gradients from the true residual
# A chunk's forgetting is minus the log of its decay.
_MAX_PRECONDITIONED_FORGETTING = 0.56  # of a chunk: up to here four steps reach a residual of 1e-4
_MIN_PRECONDITIONED_SIZE = (
    14  # positions; factors of shorter chunks cost more than the steps they save
)
_EVEN_SIZE = 16
_MAX_FACTORISED_FORGETTING = 0.48  # of the shortest chunk: heads that forget more take plain steps


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Solver):
    """Solve by conjugate gradients, or by a series of the chunk's factors where it remembers its start.

    The series is that of :mod:`mesaopt.ops.mesa.preconditioner`, and a step is one of its terms. Every
    right-hand side is scaled to norm 1 first and there is no absolute tolerance, so solving for c b gives c
    times the solution. All positions step together; chunks whose positions are all done leave. A position
    whose right-hand side is not finite gets a NaN, and the others do not wait for it. The residual that
    decides is the true one: where it is worse than was expected, the solver starts again from it, as long
    as that helps.

    Args:
        rtol: relative residual that every position must reach, > 0. None, the default, means 16 times the
            rounding unit, or as far as rounding allows.
        max_steps: most steps of a chunk, restarts included, 0 or more; 4 * key + 32 if None.

    Raises:
        ValueError: a number is out of range.

    Source: Hestenes and Stiefel (1952); the series is ours.

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
        check_count("max_steps", self.max_steps, least=0)

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
        if (
            _EVEN_SIZE <= wanted < size
        ):  # products of such sizes are faster, and fill more sequences
            wanted -= wanted % _EVEN_SIZE
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
    """Iterate on as many chunks at a time as the caches hold, those of like decay together."""
    group, (positions, width) = rhs.shape[:-2], rhs.shape[-2:]
    system, rhs = flatten(system, group), rhs.reshape(-1, positions, width)
    preconditioner = preconditioner and flatten(preconditioner, group)
    size = len(rhs)
    if rhs.device.type == "cpu":
        size = max(1, _BLOCK_NUMBERS // (positions * max(positions, width)))
    steps = torch.empty(len(rhs), dtype=torch.int64, device=rhs.device)
    worst, rounding = (rhs.new_empty(len(rhs)) for _ in range(2))
    result = _Iterated(torch.empty_like(rhs), worst, steps, rounding)
    for index, terms in _blocks(system, preconditioner, size, rtol):
        block, series = select(system, index), None
        if preconditioner is not None and terms:
            series = Series.of(block, select(preconditioner, index))
        found = _iterate_block(block, _Steps(series, terms, rtol, max_steps), rhs[index])
        for joined, part in zip(result, found, strict=True):
            joined[index] = part
    return _Iterated(*(x.unflatten(0, group) for x in result))


def _blocks(
    system: System, preconditioner: Preconditioner | None, size: int, rtol: float
) -> Iterator[tuple[Tensor | slice, int]]:
    """Cut flat chunks into blocks that need as many terms of their series, or 0 for plain steps."""
    total, kept = len(system.keys), system.since_start
    terms = torch.zeros(total, dtype=torch.int64, device=system.keys.device)
    if preconditioner is not None:
        terms = terms_needed(system, preconditioner, rtol)
    kinds = terms.unique().tolist()
    for kind in kinds:
        if len(kinds) == 1 and (kind or kept is None or total <= size):
            yield from ((slice(first, first + size), kind) for first in range(0, total, size))
            return
        index = (terms == kind).nonzero().squeeze(-1)
        if kept is not None and not kind and len(index) > size:
            index = index[kept[index, -1, 0].argsort()]  # they take about as many steps
        yield from ((part, kind) for part in index.split(size))


class _Steps(NamedTuple):
    """How to step in a block."""

    series: Series | None
    """None for conjugate gradients."""
    terms: int
    """Of the series, for unit vectors."""
    rtol: float
    most: int

    def solve(
        self,
        matrices: Matrices,
        active: Tensor | slice,
        residual: Tensor,
        budget: Tensor,
        *,
        is_first: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return a correction for some chunks of the block, and how many steps they took."""
        worst = worst_norm(residual)
        if self.series is None:
            return descend(matrices, residual, self.rtol, budget)
        series, terms = select(self.series, active), self.terms
        if not is_first:  # the residual is that of a solution, and no unit vector
            terms = series.terms_needed(self.rtol / worst.max().item())
        terms = min(terms, int(budget.min()))
        return series.apply(residual, terms), torch.where(worst > self.rtol, terms, 0)


def _iterate_block(
    system: System, steps_by: _Steps, rhs: Float[Tensor, "group position key"]
) -> _Iterated:
    """Descend from the true residual until it is small, or no longer shrinks."""
    matrices, rtol = Matrices.of(system), steps_by.rtol
    target, spoiled, scale, unit = _normalise(rhs)
    solution, residual = torch.zeros_like(target), target.clone()
    worst = (scale > 0).to(rhs.dtype).amax((-2, -1))
    steps = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    rounding = torch.full_like(worst, 16 * torch.finfo(rhs.dtype).eps)
    goes_on, active = torch.ones_like(steps, dtype=torch.bool), slice(None)
    for attempt in range(_MAX_RESTARTS if steps_by.most else 0):
        part, before = select(matrices, active), worst[active].clone()
        budget = steps_by.most - steps[active]
        correction, more_steps = steps_by.solve(
            part, active, residual[active], budget, is_first=attempt == 0
        )
        candidate = solution[active] + correction
        remainder = part.subtract_from(target[active], candidate)
        reached = worst_norm(remainder)
        better = reached < before  # false for a NaN
        steps[active] += more_steps
        goes_on[active] = reached < before / 2
        if better.all():
            solution[active], residual[active], worst[active] = candidate, remainder, reached
        else:
            at = torch.arange(len(rhs), device=rhs.device)[active][better]
            solution[at], residual[at], worst[at] = (
                x[better] for x in (candidate, remainder, reached)
            )
        missed = (~(worst <= rtol)).nonzero().squeeze(-1)
        if len(missed):
            norm = select(system, missed).frobenius_norm()
            rounding[missed] = rounding_level(norm, solution[missed])
        wanted = goes_on & (worst > rounding.clamp(min=rtol)) & (steps < steps_by.most)
        active = wanted.nonzero().squeeze(-1)
        if len(active) == 0:
            break
    solution = (solution * scale).mul_(unit)
    if spoiled is not None:
        solution = solution.masked_fill(spoiled, torch.nan)
        worst = worst.masked_fill(spoiled.any(-2).squeeze(-1), torch.nan)
    return _Iterated(solution, worst, steps, rounding)


def _normalise(rhs: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return unit vectors or zeros, where a vector is not finite, and norms as scale and power of two."""
    peak = rhs.abs().amax(-1, keepdim=True)
    spoiled = ~peak.isfinite()  # positions without a solution
    if spoils := bool(spoiled.any()):
        rhs, peak = rhs.masked_fill(spoiled, 0.0), peak.masked_fill(spoiled, 0.0)
    unit = power_of_two(peak)
    target = rhs / unit
    scale = target.norm(dim=-1, keepdim=True)
    target /= torch.where(scale == 0, 1.0, scale)
    return target, spoiled if spoils else None, scale, unit


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
