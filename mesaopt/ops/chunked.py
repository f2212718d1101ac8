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
conjugate gradients: what they solve exactly differs from A_t by a diagonal, which makes a step as cheap
as a plain one. Chunks that forget most of their start are not factorised and take plain steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.checks import readable, traced

_SMALL = 16  # LAPACK's overhead per matrix is small up to here; above, matrix products are faster
STEEP = 32.0  # squared length of a whitened key from which rounding, about 16 units times it, shows
FORGETFUL = -0.9  # log of a chunk's decay below which factors cost more than the steps they save


Parts = TypeVar("Parts", bound=tuple)  # a System, Factors or Preconditioner


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
    """What turns a solve into matrix products."""

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
def factorise(system: System) -> Factors:
    """Factorise every chunk, for an exact solve or a preconditioner.

    Args:
        system: the matrices.

    Returns:
        The factors that :func:`apply_factors` takes. They give the solution itself where the ridge
        fades or nothing is forgotten, and in chunks of one position.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> round(factorise(system).correction.item() ** 2, 4)
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
    return Factors(whitening, correction, ~(change <= STEEP), failed | correction_failed)


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
    """Step 1 of the module's docstring."""
    ridge, group = _ridge_inside(system), system.keys.shape[:-2]
    if system.start is None:
        failed = torch.zeros(group, dtype=torch.bool, device=ridge.device)
        return ridge.rsqrt().expand(*group, 1, -1), failed
    base = system.start + torch.diag_embed(ridge.squeeze(-2))
    return invert_factor(base)


def _ridge_inside(system: System) -> Tensor:
    """Give rho ridge: what, fading with the start, is the ridge in the middle of the chunk."""
    if system.since_start is None or system.fades:
        return system.ridge
    log_whole = system.since_start[..., -1:, :].log().clamp(min=FORGETFUL)
    return system.ridge * (log_whole / -2).exp()


class Preconditioner(NamedTuple):
    """What conjugate gradients are told of B_t = A_t + (f_t rho - 1) ridge, which has exact factors.

    A_t and B_t differ by a diagonal alone. Conjugate gradients that carry B_t times their direction
    therefore never multiply by A_t, and a step costs what one without a preconditioner does.
    """

    inverse: Float[Tensor, "*group rows key"]
    """R^T R, or its diagonal as one row where it is diagonal."""
    correction: Float[Tensor, "*group position key"] | None
    """Y R; none where the chunk's one position is already part of R."""
    plain: Bool[Tensor, "*group"]
    """Chunks that are better off without: forgetful ones, and those whose factors failed."""


@torch.no_grad()
def precondition(system: System) -> Preconditioner | None:
    """Factorise the chunks that remember enough of their start for it to pay.

    Args:
        system: the matrices.

    Returns:
        What :func:`apply_preconditioner` takes, zero where nothing was factorised; none if no chunk
        remembers enough. Where values cannot be seen, every chunk is factorised.

    Example:
        >>> one = torch.ones(2, 1, 1)
        >>> gone = System(one, None, None, one, one, torch.zeros(2, 1, 1), False)
        >>> precondition(gone) is None
        True
    """
    plain = _forgetful(system)
    if traced(plain) or not plain.any():
        return _precondition_all(system)
    if plain.all():
        return None
    group, flat = plain.shape, plain.flatten()
    chosen = (~flat).nonzero().squeeze(-1)
    inverse, correction, failed = _precondition_all(select(flatten(system, group), chosen))

    def scatter(x: Tensor) -> Tensor:
        return x.new_zeros(len(flat), *x.shape[1:]).index_copy(0, chosen, x).unflatten(0, group)

    scattered = None if correction is None else scatter(correction)
    return Preconditioner(scatter(inverse), scattered, plain | scatter(failed))


def _forgetful(system: System) -> Bool[Tensor, "*group"]:
    """Whether a chunk keeps too little of its start, at its end, for the start to say much."""
    if system.since_start is None:
        return torch.zeros(system.keys.shape[:-2], dtype=torch.bool, device=system.keys.device)
    return ~(system.since_start[..., -1, 0] >= math.exp(FORGETFUL))


