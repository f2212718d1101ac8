"""The mesa operator's linear systems, chunk by chunk.

Once the state at every chunk's start is known, all chunks are independent. Position t of a chunk asks
for the solution of A_t x_t = b_t, where with f_t the decay since the start and D_ts the decay from s,

    A_t = f_t start + sum_{s <= t} D_ts beta_s k_s k_s^T + ridge_t.

The ridge at t is `ridge` itself, or f_t ridge where it decays with the state. Nothing here forms A_t,
except for :meth:`System.matrices`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import chunks

Parts = TypeVar("Parts", bound=tuple)  # a System, Factors or Preconditioner


class System(NamedTuple):
    """The matrices A_t of every position, see the module's docstring.

    Example:
        >>> one = torch.ones(1, 3, 1)
        >>> System(keys=one, ridge=one[:, :1]).multiply(one).flatten().tolist()
        [2.0, 3.0, 4.0]
    """

    keys: Float[Tensor, "*group position key"]
    ridge: Float[Tensor, "*ridge_group 1 key"]
    beta: Float[Tensor, "*group position 1"] | None = None
    """Write strengths; None for 1."""
    start: Float[Tensor, "*group key key"] | None = None
    """State at the chunk's start, without the ridge; None where nothing came before."""
    between: Float[Tensor, "*group position source"] | None = None
    """D_ts; None where nothing is forgotten."""
    since_start: Float[Tensor, "*group position 1"] | None = None
    """f_t; None where nothing is forgotten."""
    ridge_decays: bool = False
    """Whether the ridge decays inside the chunk; without effect where nothing is forgotten."""

    def multiply(
        self, x: Float[Tensor, "*group position key"]
    ) -> Float[Tensor, "*group position key"]:
        """Return A_t x_t for every position, differentiable in the system and in x."""
        keys, beta, start, since_start = self.keys, self.beta, self.start, self.since_start
        scores = chunks.weigh_past(x @ keys.mT, self.between)
        local = scores @ (keys if beta is None else keys * beta)
        if since_start is None:
            return local + x * self.ridge + (0 if start is None else x @ start)
        kept = x * since_start
        local = local + (kept if self.ridge_decays else x) * self.ridge
        return local if start is None else local + kept @ start

    def frobenius_norm(self) -> Float[Tensor, "*group position 1"]:
        """Bound every position's largest eigenvalue by the greatest ridge plus the Frobenius norm.

        The norm is that of f_t start + sum_s D_ts beta_s k_s k_s^T, from inner products alone; the least
        ridge is added to it in quadrature, which keeps the square root differentiable at 0.
        """
        unit, since_start = self.scale(), self.since_start
        keys, start = self.keys / unit, None if self.start is None else self.start / unit.square()
        products = (keys @ keys.mT).square()
        weights = chunks.weigh_past(torch.ones_like(products), self.between)  # [*G,C,C]
        if self.beta is not None:
            weights = weights * self.beta.mT
        squared = ((weights @ products) * weights).sum(-1, keepdim=True)
        if start is not None:
            kept = torch.ones_like(squared) if since_start is None else since_start
            overlap = ((keys @ start) * keys).sum(-1, keepdim=True)
            squared = squared + 2 * kept * (weights @ overlap)
            total = start.square().sum((-2, -1)).unsqueeze(-1).unsqueeze(-1)
            squared = squared + kept.square() * total
        decay = since_start if self.ridge_decays and since_start is not None else 1.0
        least, greatest = (
            bound / unit.square() * decay
            for bound in (self.ridge.amin(-1, keepdim=True), self.ridge.amax(-1, keepdim=True))
        )
        # The root has no slope at 0, where squares of a ridge that decays may end.
        inner = squared.clamp(min=0.0) + least.square()
        floor = least_share(inner.dtype) ** 2
        return (greatest + inner.clamp(min=floor).sqrt()) * unit.square()

    def scale(self) -> Float[Tensor, "*group 1 1"]:
        """Return a power of two near the root of every chunk's largest number.

        Keys divided by it can be squared twice.
        """
        largest_key = self.keys.detach().abs().amax((-2, -1), keepdim=True)
        largest = torch.maximum(
            largest_key, self.ridge.detach().amax((-2, -1), keepdim=True).sqrt()
        )
        if self.start is not None:
            diagonal = self.start.detach().diagonal(dim1=-2, dim2=-1).clamp(min=0.0)
            largest = torch.maximum(largest, diagonal.amax(-1)[..., None, None].sqrt())
        return power_of_two(largest)

    def matrices(self) -> Float[Tensor, "*group position key key"]:
        """Form A_t for every position: for chunks of one position, where nothing is saved otherwise."""
        keys, since_start = self.keys, self.since_start
        weighted = keys if self.beta is None else keys * self.beta
        weights = chunks.weigh_past(torch.ones_like(keys @ keys.mT), self.between)  # [*G,C,C]
        outer = keys.unsqueeze(-1) * weighted.unsqueeze(-2)  # [*G,C,K,K]
        formed = (weights @ outer.flatten(-2)).unflatten(-1, outer.shape[-2:])
        kept = torch.ones_like(keys[..., :1]) if since_start is None else since_start
        decay = kept if self.ridge_decays else torch.ones_like(kept)
        formed = formed + torch.diag_embed(self.ridge * decay)
        if self.start is None:
            return formed
        return formed + kept.unsqueeze(-1) * self.start.unsqueeze(-3)

    @torch.no_grad()
    def relative_residual(
        self,
        solution: Float[Tensor, "*group position key"],
        rhs: Float[Tensor, "*group position key"],
    ) -> Float[Tensor, "*group"]:
        """Measure |b_t - A_t x_t| / |b_t|, the worst of every chunk."""
        unit = power_of_two(rhs)
        scale = (rhs / unit).norm(dim=-1)
        distance = ((rhs - self.multiply(solution)) / unit).norm(dim=-1)
        return (distance / torch.where(scale == 0, 1.0, scale)).amax(-1)

    def detach(self) -> "System":
        """Return the system without its history."""
        return _map(Tensor.detach, self)


