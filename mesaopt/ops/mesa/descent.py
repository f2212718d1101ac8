"""Conjugate gradients from zero, in few passes over memory.

Where a key has some tens of channels, a product costs as much as two or three passes over the vectors of
all positions. So each step makes as few passes as it can, and takes as many chunks as the caches hold.
"""

from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa.system import System, select


class Matrices(NamedTuple):
    """The matrices A_t of flat chunks, for products without gradients.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> Matrices.of(System(one, one)).multiply(one).item()
        2.0
    """

    keys: Float[Tensor, "group position key"]
    weighted: Float[Tensor, "group position key"]
    """Keys times their write strengths."""
    ridge: Float[Tensor, "group 1 key"]
    start: Float[Tensor, "group key key"] | None
    between: Float[Tensor, "group position source"] | None
    since_start: Float[Tensor, "group position 1"] | None
    ridge_decays: bool

    @classmethod
    def of(cls, system: System) -> "Matrices":
        """Prepare the products with a flat system."""
        keys, ridge, beta, start, between, since_start, ridge_decays = system
        weighted = keys if beta is None else keys * beta
        return cls(keys, weighted, ridge, start, between, since_start, ridge_decays)

    def multiply(
        self, x: Float[Tensor, "group position key"]
    ) -> Float[Tensor, "group position key"]:
        """Return A_t x_t for every position."""
        kept = x if self.since_start is None else x * self.since_start
        product = (kept if self.ridge_decays else x) * self.ridge
        return self._add(product, x, kept, 1)

    def subtract_from(
        self, rhs: Float[Tensor, "group position key"], x: Float[Tensor, "group position key"]
    ) -> Float[Tensor, "group position key"]:
        """Return b_t - A_t x_t for every position."""
        kept = x if self.since_start is None else x * self.since_start
        rest = torch.addcmul(rhs, kept if self.ridge_decays else x, self.ridge, value=-1)
        return self._add(rest, x, kept, -1)

    def _add(self, to: Tensor, x: Tensor, kept: Tensor, sign: int) -> Tensor:
        """Add the products without the ridge, or subtract them."""
        scores = chunks.weigh_past(x @ self.keys.mT, self.between)
        to = torch.baddbmm(to, scores, self.weighted, alpha=sign)
        return to if self.start is None else torch.baddbmm(to, kept, self.start, alpha=sign)


@torch.no_grad()
def descend(
    matrices: Matrices,
    residual: Float[Tensor, "group position key"],
    rtol: float,
    budget: Int[Tensor, " group"],
) -> tuple[Float[Tensor, "group position key"], Int[Tensor, " group"]]:
    """Iterate from zero until every chunk's recursive residual is small or its budget is used up.

    The only preconditioner is the ridge.

    Args:
        matrices: of the chunks.
        residual: one right-hand side per position.
        rtol: norm of a residual that is small enough.
        budget: most steps of every chunk, 0 or more.

    Returns:
        The solutions, and how many steps every chunk took.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> solution, steps = descend(Matrices.of(System(one, one)), one, 1e-6, torch.tensor([9]))
        >>> solution.item(), steps.item()
        (0.5, 1)
    """
    solution, steps = torch.zeros_like(residual), torch.zeros_like(budget)
    running = torch.arange(len(residual), device=residual.device)  # chunks that go on
    iterate, direction = solution, torch.zeros_like(residual)
    weight_before = torch.ones_like(residual[..., :1])
    for step in count():
        done = ~(worst_norm(residual) > rtol) | (budget <= step)
        if done.any():
            ended = running[done]
            steps[ended], solution[ended] = step, iterate[done]
            if done.all():
                return solution, steps
            rest = (~done).nonzero().squeeze(-1)
            matrices = select(matrices, rest)
            running, budget, residual, iterate, direction, weight_before = (
                x.index_select(0, rest)
                for x in (running, budget, residual, iterate, direction, weight_before)
            )
        steepest = residual / matrices.ridge
        weight = _dot(residual, steepest)
        direction = torch.addcmul(steepest, direction, _ratio(weight, weight_before))
        product = matrices.multiply(direction)
        length = _ratio(weight, _dot(direction, product))
        iterate = torch.addcmul(iterate, direction, length)
        residual = torch.addcmul(residual, product, length, value=-1)
        weight_before = weight
    raise AssertionError  # count() has no end


def worst_norm(x: Float[Tensor, "group position key"]) -> Float[Tensor, " group"]:
    """Return the largest norm of a chunk's vectors.

    Args:
        x: one vector per position.

    Returns:
        One number per chunk.

    Example:
        >>> worst_norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])).item()
        5.0
    """
    return x.norm(dim=-1).amax(-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, or 0 where a position is already solved and the denominator vanishes."""
    return numerator / denominator.masked_fill(denominator == 0, torch.inf)