def _precondition_all(system: System) -> Preconditioner:
    whitening, correction, _, failed = factorise(system)
    diagonal = whitening.shape[-2] < whitening.shape[-1]
    inverse = whitening.square() if diagonal else whitening.mT @ whitening
    if correction is not None:
        correction = correction * whitening if diagonal else correction @ whitening
    return Preconditioner(inverse, correction, failed | _forgetful(system))


def apply_preconditioner(
    known: Preconditioner, rhs: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Step 3 of the module's docstring with R and Y multiplied out, without the division by f_t.

    Args:
        known: from :func:`precondition`.
        rhs: one right-hand side per position.

    Returns:
        f_t B_t^{-1} b_t.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> known = precondition(System(one, None, None, one, None, None, True))
        >>> round(apply_preconditioner(known, one).item(), 4)
        0.5
    """
    inverse, correction, _ = known
    applied = _rotate(rhs, inverse)
    if correction is None:
        return applied
    return applied - chunks.weigh_past(rhs @ correction.mT, None) @ correction


def difference(system: System) -> Float[Tensor, "*group position key"] | None:
    """Give the diagonal A_t - B_t by which a preconditioner misses the matrices.

    Args:
        system: the matrices.

    Returns:
        The diagonals; none where the preconditioner is exact.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> system = System(one, None, None, one[:, :1], None, torch.tensor([[[1.0], [0.64]]]), False)
        >>> [round(x, 4) for x in difference(system).flatten().tolist()]
        [-0.25, 0.2]
    """
    kept = system.since_start
    if kept is None or system.fades or system.keys.shape[-2] == 1:
        return None
    return system.ridge - kept * _ridge_inside(system)


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
        >>> factors = factorise(System(one, None, None, one, None, None, True))
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
        factors: from :func:`factorise`, where they are exact.
        rhs: one right-hand side per position.

    Returns:
        The solutions.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> round(solve_exactly(system, factorise(system), one).item(), 4)
        0.5
    """
    solution = _solve_once(system, factors, rhs)
    if factors.correction is None:  # the very matrix was factorised, nothing is steep
        return solution
    if not readable(factors.steep):
        return solution + _solve_once(system, factors, rhs - multiply(system, solution))
    if not factors.steep.any():
        return solution
    steep, group = factors.steep.flatten().nonzero().squeeze(-1), rhs.shape[:-2]
    part = select(flatten(system, group), steep)
    part_factors = select(flatten(factors, group), steep)
    flat = solution.flatten(0, -3)
    remainder = rhs.flatten(0, -3)[steep] - multiply(part, flat[steep])
    refined = flat[steep] + _solve_once(part, part_factors, remainder)
    return flat.index_copy(0, steep, refined).view_as(solution)


def _solve_once(system: System, factors: Factors, rhs: Tensor) -> Tensor:
    solution = apply_factors(factors, rhs)
    if system.since_start is None or factors.correction is None:
        return solution
    return solution / system.since_start


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


def flatten(tensors: Parts, group: tuple[int, ...]) -> Parts:
    """Give every tensor of a system or of factors one group dimension, all of the same length.

    Args:
        tensors: a system or factors.
        group: the group dimensions of the system's positions.

    Returns:
        The same with [group, ...] tensors.

    Example:
        >>> one = torch.ones(2, 3, 1, 1)
        >>> flatten(System(one, None, None, one[:1, :1], None, None, True), (2, 3)).ridge.shape
        torch.Size([6, 1, 1])
    """
    count = len(group)
    return _map(lambda x: x.expand(*group, *x.shape[count:]).flatten(0, count - 1), tensors)


def select(tensors: Parts, index: Int[Tensor, "chosen"]) -> Parts:
    """Take some chunks of a flat system or of flat factors.

    Args:
        tensors: from :func:`flatten`.
        index: which chunks.

    Returns:
        Copies of these.

    Example:
        >>> one = torch.ones(3, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> select(system, torch.tensor([2])).keys.shape
        torch.Size([1, 1, 1])
    """
    return _map(lambda x: x[index], tensors)


def _map(function: Callable[[Tensor], Tensor], tensors: Parts) -> Parts:
    return type(tensors)(*(function(x) if isinstance(x, Tensor) else x for x in tensors))
