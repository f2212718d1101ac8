"""Gradient steps from a preconditioned input, all fitted to a model at once."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from numpy.polynomial import Polynomial
from torch import Tensor

from mesaopt.theory import Context

Scaling = Literal["sum", "mean", "norm"]
"""Divisor of the Gram matrix: none, the number of pairs, or its Frobenius norm."""


def terms(
    context: Context, degree: int, scaling: Scaling, ridge: float = 0.0
) -> Float[Tensor, "term batch time dim"]:
    """Give the predictions r G_t (r A_t)^k x_t, k = 0 ... degree, A_t = H_t + ridge I, r being its scale.

    Gradient descent, and every gradient step from an input preconditioned by a polynomial, is a linear
    combination of them with the same coefficients at every position.
    """
    if scaling == "sum":
        scale: float | Tensor = 1.0
    elif scaling == "mean":
        scale = 1 / context.num_pairs.clamp(min=1).to(context.queries.dtype)
    else:
        norm = context.frobenius_norm(ridge)
        scale = 1 / norm.where(norm > 0, 1.0)
    vectors = [context.queries]
    for _ in range(degree):
        product = context.gram_product(vectors[-1]) + ridge * vectors[-1]
        vectors.append(scale * product)
    return torch.stack([scale * context.cross_product(vector) for vector in vectors])


class PolynomialFit:
    """The mean squared distance of sum_k c_k terms_k from a model, a quadratic function of c.

    Its matrix is summed up once. Each family of coefficients is then fitted without the sequences.

    Args:
        unit: of the coefficients, so that c_k / unit^(k + 1) are of a size near 1.
    """

    def __init__(self, unit: float):
        self.unit = unit
        self._gram = torch.zeros((), dtype=torch.float64)
        self._cross = torch.zeros((), dtype=torch.float64)

    def products(
        self, terms: Float[Tensor, "term batch time dim"], target: Float[Tensor, "batch time dim"]
    ) -> tuple[Float[Tensor, "term term"], Float[Tensor, " term"]]:
        """Multiply the terms of some sequences with each other, and with the predictions of the model."""
        scaled = (terms.flatten(1).T * self._units(len(terms))).T
        return scaled @ scaled.T, scaled @ target.flatten()

    def add(self, gram: Float[Tensor, "term term"], cross: Float[Tensor, " term"]) -> None:
        """Add sequences, by their :meth:`products`."""
        self._gram, self._cross = self._gram + gram, self._cross + cross

    def coefficients(self, degree: int) -> Float[Tensor, " term"]:
        """Return the coefficients of the nearest polynomial of a degree."""
        size = degree + 1
        gram, cross = self._gram[:size, :size], self._cross[:size, None]
        best = torch.linalg.lstsq(gram, cross, driver="gelsd").solution[:, 0]
        return best * self._units(size)

    def step_size(self, steps: int) -> float:
        """Return the step size with which n gradient steps come nearest to the model.

        They are the polynomial with coefficients binom(n, k + 1) (-1)^k step^(k + 1). The distance is a
        polynomial in the step size too, and its minimum a root of the derivative.
        """
        descent = [
            Polynomial([0.0] * (k + 1) + [(-1) ** k * math.comb(steps, k + 1)])
            for k in range(steps)
        ]
        distance = Polynomial([0.0])
        for i, first in enumerate(descent):
            distance = distance - 2 * self._cross[i].item() * first
            for j, second in enumerate(descent):
                distance = distance + self._gram[i, j].item() * first * second
        roots = [complex(root) for root in distance.deriv().roots()]
        real = [root.real for root in roots if abs(root.imag) < 1e-6 * abs(root)]
        steps_tried = [_TINY, *(root for root in real if root > _TINY)]
        return self.unit * min(steps_tried, key=lambda step: float(distance(step)))

    def _units(self, size: int) -> Float[Tensor, " term"]:
        return self.unit ** torch.arange(1.0, size + 1, dtype=torch.float64)


_TINY = 1e-6  # in place of a step size of zero, in its unit
