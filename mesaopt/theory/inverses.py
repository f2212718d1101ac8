"""Approximate inverses of the regularised Gram matrix, made of products with it alone."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.polynomial import Polynomial

from mesaopt.config import require_count
from mesaopt.errors import ConfigError

Vector = TypeVar("Vector", bound=Any)  # whatever can be added and multiplied by a number
Form = Literal["equation_9", "richardson"]


@dataclass(frozen=True, kw_only=True)
class ApproximateInverse:
    """A few steps towards x = (H + ridge I)^{-1} s, the same for every sequence and position.

    With A = scale (H + ridge I), from x = r = s in the form of "equation_9", alpha and beta of each step,

        r <- (I - alpha A) r,    x <- x + r + beta (x - its value before),

    and from x = 0 in the form of "richardson", the second-order Richardson iteration,

        x <- x + alpha (s - A x) + beta (x - its value before);

    the result is scale x either way. All steps 1 and no momentum make the first form the Neumann series
    sum_k (I - A)^k.

    A number as scale makes the whole a fixed polynomial in H, which linear attention layers can compute:
    :meth:`coefficients`. The scale "frobenius" is 1 / |H_t + ridge I|_F, another one for every sequence and
    position: the eigenvalues of A are then at most 1, but no stack of linear attention layers with
    fixed weights computes it. The authors' baseline, called Proposition 2 in their figures, does this.

    Raises:
        ConfigError: a setting is out of range.

    Source: von Oswald et al., equation 9. As printed, it adds (I - alpha A) x where the next term of the
    series is meant; the first form here is that of the authors' code.

    Example:
        >>> series = ApproximateInverse(step_sizes=(1.0, 1.0), momenta=(0.0, 0.0))
        >>> series.apply(lambda x: 0.5 * x, 1.0)  # 1 + 1/2 + 1/4, on the way to 1 / 0.5
        1.75
    """

    step_sizes: tuple[float, ...]
    """Alpha of every step."""
    momenta: tuple[float, ...]
    """Beta of every step; the first has nothing to act on."""
    ridge: float = 0.0
    """Added to the diagonal of the Gram matrix."""
    scale: float | Literal["frobenius"] = 1.0
    """Factor of the matrix."""
    form: Form = "equation_9"
    """Recursion of the steps."""

    def __post_init__(self) -> None:
        if not 0 < len(self.step_sizes) == len(self.momenta):
            given = f"step_sizes has {len(self.step_sizes)} and momenta {len(self.momenta)} entries"
            raise ConfigError(f"{given}: must be as many, 1 or more")
        if not all(map(math.isfinite, (*self.step_sizes, *self.momenta))):
            raise ConfigError("step_sizes, momenta: must be finite")
        if not 0 <= self.ridge < math.inf:
            raise ConfigError(f"ridge={self.ridge}: must be 0 or greater, and finite")
        if self.scale != "frobenius" and not (
            isinstance(self.scale, float | int) and 0 < self.scale < math.inf
        ):
            raise ConfigError(f"scale={self.scale!r}: must be greater than 0, or 'frobenius'")
        if self.form not in ("equation_9", "richardson"):
            raise ConfigError(f"form={self.form!r}: must be 'equation_9' or 'richardson'")

    @property
    def degree(self) -> int:
        """Degree of the polynomial in A: products with A that are needed."""
        return len(self.step_sizes) - (self.form == "richardson")

    def apply(self, product: Callable[[Vector], Vector], vector: Vector) -> Vector:
        """Run the steps on a vector, without ridge and scale.

        Args:
            product: multiplies by A.
            vector: s; a number, array or tensor.

        Returns:
            The last x, not yet multiplied by the scale.
        """
        return run_steps(self.form, self.step_sizes, self.momenta, product, vector)

    def coefficients(self) -> tuple[float, ...]:
        """Return the polynomial in H that this is, where the scale is a number.

        Returns:
            Coefficients of H^0, H^1, ..., :attr:`degree` + 1 of them, for
            :func:`mesaopt.theory.polynomial_prediction` and :func:`mesaopt.theory.proposition_2`.

        Raises:
            ConfigError: the scale is "frobenius", which makes it no fixed polynomial.

        Example:
            >>> neumann_inverse(1).coefficients()  # I + (I - H)
            (2.0, -1.0)
        """
        if isinstance(self.scale, str):
            given = f"scale={self.scale!r}"
            raise ConfigError(
                f"{given}: must be a number, for a polynomial with fixed coefficients"
            )
        matrix = self.scale * Polynomial([self.ridge, 1.0])
        result = self.scale * self.apply(lambda x: matrix * x, Polynomial([1.0]))
        padded = np.zeros(self.degree + 1)  # NumPy drops highest coefficients of zero
        padded[: len(result.coef)] = result.coef
        return tuple(padded.tolist())


def run_steps(
    form: Form,
    step_sizes: Sequence[Any],
    momenta: Sequence[Any],
    product: Callable[[Vector], Vector],
    vector: Vector,
) -> Vector:
    """Run the recursion of :class:`ApproximateInverse`, with step sizes of any kind of number.

    Args:
        form: which recursion.
        step_sizes: alpha of every step; numbers, or tensors to differentiate by.
        momenta: beta of every step.
        product: multiplies by A.
        vector: s.

    Returns:
        The last x.

    Example:
        >>> run_steps("richardson", [1.0, 1.0], [0.0, 0.0], lambda x: 0.5 * x, 1.0)  # 1 + 1/2
        1.5
    """
    steps = zip(step_sizes, momenta, strict=True)
    if form == "equation_9":
        term = x = before = vector
        for alpha, beta in steps:
            term = term - alpha * product(term)
            x, before = x + term + beta * (x - before), x
        return x
    alpha, _ = next(steps)  # from zero, where a product with A would be wasted
    x, before = alpha * vector, 0.0 * vector
    for alpha, beta in steps:
        x, before = x + alpha * (vector - product(x)) + beta * (x - before), x
    return x


def neumann_inverse(
    num_steps: int, *, ridge: float = 0.0, scale: float | Literal["frobenius"] = 1.0
) -> ApproximateInverse:
    """Return the truncated Neumann series sum_{k <= num_steps} (I - A)^k, times the scale.

    It converges where all eigenvalues of A = scale (H + ridge I) are below 2.

    Args:
        num_steps: 1 or more.
        ridge: 0 or greater.
        scale: greater than 0, or "frobenius".

    Returns:
        The series.

    Raises:
        ConfigError: a setting is out of range.

    Source: von Oswald et al., text before equation 9.

    Example:
        >>> neumann_inverse(2).step_sizes
        (1.0, 1.0)
    """
    require_count("num_steps", num_steps, smallest=1)
    return ApproximateInverse(
        step_sizes=(1.0,) * num_steps, momenta=(0.0,) * num_steps, ridge=ridge, scale=scale
    )


def richardson_inverse(
    num_steps: int,
    *,
    step_size: float,
    momentum: float = 0.0,
    ridge: float = 0.0,
    scale: float | Literal["frobenius"] = 1.0,
) -> ApproximateInverse:
    """Return Richardson's iteration with one step size, and one momentum if given, from zero.

    Without momentum, scale and ridge this is gradient descent of as many steps:
    :func:`mesaopt.theory.gradient_descent` takes the same path to the prediction.

    Args:
        num_steps: 1 or more.
        step_size: greater than 0.
        momentum: of all steps but the first.
        ridge: 0 or greater.
        scale: greater than 0, or "frobenius".

    Returns:
        The iteration.

    Raises:
        ConfigError: a setting is out of range.

    Example:
        >>> richardson_inverse(2, step_size=0.5).coefficients()  # 0.5 + 0.5 (1 - 0.5 H)
        (1.0, -0.25)
    """
    require_count("num_steps", num_steps, smallest=1)
    if not 0 < step_size < math.inf:
        raise ConfigError(f"step_size={step_size}: must be greater than 0, and finite")
    return ApproximateInverse(
        step_sizes=(step_size,) * num_steps,
        momenta=(momentum,) * num_steps,
        ridge=ridge,
        scale=scale,
        form="richardson",
    )


def chebyshev_inverse(
    num_steps: int,
    *,
    smallest: float,
    largest: float,
    ridge: float = 0.0,
    scale: float | Literal["frobenius"] = 1.0,
) -> ApproximateInverse:
    """Return the Chebyshev iteration: the best step sizes for eigenvalues of A in a given interval.

    No iteration of as many steps leaves a smaller residual 1 - z p(z) on [smallest, largest], which is
    1 / T_n((largest + smallest) / (largest - smallest)) at most, T_n being the Chebyshev polynomial.

    Args:
        num_steps: 1 or more.
        smallest: lower end of the interval, greater than 0.
        largest: upper end, greater than smallest.
        ridge: 0 or greater.
        scale: greater than 0, or "frobenius".

    Returns:
        The iteration, of the form "richardson".

    Raises:
        ConfigError: a setting is out of range.

    Source: Saad, "Iterative Methods for Sparse Linear Systems", second edition, algorithm 12.1. Von Oswald
    et al. name their learned steps after it.

    Example:
        >>> chebyshev_inverse(1, smallest=1.0, largest=3.0).step_sizes
        (0.5,)
    """
    require_count("num_steps", num_steps, smallest=1)
    if not 0 < smallest < largest < math.inf:
        given = f"smallest={smallest}, largest={largest}"
        raise ConfigError(f"{given}: must be 0 < smallest < largest, and finite")
    centre, radius = (largest + smallest) / 2, (largest - smallest) / 2
    ratios = [radius / centre]
    for _ in range(num_steps - 1):
        ratios.append(1 / (2 * centre / radius - ratios[-1]))
    later = [(2 * ratio / radius, ratio * before) for before, ratio in itertools.pairwise(ratios)]
    steps, momenta = zip((1 / centre, 0.0), *later, strict=True)
    return ApproximateInverse(
        step_sizes=steps, momenta=momenta, ridge=ridge, scale=scale, form="richardson"
    )
