"""An approximate inverse for a static ridge under forgetting, from the chunk's factors.

The factors of :mod:`mesaopt.ops.mesa.factors` are made with the ridge L = rho ridge, whose decay f_t rho is
1 in the middle of the chunk. With k_t = 1 / (f_t rho) they give P_t, and

    P_t = L^1/2 (A_t / f_t - (k_t - 1) L)^-1 L^1/2,
    A_t^-1 = L^-1/2 P_t (1 + (k_t - 1) P_t)^-1 L^-1/2 / f_t.

The eigenvalues of P_t lie between 0 and 1 and k_t is known. So the inverse in the middle is a series of
Chebyshev polynomials of P_t that is known beforehand, and so is how many terms reach a tolerance: unlike
conjugate gradients, it takes no inner products. Chunks that forget most of their start are not factorised.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa import factors
from mesaopt.ops.mesa.factors import factorise, growth_inside, ridge_inside, rotate
from mesaopt.ops.mesa.system import System, flatten, select
from mesaopt.ops.validation import traced

# Bounds of residuals over the residuals that are found; a chunk that misses its tolerance is corrected.
_PESSIMISM = 2.0


class Preconditioner(NamedTuple):
    """P_t of every position, in products."""

    inverse: Float[Tensor, "*group rows key"]
    """L^1/2 R^T R L^1/2, or its diagonal as one row where it is diagonal."""
    correction: Float[Tensor, "*group position key"] | None
    """Y R L^1/2; None where the chunk's one position is already part of R."""
    unused: Bool[Tensor, "*group"]
    """Chunks without: those that forget their start, and those whose factors failed."""


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


@torch.no_grad()
def terms_needed(
    system: System, preconditioner: Preconditioner, rtol: float
) -> Int[Tensor, " group"]:
    """Return how many terms of :class:`Series` reach a tolerance, with a residual measured through L^1/2.

    Args:
        system: the matrices of flat chunks.
        preconditioner: of the same chunks.
        rtol: relative residual.

    Returns:
        1 or more for every chunk; 0 where the preconditioner is unused.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> system = System(one, one[:, :1], between=one, since_start=torch.tensor([[[1.0], [0.64]]]))
        >>> terms_needed(system, precondition(system), rtol=1e-4).item()
        4
    """
    grown = growth_inside(system)
    if grown is None or preconditioner.correction is None:
        return (~preconditioner.unused).long()
    root = grown.flatten().sqrt()  # the largest k_t^1/2, and the inverse of the least
    return _count_terms((root - 1) / (root + 1), rtol).masked_fill(preconditioner.unused, 0)


def _count_terms(ratio: Tensor, rtol: float) -> Tensor:
    """Return the least number of terms, from the greatest h: they leave 2 k^1/2 h^terms / (1 - h)."""
    left = 2 * (1 + ratio) / (1 - ratio).square()
    return ((_PESSIMISM * rtol / left).log() / ratio.log()).ceil().clamp(min=1).long()


