"""Laws of the first state of an autoregressive process: how to draw it, and its moments.

Training theory needs moments of the first state x_1 up to the sixth; a law here knows them exactly, by
quadrature, or by averaging draws.
"""

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import IntegrationWarning

from mesaopt.config import StartName
from mesaopt.errors import ConfigError, suggest

Sampler = Callable[[np.random.Generator, int, int], NDArray[Any]]
"""Told where random numbers come from, how many states, and their dimension; returns [count, dim]."""

HIGHEST_MOMENT = 6
"""The expected loss of one layer of linear attention is made of moments up to this order."""

_CHUNK = 2**16  # draws in one array


class StartLaw(ABC):
    """The law of x_1.

    Example:
        >>> law = start_law("gaussian", scale=2.0)
        >>> law.sample(np.random.default_rng(0), 4, 3).shape
        (4, 3)
        >>> float(law.moment(np.array([2, 4, 0])))  # E x_1^2 x_2^4 = 2^2 * 3 * 2^4
        192.0
    """

    name: str
    """What plots and messages call it."""

    @abstractmethod
    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[Any]:
        """Draw states.

        Args:
            random: where the numbers come from.
            count: how many.
            dim: coordinates of each.

        Returns:
            [count, dim], float64 or complex128.
        """

    @abstractmethod
    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """Give joint moments E prod_j x_j^{powers_j} conj(x_j)^{conjugate_powers_j}.

        Args:
            powers: exponents, [..., dim].
            conjugate_powers: exponents of the conjugates, the same shape; zero if not given.

        Returns:
            One moment for each row of exponents, [...].
        """


class RealLaw(StartLaw):
    """A law of real states, for which x and conj(x) are the same."""

    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """See :meth:`StartLaw.moment`."""
        powers = powers if conjugate_powers is None else powers + conjugate_powers
        return self.real_moment(powers)

    @abstractmethod
    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give E prod_j x_j^{powers_j} for exponents [..., dim]."""


class IndependentLaw(RealLaw):
    """Independent coordinates, all with one law on the real line.

    Args:
        name: what to call it.
        draw: returns draws of a given size.
        raw_moment: E x^n, told n; must be finite for n up to 6.

    Raises:
        ConfigError: a moment up to the sixth is not finite.

    Example:
        >>> def draw(random, size):
        ...     return random.laplace(size=size)
        >>> law = IndependentLaw("Laplace", draw, lambda n: math.factorial(n) * (1 - n % 2))
        >>> float(law.moment(np.array([4, 0])))
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
            value = float(self._raw_moment(order))
            if not math.isfinite(value):
                raise ConfigError(
                    f"start law {name!r}: moment {order} is {value}: must be finite up to {HIGHEST_MOMENT}"
                )

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`StartLaw.sample`."""
        return self._draw(random, (count, dim))

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealLaw.real_moment`."""
        table = [float(self._raw_moment(n)) for n in range(int(powers.max(initial=0)) + 1)]
        return np.array(table)[powers].prod(-1)


class SparseLaw(RealLaw):
    """One coordinate, picked evenly, is +scale or -scale with even odds; the others are zero.

    Args:
        scale: magnitude of the one that is not zero, > 0.

    Source: Zheng et al., the sparse example of their section on the capability of one step.

    Example:
        >>> law = SparseLaw(2.0)
        >>> float(law.moment(np.array([2, 0]))), float(law.moment(np.array([2, 2])))
        (2.0, 0.0)
    """

    name = "sparse"

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`StartLaw.sample`."""
        states = np.zeros((count, dim))
        place = random.integers(dim, size=count)
        states[np.arange(count), place] = self.scale * (2 * random.integers(2, size=count) - 1)
        return states

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealLaw.real_moment`."""
        order, touched = powers.sum(-1), (powers > 0).sum(-1)
        one = np.where(order % 2 == 0, self.scale**order / powers.shape[-1], 0.0)
        return np.where(touched == 0, 1.0, np.where(touched == 1, one, 0.0))