def least_share(dtype: torch.dtype) -> float:
    """Return the least share of a chunk's scale that a bound of eigenvalues may be.

    Args:
        dtype: type of the numbers.

    Returns:
        A number whose inverse has a finite cube.

    Example:
        >>> least_share(torch.float64) < 1e-76
        True
    """
    return float(torch.finfo(dtype).tiny) ** 0.25


def power_of_two(x: Float[Tensor, "*group size"]) -> Float[Tensor, "*group 1"]:
    """Return the power of two below the largest entry: to divide by it changes no digit.

    The squares of what is left neither vanish nor overflow, so that norms are right at any scale.

    Args:
        x: one vector per position.

    Returns:
        One number per position; 1 where there is nothing but zeros, or an entry is not finite.

    Example:
        >>> power_of_two(torch.tensor([[3.0, -5.0], [0.0, 0.0]])).flatten().tolist()
        [4.0, 1.0]
    """
    peak = x.detach().abs().amax(-1, keepdim=True)
    usable = (peak > 0) & peak.isfinite()
    return torch.where(usable, torch.where(usable, peak, 1.0).log2().floor().exp2(), 1.0)


def flatten(tensors: Parts, group: tuple[int, ...]) -> Parts:
    """Give every tensor of a system or of factors one group dimension, all of the same length.

    Args:
        tensors: a system or factors.
        group: the group dimensions of the system's positions.

    Returns:
        The same with [group, ...] tensors.

    Example:
        >>> one = torch.ones(2, 3, 1, 1)
        >>> flatten(System(one, one[:1, :1]), (2, 3)).ridge.shape
        torch.Size([6, 1, 1])
    """
    count = len(group)
    return _map(lambda x: x.expand(*group, *x.shape[count:]).flatten(0, count - 1), tensors)


def select(tensors: Parts, index: Int[Tensor, "chosen"] | slice) -> Parts:
    """Copy, or of a slice view, some chunks of a flat system or of flat factors.

    Args:
        tensors: from :func:`flatten`.
        index: numbers of the chunks, or a slice of them.

    Returns:
        The system or the factors of these chunks.

    Example:
        >>> one = torch.ones(3, 1, 1)
        >>> select(System(one, one), torch.tensor([2])).keys.shape
        torch.Size([1, 1, 1])
    """
    if isinstance(index, slice):
        return _map(lambda x: x[index], tensors)
    return _map(lambda x: x.index_select(0, index), tensors)


def _map(function: Callable[[Tensor], Tensor], tensors: Parts) -> Parts:
    return type(tensors)(*(function(x) if isinstance(x, Tensor) else x for x in tensors))
