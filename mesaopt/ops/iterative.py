"""Iterative solvers of the mesa operator's linear systems, see :mod:`mesaopt.ops.chunked`."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops.chunked import (
    Preconditioner,
    System,
    apply_preconditioner,
    difference,
    flatten,
    frobenius_norm,
    multiply,
    select,
)

_ROUNDS = 4  # restarts of conjugate gradients from the true residual


class Solved(NamedTuple):
    """Solutions and how good they are."""

    solution: Float[Tensor, "*group position key"]
    residual: Float[Tensor, "*group"]
    """Worst relative residual |b - A x| / |b| of a chunk's positions."""
    steps: Int[Tensor, "*group"]
    """Conjugate-gradient steps that a chunk took."""
    rounding: Float[Tensor, "*group"]
    """Relative residual that rounding alone explains at the chunk's worst position."""

    @classmethod
    def direct(cls, solution: Float[Tensor, "*group position key"]) -> "Solved":
        """Wrap the result of a method that takes no steps and measures nothing.

        Args:
            solution: the solutions.

        Returns:
            The solutions with empty tensors in the other places.
        """
        return cls(solution, *(solution.new_empty(0) for _ in range(3)))


@torch.no_grad()
def conjugate_gradient(
    system: System,
    known: Preconditioner | None,
    rhs: Float[Tensor, "*group position key"],
    *,
    rtol: float,
    max_steps: int,
) -> Solved:
    """Solve A_t x_t = b_t by preconditioned conjugate gradients, until the worst position is good.

    Every right-hand side is scaled to norm 1 first and there is no absolute tolerance, so solving for
    c b gives c times the solution. All positions step together; chunks whose positions are all done
    leave. The residual that decides is the true one: where it is worse than the recursion says, the
    recursion starts again from it, as long as that helps.

    Args:
        system: the matrices.
        known: preconditioner, from :func:`mesaopt.ops.chunked.precondition`; none for the ridge alone.
        rhs: one right-hand side per position.
        rtol: relative residual to reach at every position, if rounding allows.
        max_steps: most steps of a chunk, restarts included.

    Returns:
        The solutions, and per chunk the residual, the steps and the rounding level.

    Source: Hestenes and Stiefel (1952); the preconditioner is ours.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> found = conjugate_gradient(system, None, one, rtol=1e-6, max_steps=9)
        >>> round(found.solution.item(), 4), found.steps.item()
        (0.5, 1)
    """
    group, eps = rhs.shape[:-2], torch.finfo(rhs.dtype).eps
    system, known = flatten(system, group), known and flatten(known, group)
    rhs = rhs.reshape(-1, *rhs.shape[-2:])  # [G,C,K]
    scale = rhs.norm(dim=-1, keepdim=True)
    residual = rhs / torch.where(scale == 0, 1.0, scale)
    unit, solution = residual.clone(), torch.zeros_like(residual)
    worst, norm = _worst(residual), frobenius_norm(system)
    steps = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    goes_on = torch.ones_like(steps, dtype=torch.bool)
    for _ in range(_ROUNDS):
        rounding = 16 * eps * (1 + (norm * solution.norm(dim=-1, keepdim=True)).amax((-2, -1)))
        wanted = goes_on & (worst > rounding.clamp(min=rtol)) & (steps < max_steps)
        active = wanted.nonzero().squeeze(-1)
        if len(active) == 0:
            break
        part = select(system, active)
        correction, taken = _descend_each(
            part, known and select(known, active), residual[active], rtol, max_steps - steps[active]
        )
        candidate = solution[active] + correction
        remainder = unit[active] - multiply(part, candidate)
        reached, before = _worst(remainder), worst[active]
        better = reached < before  # false for a NaN
        solution[active[better]], residual[active[better]] = candidate[better], remainder[better]
        worst[active[better]] = reached[better]
        steps[active] += taken
        goes_on[active] = reached < before / 2
    rounding = 16 * eps * (1 + (norm * solution.norm(dim=-1, keepdim=True)).amax((-2, -1)))
    parts = (solution * scale, worst, steps, rounding)
    return Solved(*(x.unflatten(0, group) for x in parts))


