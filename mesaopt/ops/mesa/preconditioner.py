"""A preconditioner for a static ridge under forgetting, from the chunk's factors.

The factors of :mod:`mesaopt.ops.mesa.factors` solve B_t = A_t + (f_t rho - 1) ridge exactly, where rho is
such that both ridges agree in the middle of the chunk. B_t and A_t differ by a diagonal alone, which makes
a step of conjugate gradients as cheap as a plain one. Chunks that forget most of their start are not
factorised and take plain steps.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa import factors
from mesaopt.ops.mesa.factors import factorise, ridge_inside, rotate
from mesaopt.ops.mesa.system import System, flatten, select
from mesaopt.ops.validation import traced


class Preconditioner(NamedTuple):
    """The inverse of B_t, in products.

    Conjugate gradients that carry B_t times their direction never multiply by A_t, and a step costs what
    one without a preconditioner does.
    """

    inverse: Float[Tensor, "*group rows key"]
    """R^T R, or its diagonal as one row where it is diagonal."""
    correction: Float[Tensor, "*group position key"] | None
    """Y R; None where the chunk's one position is already part of R."""
    unused: Bool[Tensor, "*group"]
    """Chunks that take plain steps: those that forget their start, and those whose factors failed."""

    def apply(
        self, rhs: Float[Tensor, "*group position key"]
    ) -> Float[Tensor, "*group position key"]:
        """Return f_t B_t^{-1} b_t for every position."""
        applied = rotate(rhs, self.inverse)
        if self.correction is None:
            return applied
        return applied - chunks.weigh_past(rhs @ self.correction.mT, None) @ self.correction


@torch.no_grad()
def precondition(system: System) -> Preconditioner | None:
    """Factorise the chunks that remember enough of their start for it to pay.

    Args:
        system: the matrices.

    Returns:
        The preconditioner, zero where nothing was factorised; None if no chunk remembers enough. Where
        values cannot be seen, every chunk is factorised.

    Example:
        >>> one = torch.ones(2, 1, 1)
        >>> gone = System(one, one, between=one, since_start=torch.zeros(2, 1, 1))
        >>> precondition(gone) is None
        True
    """
    unused = _forgets_start(system)
    if traced(unused) or not unused.any():
        return _precondition_all(system)
    if unused.all():
        return None
    group, flat = unused.shape, unused.flatten()
    chosen = (~flat).nonzero().squeeze(-1)
    inverse, correction, failed = _precondition_all(select(flatten(system, group), chosen))

    def scatter(x: Tensor) -> Tensor:
        return x.new_zeros(len(flat), *x.shape[1:]).index_copy(0, chosen, x).unflatten(0, group)

    scattered = None if correction is None else scatter(correction)
    return Preconditioner(scatter(inverse), scattered, unused | scatter(failed))


def difference(system: System) -> Float[Tensor, "*group position key"] | None:
    """Return the diagonal A_t - B_t by which a preconditioner misses the matrices.

    Args:
        system: the matrices.

    Returns:
        The diagonals; None where the preconditioner is exact.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> system = System(one, one[:, :1], since_start=torch.tensor([[[1.0], [0.64]]]))
        >>> [round(x, 4) for x in difference(system).flatten().tolist()]
        [-0.25, 0.2]
    """
    kept = system.since_start
    if kept is None or system.ridge_decays or system.keys.shape[-2] == 1:
        return None
    return system.ridge - kept * ridge_inside(system)


def _forgets_start(system: System) -> Bool[Tensor, "*group"]:
    """Return whether a chunk keeps too little of its start for the start's factors to be useful."""
    if system.since_start is None:
        return torch.zeros(system.keys.shape[:-2], dtype=torch.bool, device=system.keys.device)
    return ~(system.since_start[..., -1, 0] >= math.exp(factors.MIN_LOG_DECAY))


def _precondition_all(system: System) -> Preconditioner:
    made = factorise(system)
    whitening, correction = made.whitening, made.correction
    inverse = whitening.square() if made.is_diagonal else whitening.mT @ whitening
    if correction is not None:
        correction = correction * whitening if made.is_diagonal else correction @ whitening
    return Preconditioner(inverse, correction, made.failed | _forgets_start(system))