class Series(NamedTuple):
    """Chebyshev series of the inverses of flat chunks.

    With h = (1 - k^1/2) / (1 + k^1/2) and the Chebyshev polynomials T_i,
    1 / (1 + (k - 1) s) = (1 + 2 sum_i h^i T_i(2 s - 1)) / k^1/2.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, one)
        >>> round(Series.of(system, precondition(system)).apply(one, terms=1).item(), 4)
        0.5
    """

    inverse: Float[Tensor, "group rows key"]
    correction: Float[Tensor, "group position key"] | None
    """As in :class:`Preconditioner`."""
    inverse_root: Float[Tensor, "group 1 key"]
    """L^-1/2."""
    ratio: Float[Tensor, "group position 1"]
    """h."""
    scale: Float[Tensor, "group position 1"]
    """1 / (f_t k_t^1/2)."""

    @classmethod
    def of(cls, system: System, preconditioner: Preconditioner) -> "Series":
        """Prepare the series.

        Args:
            system: the matrices of flat chunks.
            preconditioner: of the same chunks, used in all of them.

        Returns:
            The series of each.
        """
        inverse, correction, _ = preconditioner
        one = torch.ones_like(system.keys[..., :1])
        grown, decay = (
            (None, None) if correction is None else (growth_inside(system), system.since_start)
        )
        decay = one if decay is None else decay
        root = one if grown is None else (decay * grown).rsqrt()
        inverse_root = (system.ridge if correction is None else ridge_inside(system)).rsqrt()
        return cls(inverse, correction, inverse_root, (1 - root) / (1 + root), 1 / (decay * root))

    def terms_needed(self, rtol: float) -> int:
        """Return :func:`terms_needed` of all of the chunks."""
        return int(_count_terms(self.ratio.abs().amax(), rtol))

    def apply(
        self, rhs: Float[Tensor, "group position key"], terms: int
    ) -> Float[Tensor, "group position key"]:
        """Approximate A_t^-1 b_t.

        Args:
            rhs: one right-hand side per position.
            terms: of the series, 1 or more; each takes one product with P.

        Returns:
            The approximate solutions.
        """
        weights = self._weights(terms)
        power = self._multiply(rhs * self.inverse_root)
        total = power * weights[0]
        for weight in weights[1:]:
            power = self._multiply(power)
            total = torch.addcmul(total, power, weight)
        return total * self.inverse_root

    def _multiply(self, x: Tensor) -> Tensor:
        """Return P x_t."""
        product = rotate(x, self.inverse)
        if self.correction is None:
            return product
        scores = chunks.weigh_past(x @ self.correction.mT, None)
        return torch.baddbmm(product, scores, self.correction, alpha=-1)

    def _weights(self, terms: int) -> tuple[Tensor, ...]:
        """Return the weight of every power of P."""
        polynomials = torch.tensor(_series(terms), dtype=self.ratio.dtype, device=self.ratio.device)
        powers = [self.scale]
        for _ in range(1, terms):
            powers.append(powers[-1] * self.ratio)
        return (torch.cat(powers, -1) @ polynomials).split(1, -1)


@lru_cache
def _series(terms: int) -> list[list[float]]:
    """Return the coefficients of T_0(2 s - 1), 2 T_1(2 s - 1), 2 T_2(2 s - 1) and so on, one row each."""
    rows = [[1], [-1, 2]]
    for _ in range(2, terms):
        last, before = rows[-1], [*rows[-2], 0, 0]
        doubled = [4 * x for x in (0, *last)]  # T_{i+1}(y) = 2 y T_i(y) - T_{i-1}(y), y = 2 s - 1
        minus = [2 * x for x in (*last, 0)]
        rows.append([x - y - z for x, y, z in zip(doubled, minus, before, strict=True)])
    scaled = [[float(x if i == 0 else 2 * x) for x in row] for i, row in enumerate(rows[:terms])]
    return [row + [0.0] * (terms - len(row)) for row in scaled]


def _forgets_start(system: System) -> Bool[Tensor, "*group"]:
    """Return whether a chunk keeps too little of its start for the start's factors to be useful."""
    if system.since_start is None:
        return torch.zeros(system.keys.shape[:-2], dtype=torch.bool, device=system.keys.device)
    return ~(system.since_start[..., -1, 0] >= math.exp(factors.MIN_LOG_DECAY))


def _precondition_all(system: System) -> Preconditioner:
    made = factorise(system)
    whitening, correction = made.whitening, made.correction
    root = (system.ridge if correction is None else ridge_inside(system)).sqrt()
    if correction is not None:
        correction = (
            correction * (whitening * root) if made.is_diagonal else correction @ (whitening * root)
        )
    whitening = whitening * root
    inverse = whitening.square() if made.is_diagonal else whitening.mT @ whitening
    return Preconditioner(inverse, correction, made.failed | _forgets_start(system))
