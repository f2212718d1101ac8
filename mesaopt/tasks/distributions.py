"""The first state of an autoregressive process: how it is drawn, and its moments.

The theory of training needs moments of the first state x_1 up to the sixth. A distribution knows them by a
formula, by quadrature, or by averaging draws. Ready-made distributions are in
:mod:`mesaopt.tasks.named_distributions`.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesaopt.config import require_count
from mesaopt.errors import ConfigError

Sampler = Callable[[np.random.Generator, int, int], NDArray[Any]]
"""Called with a generator, the number of states and their dimension; returns states [count, dim]."""

HIGHEST_MOMENT = 6
"""The expected loss of one layer of linear attention is made of moments up to this order."""

_CHUNK = 2**16  # draws in one array


def check_positive(**numbers: float) -> None:
    """Check that arguments are greater than 0 and finite."""
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name}={value}: must be greater than 0 and finite")


class InitialStates(ABC):
    """A distribution of the initial state x_1.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> initial = initial_states("gaussian", scale=2.0)
        >>> initial.sample(np.random.default_rng(0), 4, 3).shape
        (4, 3)
        >>> float(initial.moment(np.array([2, 4, 0])))  # E x_1^2 x_2^4 = 2^2 * 3 * 2^4
        192.0
    """

    name: str
    """Its name in plots and messages."""

    @abstractmethod
    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[Any]:
        """Draw states.

        Args:
            random: NumPy generator.
            count: how many.
            dim: coordinates of each.

        Returns:
            [count, dim], float64 or complex128.
        """

    @abstractmethod
    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """Return the joint moments E prod_j x_j^{powers_j} conj(x_j)^{conjugate_powers_j}.

        Args:
            powers: exponents, integers of 0 or greater, [..., dim].
            conjugate_powers: exponents of the conjugates, the same shape; zero if not given.

        Returns:
            One moment for each row of exponents, [...].
        """


class RealStates(InitialStates):
    """A distribution of real states, for which x and conj(x) are the same.

    Example:
        >>> class Zero(RealStates):
        ...     name = "zero"
        ...
        ...     def sample(self, random, count, dim):
        ...         return np.zeros((count, dim))
        ...
        ...     def real_moment(self, powers):
        ...         return 1.0 * (powers == 0).all(-1)
        >>> float(Zero().moment(np.array([1, 0]), np.array([1, 0])))
        0.0
    """

    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """See :meth:`InitialStates.moment`."""
        powers = powers if conjugate_powers is None else powers + conjugate_powers
        return self.real_moment(powers)

    @abstractmethod
    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return E prod_j x_j^{powers_j}.

        Args:
            powers: exponents, integers of 0 or greater, [..., dim].

        Returns:
            One moment for each row of exponents, [...], float64.
        """


class IndependentCoordinates(RealStates):
    """Independent coordinates that all have the same distribution on the real line.

    Args:
        name: of the distribution.
        draw: called with a NumPy generator and a size; returns draws of this size.
        raw_moment: called with n; returns E x^n, which must be finite for n up to 6.

    Raises:
        ConfigError: a moment up to the sixth is not finite.

    Example:
        >>> def draw(random, size):
        ...     return random.laplace(size=size)
        >>> def moment(n):
        ...     return math.factorial(n) * (1 - n % 2)
        >>> initial = IndependentCoordinates("Laplace", draw, moment)
        >>> float(initial.moment(np.array([4, 0])))
        24.0
    """

    def __init__(
        self,
        name: str,
        draw: Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]],
        raw_moment: Callable[[int], float],
    ):
        self.name = name
        self._draw = draw
        self._raw_moment = functools.cache(raw_moment)  # a quadrature is slow
        for order in range(HIGHEST_MOMENT + 1):
            try:
                value = float(self._raw_moment(order))
            except OverflowError:
                value = math.inf
            if not math.isfinite(value):
                raise ConfigError(
                    f"initial states {name!r}: moment {order} is {value}: "
                    f"must be finite up to {HIGHEST_MOMENT}"
                )

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`InitialStates.sample`."""
        return self._draw(random, (count, dim))

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealStates.real_moment`."""
        table = [float(self._raw_moment(n)) for n in range(int(powers.max(initial=0)) + 1)]
        return np.array(table)[powers].prod(-1)


class SparseStates(RealStates):
    """One coordinate, picked evenly, is +scale or -scale with even odds; the others are zero.

    Args:
        scale: magnitude of the one that is not zero, > 0.

    Raises:
        ConfigError: the scale is not greater than 0 and finite.

    Source: Zheng et al., the sparse example of their section on the capability of one step.

    Example:
        >>> initial = SparseStates(2.0)
        >>> float(initial.moment(np.array([2, 0]))), float(initial.moment(np.array([2, 2])))
        (2.0, 0.0)
    """

    name = "sparse"

    def __init__(self, scale: float = 1.0):
        check_positive(scale=scale)
        self.scale = scale

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`InitialStates.sample`."""
        states = np.zeros((count, dim))
        place = random.integers(dim, size=count)
        states[np.arange(count), place] = self.scale * (2 * random.integers(2, size=count) - 1)
        return states

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealStates.real_moment`."""
        order, touched = powers.sum(-1), (powers > 0).sum(-1)
        one = np.where(order % 2 == 0, self.scale**order / powers.shape[-1], 0.0)
        return np.where(touched == 0, 1.0, np.where(touched == 1, one, 0.0))