class FiniteLaw(RealLaw):
    """A law on finitely many states.

    Args:
        name: what to call it.
        points: the states, [point, dim].
        probabilities: of each, adding up to 1; even ones if not given.

    Raises:
        ConfigError: the probabilities do not fit.

    Example:
        >>> law = FiniteLaw("two states", np.array([[1.0, 1.0], [-1.0, -1.0]]))
        >>> float(law.moment(np.array([3, 3])))
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
        even = np.full(len(points), 1 / len(points))
        self.probabilities = even if probabilities is None else probabilities
        shape, total = self.probabilities.shape, float(self.probabilities.sum())
        if shape != (len(points),) or (self.probabilities < 0).any() or abs(total - 1) > 1e-9:
            raise ConfigError(
                f"start law {name!r}: probabilities of shape {shape} with sum {total:g}: "
                f"must be {len(points)} numbers, 0 or greater, with sum 1"
            )

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
        """See :meth:`StartLaw.sample`."""
        self._check(dim)
        return self.points[random.choice(len(self.points), size=count, p=self.probabilities)]

    def real_moment(self, powers: NDArray[np.int64]) -> NDArray[np.float64]:
        """See :meth:`RealLaw.real_moment`."""
        self._check(powers.shape[-1])
        exponents, place = np.unique(
            powers.reshape(-1, powers.shape[-1]), axis=0, return_inverse=True
        )
        values = _monomials(self.points, exponents)  # [point, monomial]
        return (self.probabilities @ values)[place].reshape(powers.shape[:-1])

    def _check(self, dim: int) -> None:
        if dim != self.points.shape[1]:
            raise ConfigError(
                f"start law {self.name!r}: dim={dim}: must be {self.points.shape[1]}, as its states have"
            )


class SampledLaw(StartLaw):
    """A law that is known by its sampler only; its moments are averages over draws.

    Args:
        sampler: told a NumPy generator, a count and a dimension; returns states [count, dim].
        name: what to call it.
        num_samples: draws behind a moment.
        seed: of those draws.

    Example:
        >>> law = SampledLaw(lambda random, count, dim: random.choice([-1.0, 1.0], (count, dim)))
        >>> float(law.moment(np.array([2, 2, 2])))
        1.0
    """

    def __init__(
        self, sampler: Sampler, *, name: str = "own", num_samples: int = 2**20, seed: int = 0
    ):
        self.name = name
        self.num_samples = num_samples
        self.seed = seed
        self._sampler = sampler

    def sample(self, random: np.random.Generator, count: int, dim: int) -> NDArray[Any]:
        """See :meth:`StartLaw.sample`.

        Raises:
            ConfigError: the sampler returns another shape, or something that is not finite.
        """
        states = np.asarray(self._sampler(random, count, dim))
        if states.shape != (count, dim):
            raise ConfigError(
                f"start law {self.name!r}: the sampler returned shape {states.shape}: "
                f"must be {(count, dim)}"
            )
        if not np.isfinite(states).all():
            raise ConfigError(f"start law {self.name!r}: the sampler returned a NaN or an infinity")
        return states.astype(np.complex128 if np.iscomplexobj(states) else np.float64)

    def moment(
        self, powers: NDArray[np.int64], conjugate_powers: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """See :meth:`StartLaw.moment`; the standard error falls with the root of `num_samples`.

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
                f"start law {self.name!r}: one of {self.num_samples:,} draws makes up "
                f"{largest / sixth:.0%} of the sixth moment: it is infinite, or too heavy in the tails "
                "to be found by sampling; give a law with known moments"
            )
        return (total / self.num_samples)[place].reshape(powers.shape[:-1])


_DOMINANT = 0.05
"""Share of one draw in the sixth moment past which the moment is not believed. Of a million Gaussian
draws the largest has 0.001; of Student t draws with six degrees of freedom or fewer, 0.05 to 1."""


def _monomials(states: NDArray[Any], exponents: NDArray[np.int64]) -> NDArray[Any]:
    """Evaluate prod_j x_j^{p_j} for states [count, dim] and exponents [monomial, dim]."""
    table = states[..., None] ** np.arange(exponents.max(initial=0) + 1)  # [N,D,power]
    out = np.ones((len(states), len(exponents)), dtype=states.dtype)
    for column in range(exponents.shape[-1]):
        out *= table[:, column, exponents[:, column]]
    return out


def gaussian(scale: float = 1.0) -> StartLaw:
    """N(0, scale^2) in every coordinate.

    Example:
        >>> float(gaussian(2.0).moment(np.array([4])))  # 3 * 2^4
        48.0
    """
    # E x^n = (n - 1)!! scale^n for even n.
    return IndependentLaw(
        "gaussian",
        lambda random, size: scale * random.standard_normal(size),
        lambda n: 0.0 if n % 2 else scale**n * math.prod(range(1, n, 2)),
    )


def rademacher(scale: float = 1.0) -> StartLaw:
    """+scale or -scale with even odds in every coordinate.

    Example:
        >>> float(rademacher().moment(np.array([2, 4])))
        1.0
    """
    return IndependentLaw(
        "rademacher",
        lambda random, size: scale * random.choice([-1.0, 1.0], size=size),
        lambda n: 0.0 if n % 2 else scale**n,
    )


def uniform(scale: float = 1.0) -> StartLaw:
    """Uniform on [-scale, scale] in every coordinate.

    Example:
        >>> round(float(uniform().moment(np.array([4]))), 9)
        0.2
    """
    return IndependentLaw(
        "uniform",
        lambda random, size: random.uniform(-scale, scale, size),
        lambda n: 0.0 if n % 2 else scale**n / (n + 1),
    )


