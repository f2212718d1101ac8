"""Conjugate gradients from zero, in few passes over memory.

Where a key has some tens of channels, a product costs as much as two or three passes over the vectors of
all positions. So what is the same at every step is computed once, and each step makes as few passes as it
can. The caller hands over as many chunks as the caches hold.
"""

from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa.preconditioner import Preconditioner, difference
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
        keys, ridge, beta, *rest = system
        return cls(keys, keys if beta is None else keys * beta, ridge, *rest)

    def multiply(
        self, x: Float[Tensor, "group position key"]
    ) -> Float[Tensor, "group position key"]:
        """Return A_t x_t for every position."""
        kept = x if self.since_start is None else x * self.since_start
        product = (kept if self.ridge_decays else x) * self.ridge
        scores = chunks.weigh_past(x @ self.keys.mT, self.between)
        product = torch.baddbmm(product, scores, self.weighted)
        return product if self.start is None else torch.baddbmm(product, kept, self.start)

    def precondition(self, residual: Tensor) -> Tensor:
        """Divide by the ridge."""
        return residual / self.ridge

    def advance(self, direction: Tensor, **_: Tensor | None) -> tuple[Tensor, None]:
        """Return A_t d_t for the new direction d."""
        return self.multiply(direction), None

    def finish(self, iterate: Tensor) -> Tensor:
        """Return the solution."""
        return iterate


class Preconditioned(NamedTuple):
    """The matrices A_t / f_t of flat chunks, next to those of their preconditioner.

    With the preconditioner's B, A_t = B_t + f_t diagonal. Divided by f_t, both need no factor in a step.

    Example:
        >>> from mesaopt.ops.mesa.preconditioner import precondition
        >>> one = torch.ones(1, 1, 1)
        >>> system = System(one, one)
        >>> round(Preconditioned.of(system, precondition(system)).precondition(one).item(), 4)
        0.5
    """

    inverse: Float[Tensor, "group rows key"]
    correction: Float[Tensor, "group position key"] | None
    unused: Bool[Tensor, " group"]
    """See :class:`Preconditioner`, as for the two before."""
    diagonal: Float[Tensor, "group position key"] | None
    decay: Float[Tensor, "group position 1"] | None
    """f_t; None for 1."""

    @classmethod
    def of(cls, system: System, preconditioner: Preconditioner) -> "Preconditioned":
        """Prepare the steps with a preconditioner of the same flat system."""
        decay = None if preconditioner.correction is None else system.since_start
        diagonal = difference(system)
        if diagonal is not None and decay is not None:
            diagonal = diagonal / decay
        return cls(*preconditioner, diagonal, decay)

    def precondition(self, residual: Tensor) -> Tensor:
        """Return (B_t / f_t)^{-1} r_t."""
        return Preconditioner(*self[:3]).apply(residual)

    def advance(
        self, direction: Tensor, *, residual: Tensor, image: Tensor | None, ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return A_t d_t / f_t and its share B_t d_t / f_t, whose new part is the residual itself."""
        image = residual if image is None else torch.addcmul(residual, image, ratio)
        if self.diagonal is None:
            return image, image
        return torch.addcmul(image, self.diagonal, direction), image

    def finish(self, iterate: Tensor) -> Tensor:
        """Return the solution for A_t."""
        return iterate if self.decay is None else iterate / self.decay


@torch.no_grad()
def descend(
    matrices: Matrices | Preconditioned,
    residual: Float[Tensor, "group position key"],
    rtol: float,
    budget: Int[Tensor, " group"],
) -> tuple[Float[Tensor, "group position key"], Int[Tensor, " group"]]:
    """Iterate from zero until every chunk's recursive residual is small or its budget is used up.

    With a preconditioner B, steps carry B times the direction, and A adds a diagonal to it: the
    preconditioner's own products are then the only ones. The share that rounding takes from B B^{-1} = 1
    shows in the true residual, which the caller measures.

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
    direction = image = weight_before = None
    iterate = solution
    for step in count():
        done = ~(worst_norm(residual) > rtol) | (budget <= step)
        if done.any():
            ended = running[done]
            steps[ended], solution[ended] = step, matrices.finish(iterate)[done]
            if done.all():
                return solution, steps
            rest = (~done).nonzero().squeeze(-1)
            matrices = select(matrices, rest)
            running, budget, residual, iterate, direction, image, weight_before = (
                None if x is None else x.index_select(0, rest)
                for x in (running, budget, residual, iterate, direction, image, weight_before)
            )
        steepest = matrices.precondition(residual)
        weight = _dot(residual, steepest)
        ratio = None if weight_before is None else _ratio(weight, weight_before)
        direction = steepest if ratio is None else torch.addcmul(steepest, direction, ratio)
        product, image = matrices.advance(direction, residual=residual, image=image, ratio=ratio)
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