def _descend_each(
    system: System, known: Preconditioner | None, residual: Tensor, rtol: float, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Descend with the preconditioner where it is of use, and without it elsewhere."""
    if known is None or known.plain.all():
        return _descend(system, None, residual, rtol, budget)
    if not known.plain.any():
        return _descend(system, known, residual, rtol, budget)
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    for plain in (True, False):
        at = (known.plain == plain).nonzero().squeeze(-1)
        chosen = None if plain else select(known, at)
        solution[at], steps[at] = _descend(
            select(system, at), chosen, residual[at], rtol, budget[at]
        )
    return solution, steps


def _descend(
    system: System, known: Preconditioner | None, residual: Tensor, rtol: float, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients from zero until every chunk's recursive residual or budget is used up.

    With a preconditioner B, steps carry B direction, whose new part is the residual itself, and A adds
    a diagonal to it: the preconditioner's own products are then the only ones. What rounding takes from
    B B^{-1} = 1 shows in the true residual, which the caller measures.
    """
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    chosen = torch.arange(len(residual), device=residual.device)  # which chunks still run
    iterate, direction, image = (torch.zeros_like(residual) for _ in range(3))
    weight_before = torch.ones_like(residual[..., :1])
    while True:
        steepest = (
            residual / system.ridge if known is None else apply_preconditioner(known, residual)
        )
        weight = (residual * steepest).sum(-1, keepdim=True)
        ratio = _ratio(weight, weight_before)
        direction = steepest + direction * ratio
        if known is None:
            product = multiply(system, direction)
        else:
            # The preconditioner leaves the decay f out: B steepest = f residual.
            decay = None if known.correction is None else system.since_start
            image = (residual if decay is None else residual * decay) + image * ratio
            diagonal = difference(system)
            product = image if diagonal is None else image + diagonal * direction
        length = _ratio(weight, (direction * product).sum(-1, keepdim=True))
        iterate, residual = iterate + length * direction, residual - length * product
        weight_before = weight
        steps[chosen] += 1
        done = ~(_worst(residual) > rtol) | (steps[chosen] >= budget[chosen])
        if done.any():
            solution[chosen[done]] = iterate[done]
            if done.all():
                return solution, steps
            left = (~done).nonzero().squeeze(-1)
            system, known = select(system, left), known and select(known, left)
            chosen, iterate, residual, direction, image, weight_before = (
                x[left] for x in (chosen, iterate, residual, direction, image, weight_before)
            )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, or 0 where a position is already solved and the denominator vanishes."""
    return numerator / torch.where(denominator == 0, torch.inf, denominator)


def _worst(residual: Float[Tensor, "group position key"]) -> Float[Tensor, "group"]:
    return residual.norm(dim=-1).amax(-1)


@torch.library.custom_op("mesaopt::conjugate_gradient", mutates_args=())
def _opaque(
    keys: Tensor,
    beta: Tensor | None,
    start: Tensor | None,
    ridge: Tensor,
    between: Tensor | None,
    since_start: Tensor | None,
    fades: bool,
    factors: list[Tensor],
    rhs: Tensor,
    rtol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    system = System(keys, beta, start, ridge, between, since_start, fades)
    inverse, *correction, plain = factors
    known = Preconditioner(inverse, correction[0] if correction else None, plain)
    return tuple(conjugate_gradient(system, known, rhs, rtol=rtol, max_steps=max_steps))


@_opaque.register_fake
def _shapes(
    keys: Tensor,
    beta: Tensor | None,
    start: Tensor | None,
    ridge: Tensor,
    between: Tensor | None,
    since_start: Tensor | None,
    fades: bool,
    factors: list[Tensor],
    rhs: Tensor,
    rtol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    group = rhs.shape[:-2]
    steps = rhs.new_empty(group, dtype=torch.int64)
    return torch.empty_like(rhs), rhs.new_empty(group), steps, rhs.new_empty(group)


@_opaque.register_vmap
def _many(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
    """Treat the dimension that vmap adds as one more group dimension."""

    def lead(x: Any, dim: Any) -> Any:
        if isinstance(x, list):
            return [lead(*pair) for pair in zip(x, dim, strict=True)]
        if not isinstance(x, Tensor):
            return x
        return x.unsqueeze(0) if dim is None else x.movedim(dim, 0)

    led = [lead(*pair) for pair in zip(given, in_dims, strict=True)]
    led[8] = led[8].expand(info.batch_size, *led[8].shape[1:])  # the right-hand sides set the group
    return _opaque(*led), (0, 0, 0, 0)


def traced_gradient(
    system: System,
    known: Preconditioner,
    rhs: Float[Tensor, "*group position key"],
    *,
    rtol: float,
    max_steps: int,
) -> Solved:
    """Put :func:`conjugate_gradient` into a compiled graph, as one operation nobody looks into.

    Args:
        system: the matrices.
        known: preconditioner, from :func:`mesaopt.ops.chunked.precondition`.
        rhs: one right-hand side per position.
        rtol: relative residual to reach at every position, if rounding allows.
        max_steps: most steps of a chunk, restarts included.

    Returns:
        What :func:`conjugate_gradient` returns.

    Example:
        >>> from mesaopt.ops.chunked import precondition
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> known = precondition(system)
        >>> round(traced_gradient(system, known, one, rtol=1e-6, max_steps=9).solution.item(), 4)
        0.5
    """
    factors = [x for x in known if x is not None]
    return Solved(*_opaque(*system, factors, rhs, rtol, max_steps))


def iterate_fixed(
    system: System, rhs: Float[Tensor, "*group position key"], *, method: str, steps: int
) -> Float[Tensor, "*group position key"]:
    """Run a fixed number of steps of an iteration that needs bounds of the eigenvalues only.

    Both start from x = b. "neumann" is x <- x + (b - A x) / bound, a truncated Neumann series where
    the bound is 1; "chebyshev" is the Chebyshev iteration between the least ridge and the bound.

    Args:
        system: the matrices.
        rhs: one right-hand side per position.
        method: "neumann" or "chebyshev".
        steps: 0 or more; with none, the solution is the right-hand side.

    Returns:
        What the steps arrive at, differentiable in everything.

    Source: von Oswald et al. (2023), truncated Neumann series; Saad, "Iterative Methods for Sparse
    Linear Systems", algorithm 12.1.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> round(iterate_fixed(system, one, method="chebyshev", steps=9).item(), 4)
        0.5
    """
    bound, solution = frobenius_norm(system), rhs
    if method == "neumann":
        for _ in range(steps):
            solution = solution + (rhs - multiply(system, solution)) / bound
        return solution
    least = system.ridge.amin(-1, keepdim=True)
    if system.fades and system.since_start is not None:
        least = least * system.since_start
    middle, radius = (bound + least) / 2, (bound - least) / 2
    momentum = radius / middle
    residual = rhs - multiply(system, solution) if steps else rhs
    direction = residual / middle
    for step in range(steps):
        solution = solution + direction
        if step + 1 < steps:
            residual = residual - multiply(system, direction)
            following = 1 / (2 * middle / radius - momentum)
            direction = following * momentum * direction + 2 * following / radius * residual
            momentum = following
    return solution