class FiniteStates(RealStates):
    """A distribution over finitely many states.

    Args:
        name: of the distribution.
        points: the states, [point, dim].
        probabilities: of each, adding up to 1; even ones if not given.

    Raises:
        ConfigError: the points are no finite real numbers [point, dim], or the probabilities do not fit.

    Example:
        >>> initial = FiniteStates("two states", np.array([[1.0, 1.0], [-1.0, -1.0]]))
        >>> float(initial.moment(np.array([3, 3])))
        1.0
    """

    def __init__(
        self,
        name: str,
        points: NDArray[np.float64],
        probabilities: NDArray[np.float64] | None = None,
    ):
        self.name = name
        self.points = points
        if points.ndim != 2 or 0 in points.shape or not _are_real(points):
            given = f"initial states {name!r}: points of shape {points.shape}"
            raise ConfigError(f"{given}: must be finite real numbers [point, dim]")
        even = np.full(len(points), 1 / len(points))
        self.probabilities = even if probabilities is None else probabilities
        shape, total = self.probabilities.shape, float(self.probabilities.sum())
        if shape != (len(points),) or (self.probabilities < 0).any() or not abs(total - 1) <= 1e-9:
            raise ConfigError(
                f"initial states {name!r}: probabilities of shape {shape} with sum {total:g}: "
                f"must be {len(points)} numbers, 0 or greater, with sum 1"
            )

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`InitialStates.sample`."""
        self._check(dim)
        return self.points[random.choice(len(self.points), size=count, p=self.probabilities)]

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealStates.real_moment`."""
        self._check(powers.shape[-1])
        exponents, place = np.unique(
            powers.reshape(-1, powers.shape[-1]), axis=0, return_inverse=True
        )
        values = _monomials(self.points, exponents)  # [point, monomial]
        return (self.probabilities @ values)[place].reshape(powers.shape[:-1])

    def _check(self, dim: int) -> None:
        if dim != self.points.shape[1]:
            raise ConfigError(
                f"initial states {self.name!r}: dim={dim}: "
                f"must be {self.points.shape[1]}, as its states have"
            )


class SampledStates(InitialStates):
    """A distribution given by a sampler only; its moments are averages over draws.

    Args:
        sampler: called with a NumPy generator, a count and a dimension; returns states [count, dim], real
            or complex.
        name: of the distribution.
        num_samples: draws that a moment is averaged over, 1 or more.
        seed: of those draws, 0 or greater.

    Raises:
        ConfigError: num_samples or seed is out of range.

    Example:
        >>> def signs(random, count, dim):
        ...     return random.choice([-1.0, 1.0], (count, dim))
        >>> initial = SampledStates(signs)
        >>> float(initial.moment(np.array([2, 2, 2])))
        1.0
    """

    def __init__(
        self, sampler: Sampler, *, name: str = "own", num_samples: int = 2**20, seed: int = 0
    ):
        self.name = name
        require_count("num_samples", num_samples, smallest=1)
        require_count("seed", seed, smallest=0)
        self.num_samples = num_samples
        self.seed = seed
        self._sampler = sampler

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[Any]:
        """See :meth:`InitialStates.sample`.

        Raises:
            ConfigError: the sampler returns another shape, or something that is not finite.
        """
        states = np.asarray(self._sampler(random, count, dim))
        if states.shape != (count, dim):
            raise ConfigError(
                f"initial states {self.name!r}: the sampler returned shape {states.shape}: "
                f"must be {(count, dim)}"
            )
        if not np.isfinite(states).all():
            raise ConfigError(
                f"initial states {self.name!r}: the sampler returned a NaN or an infinity"
            )
        return states.astype(np.complex128 if np.iscomplexobj(states) else np.float64)

    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """See :meth:`InitialStates.moment`; the standard error falls with the root of `num_samples`.

        Raises:
            ConfigError: one draw dominates the sixth moment, which is then infinite or out of reach.
        """
        conjugate = np.zeros_like(powers) if conjugate_powers is None else conjugate_powers
        dim = powers.shape[-1]
        exponents = np.concatenate([powers, conjugate], axis=-1).reshape(-1, 2 * dim)
        monomials, place = np.unique(exponents, axis=0, return_inverse=True)
        total: Any = 0.0
        largest = sixth = 0.0
        random = np.random.default_rng(self.seed)
        for done in range(0, self.num_samples, _CHUNK):
            states = self.sample(random, min(_CHUNK, self.num_samples - done), dim)
            tail = (np.abs(states) ** HIGHEST_MOMENT).max(-1)
            largest, sixth = max(largest, tail.max()), sixth + tail.sum()
            both = np.concatenate([states, states.conj()], axis=-1)
            total = total + _monomials(both, monomials).sum(0)
        if largest > max(_DOMINANT, 10 / self.num_samples) * sixth:  # ten times an even share
            raise ConfigError(
                f"initial states {self.name!r}: one of {self.num_samples:,} draws makes up "
                f"{largest / sixth:.0%} of the sixth moment: it is infinite, or too heavy in the tails "
                "to be found by sampling; give a distribution with known moments"
            )
        return (total / self.num_samples)[place].reshape(powers.shape[:-1])


_DOMINANT = 0.05
"""Largest share of one draw in the sixth moment that is accepted. Of a million Gaussian
draws the largest has 0.001; of Student t draws with six degrees of freedom or fewer, 0.05 to 1."""


def _are_real(numbers: NDArray[Any]) -> bool:
    """Say whether all numbers are real and finite."""
    return not np.iscomplexobj(numbers) and bool(np.isfinite(numbers).all())


def _monomials(states: NDArray[Any], exponents: NDArray[np.int64]) -> NDArray[Any]:
    """Evaluate prod_j x_j^{p_j} for states [count, dim] and exponents [monomial, dim]."""
    table = states[..., None] ** np.arange(exponents.max(initial=0) + 1)  # [N,D,power]
    out = np.ones((len(states), len(exponents)), dtype=states.dtype)
    for column in range(exponents.shape[-1]):
        out *= table[:, column, exponents[:, column]]
    return out