def full_one(scale: float = 1.0) -> StartLaw:
    """Every coordinate is `scale`, always.

    Example:
        >>> float(full_one().moment(np.array([1, 3])))
        1.0
    """
    return IndependentLaw("full_one", lambda random, size: np.full(size, scale), lambda n: scale**n)


def generalised_gaussian(shape: float, scale: float = 1.0) -> StartLaw:
    """Density proportional to exp(-|x / scale|^shape): spiky near 0, Gaussian at 2, uniform at infinity.

    Args:
        shape: > 0.
        scale: > 0; at shape 2 the standard deviation is scale / sqrt(2).

    Returns:
        The law, with E |x|^n = scale^n Gamma((n + 1) / shape) / Gamma(1 / shape).

    Raises:
        ConfigError: shape or scale is not greater than 0 and finite.
    """
    _check_positive(shape=shape, scale=scale)

    def raw_moment(n: int) -> float:
        log_moment = math.lgamma((n + 1) / shape) - math.lgamma(1 / shape)
        return 0.0 if n % 2 else scale**n * math.exp(log_moment)

    def draw(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
        magnitude = random.gamma(1 / shape, size=size) ** (1 / shape)
        return scale * magnitude * random.choice([-1.0, 1.0], size=size)

    return IndependentLaw(f"generalised gaussian {shape:g}", draw, raw_moment)


def two_magnitudes(ratio: float, probability: float, scale: float = 1.0) -> StartLaw:
    """A fair sign times `ratio * scale` with the given probability, and times `scale` otherwise.

    Args:
        ratio: of the two magnitudes, 0 or greater; 0 makes a sparse law, 1 Rademacher's.
        probability: of the first one, between 0 and 1.
        scale: the second magnitude, > 0.

    Returns:
        The law of independent coordinates.

    Raises:
        ConfigError: a number is out of range.
    """
    if not (ratio >= 0 and math.isfinite(ratio)):
        raise ConfigError(f"ratio={ratio}: must be 0 or greater and finite")
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability={probability}: must be between 0 and 1")
    _check_positive(scale=scale)

    def draw(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
        magnitude = np.where(random.random(size) < probability, ratio, 1.0)
        return scale * magnitude * random.choice([-1.0, 1.0], size=size)

    def raw_moment(n: int) -> float:
        return 0.0 if n % 2 else scale**n * (1 - probability + probability * ratio**n)

    return IndependentLaw(f"two magnitudes 1 and {ratio:g}", draw, raw_moment)


def from_distribution(distribution: Any, *, name: str | None = None) -> StartLaw:
    """Give every coordinate a law of `scipy.stats`, with moments by scipy's formulas or quadrature.

    Args:
        distribution: a frozen distribution, such as `scipy.stats.laplace(scale=0.5)`.
        name: what to call it; scipy's name if not given.

    Returns:
        The law of independent coordinates.

    Raises:
        ConfigError: a moment up to the sixth is not finite.

    Example:
        >>> import scipy.stats
        >>> law = from_distribution(scipy.stats.logistic())
        >>> round(float(law.moment(np.array([2]))), 6)  # pi^2 / 3
        3.289868
        >>> from_distribution(scipy.stats.t(df=5))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: start law 't': moment 6 is inf: must be finite up to 6
    """
    return IndependentLaw(
        name or distribution.dist.name,
        lambda random, size: np.asarray(distribution.rvs(size=size, random_state=random)),
        lambda n: _scipy_moment(distribution, n),
    )


def _scipy_moment(distribution: Any, order: int) -> float:
    """Give a raw moment, infinity where scipy's quadrature does not converge."""
    if order == 0:
        return 1.0
    # scipy multiplies infinite moments by zero without a word in its answer: a NaN.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("error", IntegrationWarning)
        try:
            return float(distribution.moment(order))
        except IntegrationWarning:
            return math.inf


_MAKERS: dict[StartName, Callable[[float], StartLaw]] = {
    "full_one": full_one,
    "gaussian": gaussian,
    "sparse": SparseLaw,
    "rademacher": rademacher,
    "uniform": uniform,
}


def start_law(name: str, *, scale: float = 1.0) -> StartLaw:
    """Look a law up by name.

    Args:
        name: "full_one" (all coordinates equal scale), "gaussian" (standard deviation scale), "sparse" (one
            coordinate is +-scale), "rademacher" (all are +-scale) or "uniform" (on [-scale, scale]).
        scale: > 0.

    Returns:
        The law.

    Raises:
        ConfigError: there is no such law, or the scale is not greater than 0.

    Source: Zheng et al. use the first three; in their code full-one ignores the scale.

    Example:
        >>> start_law("gausian")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: start='gausian': did you mean 'gaussian'?
    """
    if name not in get_args(StartName):
        raise ConfigError(f"start={name!r}: {suggest(name, get_args(StartName))}")
    _check_positive(scale=scale)
    return _MAKERS[name](scale)  # type: ignore[index]


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name}={value}: must be greater than 0 and finite")
