"""The mesa operator's linear systems, chunk by chunk: their matrices, factors, and solvers.

Once the state at every chunk's start is known, all chunks are independent. Position t of a chunk asks
for the solution of A_t x_t = b_t, where with f_t the decay since the start and D_ts the decay from s,

    A_t = f_t start + sum_{s <= t} D_ts beta_s k_s k_s^T + ridge_t.

The ridge at t is `ridge` itself, or f_t ridge where it fades with the state. Where it fades, or where
nothing is forgotten, one factorisation per chunk solves all positions exactly:

1. start + diag(ridge) = L L^T, and R = L^{-1}.
2. The keys are whitened, P = diag(sqrt(beta)) K R^T, and diag(f) + P P^T = M M^T. A leading block of
   a Cholesky factor is the factor of the leading block: this one factor serves every position.
3. With Y = M^{-1} P, the Woodbury identity gives for every position t of the chunk
   A_t^{-1} b_t = R^T (R b_t - sum_{i <= t} (R b_t . y_i) y_i) / f_t.

Elsewhere the same factors, made with the ridge as it stands in the middle of the chunk, precondition
conjugate gradients; chunks that forget most of their start do better with the ridge alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.ops import arguments, chunks

_SMALL = 16  # LAPACK's overhead per matrix is small up to here; above, matrix products are faster
STEEP = 64.0  # squared length of a whitened key from which rounding, about 16 units times it, shows
FORGETFUL = -2.0  # log of a chunk's decay below which its start says too little about its end
_ROUNDS = 4  # restarts of conjugate gradients from the true residual


Parts = TypeVar("Parts", bound=tuple)  # a System or Factors


class System(NamedTuple):
    """The matrices A_t of every position, never formed; see the module's docstring."""

    keys: Float[Tensor, "*group position key"]
    beta: Float[Tensor, "*group position 1"] | None
    start: Float[Tensor, "*group key key"] | None
    """State at the chunk's start, without the ridge; none where nothing came before."""
    ridge: Float[Tensor, "*ridge_group 1 key"]
    between: Float[Tensor, "*group position source"] | None
    since_start: Float[Tensor, "*group position 1"] | None
    fades: bool
    """Whether the ridge decays inside the chunk; as good as true where nothing is forgotten."""


class Factors(NamedTuple):
    """What turns a solve, or its preconditioner, into matrix products."""

    whitening: Float[Tensor, "*group rows key"]
    """R, or its diagonal as one row where it is diagonal."""
    correction: Float[Tensor, "*group position key"] | None
    """Y; none where the chunk's one position is already part of R."""
    steep: Bool[Tensor, "*group"]
    """Where a key changes the start so much that rounding shows: one refinement pays there."""
    failed: Bool[Tensor, "*group"]
    """Where a matrix was not positive definite to working precision."""


