"""Factors of a chunk's systems: one factorisation that serves every position of the chunk.

For the matrices A_t of :mod:`mesaopt.ops.mesa.system`, where the ridge decays with the state or nothing
is forgotten:

1. start + diag(ridge) = L L^T, and R = L^{-1}.
2. The keys are whitened, P = diag(sqrt(beta)) K R^T, and diag(f) + P P^T = M M^T. A leading block of
   a Cholesky factor is the factor of the leading block: this one factor serves every position.
3. With Y = M^{-1} P, the Woodbury identity gives for every position t of the chunk
   A_t^{-1} b_t = R^T (R b_t - sum_{i <= t} (R b_t . y_i) y_i) / f_t.

Elsewhere the same factors, made with the ridge in the middle of the chunk, make a
preconditioner: see :mod:`mesaopt.ops.mesa.preconditioner`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa.system import System
from mesaopt.ops.validation import in_graph, traced

_MAX_LAPACK_SIZE = 16  # rows; above, matrix products are faster than LAPACK on many small matrices
_MAX_LAPACK_COUNT = 16  # matrices; below, LAPACK is fast at every size
# Squared length of a whitened key above which rounding, about 16 units times it, shows in the solution.
_MAX_UNREFINED_LENGTH = 32.0
# Measured on float32 problems of six kinds: below both, solutions have errors under 1e-3, and never many
# times those of a dense solve. In units of the inverse rounding error, see :func:`factorise`.
_MAX_TRUSTED_LENGTH = 2.0**-14  # as above, after a refinement
_MAX_TRUSTED_CONDITION = 2.0**-10  # of the chunk's first matrix, its diagonal scaled to 1
_MOST_ROUNDING = 128.0  # times that, as errors are 1e-3 at the two limits above
# Log of a chunk's decay at which the ridge in its middle stops growing, so that factors stay finite; also
# the least decay for which conjugate gradients use the factors: below it they cost more than they save.
MIN_LOG_DECAY = -0.9


class Factors(NamedTuple):
    """Matrices that turn a solve into matrix products."""

    whitening: Float[Tensor, "*group rows key"]
    """R, or its diagonal as one row where it is diagonal."""
    correction: Float[Tensor, "*group position key"] | None
    """Y; None where the chunk's one position is already part of R."""
    needs_refinement: Bool[Tensor, "*group"]
    """Where a key changes the start so much that rounding shows: one refinement pays there."""
    failed: Bool[Tensor, "*group"]
    """Where a matrix was not positive definite to working precision."""
    rounding: Float[Tensor, "*group position"]
    """What rounding may do even after a refinement, in units of what is trusted; infinite where failed."""

    @property
    def doubtful(self) -> Bool[Tensor, "*group"]:
        """Where rounding may show."""
        return ~(self.rounding <= 1).all(-1)  # so that a NaN is doubtful

    @property
    def hopeless(self) -> Bool[Tensor, "*group position"]:
        """Where rounding may change a tenth of the solution: at and after a key that is too long."""
        return (~(self.rounding <= _MOST_ROUNDING)).cumsum(-1) > 0

    @property
    def is_diagonal(self) -> bool:
        """Whether the whitening is one row, the diagonal of a matrix."""
        return self.whitening.shape[-2] < self.whitening.shape[-1]


@torch.no_grad()
def factorise(system: System) -> Factors:
    """Factorise every chunk, for an exact solve or a preconditioner.

    Args:
        system: the matrices.

    Returns:
        The factors that :func:`apply_factors` takes. They give the solution itself where the ridge
        decays or nothing is forgotten, and in chunks of one position.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> round(factorise(System(one, one)).correction.item() ** 2, 4)
        0.5
    """
    keys, kept = system.keys, system.since_start
    if kept is not None and keys.shape[-2] == 1:
        base = system.matrices().squeeze(-3)
        few = not traced(base) and base.shape[:-2].numel() <= _MAX_LAPACK_COUNT
        whitening, failed = (_invert_factor_by_lapack if few else invert_factor)(base)
        rounding = _rounding(base, whitening).masked_fill(failed, math.inf)
        return Factors(whitening, None, torch.zeros_like(failed), failed, rounding[..., None])
    whitening, failed, rounding = _whitening(system)
    whitened = rotate(keys if system.beta is None else keys * system.beta.sqrt(), whitening)
    correction, correction_failed = _orthogonalise(whitened, kept)
    length = whitened.square().sum(-1)
    length = length if kept is None else length / kept.squeeze(-1)  # [*G,C]
    # Written so that a NaN asks for a refinement.
    needs_refinement = ~(length <= _MAX_UNREFINED_LENGTH).all(-1)
    trusted = _MAX_TRUSTED_LENGTH / torch.finfo(keys.dtype).eps
    failed = failed | correction_failed
    rounding = torch.maximum(rounding[..., None], length / trusted)
    rounding = rounding.masked_fill(failed[..., None], math.inf)
    return Factors(whitening, correction, needs_refinement, failed, rounding)