def multiply(
    system: System, x: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Apply every position's matrix to that position's vector, A_t x_t.

    Args:
        system: the matrices.
        x: one vector per position.

    Returns:
        The products, differentiable in the system and in x.

    Example:
        >>> one = torch.ones(1, 3, 1)
        >>> multiply(System(one, None, None, one[:, :1], None, None, True), one).flatten().tolist()
        [2.0, 3.0, 4.0]
    """
    keys, beta, start, ridge, between, since_start, fades = system
    scores = chunks.weigh_past(x @ keys.mT, between)
    local = scores @ (keys if beta is None else keys * beta)
    if since_start is None:
        return local + x * ridge + (0 if start is None else x @ start)
    kept = x * since_start
    local = local + (kept if fades else x) * ridge
    return local if start is None else local + kept @ start


def frobenius_norm(system: System) -> Float[Tensor, "*group position 1"]:
    """Bound every position's largest eigenvalue: the greatest ridge and the state's Frobenius norm.

    The state's norm is that of f_t start + sum_s D_ts beta_s k_s k_s^T, from inner products alone;
    the least ridge is added to it in quadrature, which keeps the square root differentiable at 0.

    Args:
        system: the matrices.

    Returns:
        One bound per position.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> round(frobenius_norm(System(one, None, None, one, None, None, True)).item(), 4)
        2.4142
    """
    keys, beta, start, ridge, between, since_start, fades = system
    products = (keys @ keys.mT).square()
    weights = chunks.weigh_past(torch.ones_like(products), between)  # [*G,C,C]
    if beta is not None:
        weights = weights * beta.mT
    squared = ((weights @ products) * weights).sum(-1, keepdim=True)
    if start is not None:
        kept = torch.ones_like(squared) if since_start is None else since_start
        overlap = ((keys @ start) * keys).sum(-1, keepdim=True)
        squared = squared + 2 * kept * (weights @ overlap)
        squared = squared + kept.square() * start.square().sum((-2, -1)).unsqueeze(-1).unsqueeze(-1)
    fade = since_start if fades and since_start is not None else 1.0
    least, greatest = ridge.amin(-1, keepdim=True) * fade, ridge.amax(-1, keepdim=True) * fade
    return greatest + (squared.clamp(min=0.0) + least.square()).sqrt()


def invert_factor(
    matrix: Float[Tensor, "*group size size"],
) -> tuple[Float[Tensor, "*group size size"], Bool[Tensor, "*group"]]:
    """Invert Cholesky factors: the lower triangular X with X matrix X^T = I.

    Halves are eliminated recursively with matrix products; LAPACK, whose cost per call matters for
    thousands of small matrices, sees only the blocks on the diagonal.

    Args:
        matrix: symmetric positive definite matrices.

    Returns:
        The inverse factors, and whether a matrix was not positive definite to working precision.

    Example:
        >>> invert_factor(torch.diag(torch.tensor([4.0, 16.0])))[0].tolist()
        [[0.5, 0.0], [0.0, 0.25]]
    """
    size = matrix.shape[-1]
    if size <= _SMALL:
        factor, code = torch.linalg.cholesky_ex(matrix)
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(matrix), upper=False)
        return inverse, code != 0
    half = (size + 1) // 2
    upper, upper_failed = invert_factor(matrix[..., :half, :half])
    corner = matrix[..., half:, :half] @ upper.mT
    lower, lower_failed = invert_factor(matrix[..., half:, half:] - corner @ corner.mT)
    mixed = -(lower @ (corner @ upper))
    top = torch.nn.functional.pad(upper, (0, size - half))
    return torch.cat([top, torch.cat([mixed, lower], -1)], -2), upper_failed | lower_failed


def matrices(
    system: System,
) -> Float[Tensor, "*group position key key"]:
    """Form every position's matrix: what the other functions avoid, for chunks of one position.

    Args:
        system: the matrices.

    Returns:
        A_t for every position.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> matrices(System(one, None, None, one[:, :1], None, None, True)).flatten().tolist()
        [2.0, 3.0]
    """
    keys, beta, start, ridge, between, since_start, fades = system
    weighted = keys if beta is None else keys * beta
    weights = chunks.weigh_past(torch.ones_like(keys @ keys.mT), between)  # [*G,C,C]
    outer = keys.unsqueeze(-1) * weighted.unsqueeze(-2)  # [*G,C,K,K]
    formed = (weights @ outer.flatten(-2)).unflatten(-1, outer.shape[-2:])
    kept = torch.ones_like(keys[..., :1]) if since_start is None else since_start
    formed = formed + torch.diag_embed(ridge * (kept if fades else torch.ones_like(kept)))
    return formed if start is None else formed + kept.unsqueeze(-1) * start.unsqueeze(-3)


@torch.no_grad()
def factorise(system: System, *, exact: bool) -> Factors:
    """Factorise every chunk, for an exact solve or as a preconditioner.

    Args:
        system: the matrices.
        exact: whether the factors must give the solution itself, which they can where the ridge fades
            or nothing is forgotten, and in chunks of one position. Otherwise chunks that forget most
            of their start get the ridge alone.

    Returns:
        The factors that :func:`apply_factors` takes.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> round(factorise(system, exact=True).correction.item() ** 2, 4)
        0.5
    """
    keys, kept = system.keys, system.since_start
    if kept is not None and keys.shape[-2] == 1:
        whitening, failed = invert_factor(matrices(system).squeeze(-3))
        return Factors(whitening, None, torch.zeros_like(failed), failed)
    whitening, failed = _whitening(system)
    whitened = _rotate(keys if system.beta is None else keys * system.beta.sqrt(), whitening)
    correction, correction_failed = _orthogonalise(whitened, kept)
    change = whitened.square().sum(-1)
    change = (change if kept is None else change / kept.squeeze(-1)).amax(-1)  # [*G]
    factors = Factors(whitening, correction, ~(change <= STEEP), failed | correction_failed)
    return factors if exact or kept is None else _relax_forgetful(system, factors)


def _orthogonalise(
    whitened: Float[Tensor, "*group position key"], kept: Float[Tensor, "*group position 1"] | None
) -> tuple[Tensor, Tensor]:
    """Y = M^{-1} P with diag(f) + P P^T = M M^T, a few positions at a time.

    What earlier rows of Y explain is taken out of the next rows of P, as in block Gram-Schmidt, so
    that neither the matrix of all positions nor M is ever formed.
    """
    done: list[Tensor] = []
    failed = torch.zeros(whitened.shape[:-2], dtype=torch.bool, device=whitened.device)
    blocks = -(-whitened.shape[-2] // _SMALL)
    decays = None if kept is None else kept.squeeze(-1).tensor_split(blocks, -1)
    for index, rows in enumerate(whitened.tensor_split(blocks, -2)):
        left = rows
        if done:
            before = torch.cat(done, -2) if index > 1 else done[0]
            left = rows - (rows @ before.mT) @ before
        inner = left @ rows.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0 if decays is None else decays[index])
        inverse, block_failed = invert_factor(inner)
        done.append(inverse @ left)
        failed = failed | block_failed
    return torch.cat(done, -2) if blocks > 1 else done[0], failed


def _whitening(system: System) -> tuple[Tensor, Tensor]:
    """Step 1 of the module's docstring, with the ridge as the middle of the chunk sees it."""
    ridge, group = system.ridge, system.keys.shape[:-2]
    if system.since_start is not None and not system.fades:
        log_whole = system.since_start[..., -1:, :].log().clamp(min=FORGETFUL)
        ridge = ridge * (log_whole / -2).exp()
    if system.start is None:
        failed = torch.zeros(group, dtype=torch.bool, device=ridge.device)
        return ridge.rsqrt().expand(*group, 1, -1), failed
    base = system.start + torch.diag_embed(ridge.squeeze(-2))
    return invert_factor(base)


def _relax_forgetful(system: System, factors: Factors) -> Factors:
    forgetful = system.since_start[..., -1, 0] < math.exp(FORGETFUL)  # [*G]
    scale = torch.ones_like(system.ridge) if system.fades else system.ridge.rsqrt()
    if factors.whitening.shape[-2] > 1:
        scale = torch.diag_embed(scale.squeeze(-2))
    chosen = forgetful[..., None, None]
    return Factors(
        torch.where(chosen, scale, factors.whitening),
        factors.correction.masked_fill(chosen, 0.0),
        factors.steep,
        factors.failed & ~forgetful,
    )


def apply_factors(
    factors: Factors, rhs: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Step 3 of the module's docstring, without the division by f_t.

    Args:
        factors: from :func:`factorise`.
        rhs: one right-hand side per position.

    Returns:
        One vector per position.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> factors = factorise(System(one, None, None, one, None, None, True), exact=True)
        >>> round(apply_factors(factors, one).item(), 4)
        0.5
    """
    whitening, correction, *_ = factors
    white = _rotate(rhs, whitening)
    if correction is not None:
        white = white - chunks.weigh_past(white @ correction.mT, None) @ correction
    return white * whitening if whitening.shape[-2] < whitening.shape[-1] else white @ whitening


def _rotate(x: Tensor, whitening: Tensor) -> Tensor:
    """R x for every position, where R may be a row that stands for a diagonal."""
    return x * whitening if whitening.shape[-2] < whitening.shape[-1] else x @ whitening.mT


def solve_exactly(
    system: System, factors: Factors, rhs: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Solve A_t x_t = b_t with factors that are exact.

    Args:
        system: the matrices.
        factors: from :func:`factorise` with `exact`.
        rhs: one right-hand side per position.

    Returns:
        The solutions.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> round(solve_exactly(system, factorise(system, exact=True), one).item(), 4)
        0.5
    """
    solution = _solve_once(system, factors, rhs)
    if not arguments.readable(factors.steep) and factors.correction is not None:
        return solution + _solve_once(system, factors, rhs - multiply(system, solution))
    if not factors.steep.any():
        return solution
    steep, group = factors.steep.flatten().nonzero().squeeze(-1), rhs.shape[:-2]
    part, part_factors = (_select(_flatten(x, group), steep) for x in (system, factors))
    flat = solution.flatten(0, -3)
    remainder = rhs.flatten(0, -3)[steep] - multiply(part, flat[steep])
    refined = flat[steep] + _solve_once(part, part_factors, remainder)
    return flat.index_copy(0, steep, refined).view_as(solution)


def _solve_once(system: System, factors: Factors, rhs: Tensor) -> Tensor:
    solution = apply_factors(factors, rhs)
    forgets = system.since_start is not None and factors.correction is not None
    return solution / system.since_start if forgets else solution


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
def relative_residual(
    system: System,
    solution: Float[Tensor, "*group position key"],
    rhs: Float[Tensor, "*group position key"],
) -> Float[Tensor, "*group"]:
    """Measure |b_t - A_t x_t| / |b_t|, the worst of a chunk.

    Args:
        system: the matrices.
        solution: the solutions.
        rhs: the right-hand sides.

    Returns:
        One number per chunk.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> relative_residual(System(one, None, None, one, None, None, True), one / 4, one).item()
        0.5
    """
    scale = rhs.norm(dim=-1)
    left = (rhs - multiply(system, solution)).norm(dim=-1)
    return (left / torch.where(scale == 0, 1.0, scale)).amax(-1)


@torch.no_grad()
def conjugate_gradient(
    system: System,
    factors: Factors,
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
        factors: preconditioner, from :func:`factorise`.
        rhs: one right-hand side per position.
        rtol: relative residual to reach at every position, if rounding allows.
        max_steps: most steps of a chunk, restarts included.

    Returns:
        The solutions, and per chunk the residual, the steps and the rounding level.

    Source: Hestenes and Stiefel (1952); the preconditioner is ours.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> found = conjugate_gradient(
        ...     system, factorise(system, exact=True), one, rtol=1e-6, max_steps=9
        ... )
        >>> round(found.solution.item(), 4), found.steps.item()
        (0.5, 1)
    """
    group, eps = rhs.shape[:-2], torch.finfo(rhs.dtype).eps
    system, factors = _flatten(system, group), _flatten(factors, group)
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
        part = _select(system, active)
        correction, taken = _descend(
            part, _select(factors, active), residual[active], rtol, max_steps - steps[active]
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


def _descend(
    system: System, factors: Factors, residual: Tensor, rtol: float, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients from zero until every chunk's recursive residual or budget is used up."""
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    chosen = torch.arange(len(residual), device=residual.device)  # which chunks still run
    iterate, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    weight_before = torch.ones_like(residual[..., :1])
    while True:
        steepest = apply_factors(factors, residual)
        weight = (residual * steepest).sum(-1, keepdim=True)
        direction = steepest + direction * _ratio(weight, weight_before)
        product = multiply(system, direction)
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
            system, factors = _select(system, left), _select(factors, left)
            chosen, iterate, residual, direction, weight_before = (
                x[left] for x in (chosen, iterate, residual, direction, weight_before)
            )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, or 0 where a position is already solved and the denominator vanishes."""
    return numerator / torch.where(denominator == 0, torch.inf, denominator)


def _worst(residual: Float[Tensor, "group position key"]) -> Float[Tensor, "group"]:
    return residual.norm(dim=-1).amax(-1)


def _flatten(tensors: Parts, group: torch.Size) -> Parts:
    """Give every tensor of a system or of factors one group dimension, all of the same length."""
    return _map(
        lambda x: x.expand(*group, *x.shape[len(group) :]).flatten(0, len(group) - 1), tensors
    )


def _select(tensors: Parts, index: Int[Tensor, "chosen"]) -> Parts:
    return _map(lambda x: x[index], tensors)


def _map(function: Callable[[Tensor], Tensor], tensors: Parts) -> Parts:
    return type(tensors)(*(function(x) if isinstance(x, Tensor) else x for x in tensors))


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
    whitening, *correction, steep, failed = factors
    known = Factors(whitening, correction[0] if correction else None, steep, failed)
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


def traced_gradient(
    system: System,
    factors: Factors,
    rhs: Float[Tensor, "*group position key"],
    *,
    rtol: float,
    max_steps: int,
) -> Solved:
    """Put :func:`conjugate_gradient` into a compiled graph, as one operation nobody looks into.

    Args:
        system: the matrices.
        factors: preconditioner, from :func:`factorise`.
        rhs: one right-hand side per position.
        rtol: relative residual to reach at every position, if rounding allows.
        max_steps: most steps of a chunk, restarts included.

    Returns:
        What :func:`conjugate_gradient` returns.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> factors = factorise(system, exact=True)
        >>> round(traced_gradient(system, factors, one, rtol=1e-6, max_steps=9).solution.item(), 4)
        0.5
    """
    known = [x for x in factors if x is not None]
    return Solved(*_opaque(*system, known, rhs, rtol, max_steps))


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