def apply_factors(
    factors: Factors, rhs: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Do step 3 of the module's docstring, without the division by f_t.

    Args:
        factors: from :func:`factorise`.
        rhs: one right-hand side per position.

    Returns:
        One vector per position.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> round(apply_factors(factorise(System(one, one)), one).item(), 4)
        0.5
    """
    whitening, correction = factors.whitening, factors.correction
    white = rotate(rhs, whitening)
    if correction is not None:
        white = white - chunks.weigh_past(white @ correction.mT, None) @ correction
    return white * whitening if factors.is_diagonal else white @ whitening


def rotate(
    x: Float[Tensor, "*group position key"], matrix: Float[Tensor, "*group rows key"]
) -> Float[Tensor, "*group position key"]:
    """Multiply every position's vector by a matrix, or by the diagonal in one row."""
    return x * matrix if matrix.shape[-2] < matrix.shape[-1] else x @ matrix.mT


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
    if size <= _MAX_LAPACK_SIZE:
        return _invert_factor_by_lapack(matrix)
    half = (size + 1) // 2
    upper, upper_failed = invert_factor(matrix[..., :half, :half])
    corner = matrix[..., half:, :half] @ upper.mT
    lower, lower_failed = invert_factor(matrix[..., half:, half:] - corner @ corner.mT)
    mixed = -(lower @ (corner @ upper))
    top = torch.nn.functional.pad(upper, (0, size - half))
    return torch.cat([top, torch.cat([mixed, lower], -1)], -2), upper_failed | lower_failed


def _invert_factor_by_lapack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`invert_factor`."""
    factor, code = torch.linalg.cholesky_ex(matrix)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(matrix), upper=False)
    return inverse, code != 0


def ridge_inside(system: System) -> Float[Tensor, "*group 1 key"]:
    """Return the ridge that, decaying with the start, is the true one in the middle of the chunk."""
    grown = growth_inside(system)
    return system.ridge if grown is None else system.ridge * grown


def growth_inside(system: System) -> Float[Tensor, "*group 1 1"] | None:
    """Return :func:`ridge_inside` as a multiple of the ridge; None where that is 1."""
    if system.since_start is None or system.ridge_decays:
        return None
    log_total = system.since_start[..., -1:, :].log().clamp(min=MIN_LOG_DECAY)
    return (log_total / -2).exp()


def _whitening(system: System) -> tuple[Tensor, Tensor, Tensor]:
    """Do step 1 of the module's docstring, and say where it failed and what rounding may do to it."""
    ridge, group = ridge_inside(system), system.keys.shape[:-2]
    if system.start is None:
        failed = torch.zeros(group, dtype=torch.bool, device=ridge.device)
        return ridge.rsqrt().expand(*group, 1, -1), failed, ridge.new_zeros(group)
    base = system.start + torch.diag_embed(ridge.squeeze(-2))
    whitening, failed = invert_factor(base)
    return whitening, failed, _rounding(base, whitening)


def _rounding(
    matrix: Float[Tensor, "*group size size"], inverse_factor: Float[Tensor, "*group size size"]
) -> Float[Tensor, "*group"]:
    """Bound the condition number of a matrix whose diagonal is scaled to 1, by the trace of its inverse.

    It is given in units of what is trusted.
    """
    inverse_diagonal = inverse_factor.square().sum(-2)
    condition = (matrix.diagonal(dim1=-2, dim2=-1) * inverse_diagonal).sum(-1)
    return condition * (torch.finfo(matrix.dtype).eps / _MAX_TRUSTED_CONDITION)


def _orthogonalise(
    whitened: Float[Tensor, "*group position key"], kept: Float[Tensor, "*group position 1"] | None
) -> tuple[Tensor, Tensor]:
    """Return Y = M^{-1} P with diag(f) + P P^T = M M^T, a few positions at a time.

    The share of earlier rows of Y is taken out of the next rows of P, as in block Gram-Schmidt, so that
    neither the matrix of all positions nor M is ever formed.
    """
    if in_graph():
        return _orthogonalise_operation(whitened, kept)
    return _orthogonalise_blocks(whitened, kept)


def _orthogonalise_blocks(whitened: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    done: list[Tensor] = []
    failed = torch.zeros(whitened.shape[:-2], dtype=torch.bool, device=whitened.device)
    blocks = -(-whitened.shape[-2] // _MAX_LAPACK_SIZE)
    decays = None if kept is None else kept.squeeze(-1).tensor_split(blocks, -1)
    for index, rows in enumerate(whitened.tensor_split(blocks, -2)):
        remainder = rows
        if done:
            before = torch.cat(done, -2) if index > 1 else done[0]
            remainder = rows - (rows @ before.mT) @ before
        inner = remainder @ rows.mT
        added = torch.ones_like(inner[..., 0]) if decays is None else decays[index]
        if traced(inner):  # torch.func.linearize loses what is done in place
            inner = inner + torch.diag_embed(added)
        else:
            inner.diagonal(dim1=-2, dim2=-1).add_(added)
        inverse, block_failed = invert_factor(inner)
        done.append(inverse @ remainder)
        failed = failed | block_failed
    return torch.cat(done, -2) if blocks > 1 else done[0], failed


@torch.library.custom_op("mesaopt::orthogonalise", mutates_args=())
def _orthogonalise_operation(whitened: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Do the same as one operation of a compiled graph, which would be another for other blocks."""
    return _orthogonalise_blocks(whitened, kept)


@_orthogonalise_operation.register_fake
def _orthogonalised_shapes(whitened: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = whitened.shape
    return whitened.new_empty(shape), whitened.new_empty(shape[:-2], dtype=torch.bool)
