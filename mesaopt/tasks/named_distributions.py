"""Ready-made distributions of the first state, by name or with parameters, and those of scipy.stats."""

import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import IntegrationWarning

from mesaopt.config import StartName
from mesaopt.errors import ConfigError, suggest
from mesaopt.tasks.distributions import (
    IndependentCoordinates,
    InitialStates,
    SparseStates,
    check_positive,
)


def gaussian(scale: float = 1.0) -> InitialStates:
    """Draw every coordinate from N(0, scale^2).

    Args:
        scale: standard deviation, > 0.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: the scale is not greater than 0 and finite.

    Source: Zheng et al., their Gaussian data.

    Example:
        >>> float(gaussian(2.0).moment(np.array([4])))  # 3 * 2^4
        48.0
    """
    check_positive(scale=scale)
    # E x^n = (n - 1)!! scale^n for even n.
    return IndependentCoordinates(
        "gaussian",
        lambda random, size: scale * random.standard_normal(size),
        lambda n: 0.0 if n % 2 else scale**n * math.prod(range(1, n, 2)),
    )


def rademacher(scale: float = 1.0) -> InitialStates:
    """Draw every coordinate as +scale or -scale, with even odds.

    Args:
        scale: magnitude, > 0.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: the scale is not greater than 0 and finite.

    Example:
        >>> float(rademacher().moment(np.array([2, 4])))
        1.0
    """
    check_positive(scale=scale)
    return IndependentCoordinates(
        "rademacher",
        lambda random, size: scale * random.choice([-1.0, 1.0], size=size),
        lambda n: 0.0 if n % 2 else scale**n,
    )


def uniform(scale: float = 1.0) -> InitialStates:
    """Draw every coordinate uniformly from [-scale, scale].

    Args:
        scale: largest magnitude, > 0.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: the scale is not greater than 0 and finite.

    Example:
        >>> round(float(uniform().moment(np.array([4]))), 9)
        0.2
    """
    check_positive(scale=scale)
    return IndependentCoordinates(
        "uniform",
        lambda random, size: random.uniform(-scale, scale, size),
        lambda n: 0.0 if n % 2 else scale**n / (n + 1),
    )


def full_one(scale: float = 1.0) -> InitialStates:
    """Set every coordinate to `scale`, always.

    Args:
        scale: value of every coordinate, > 0.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: the scale is not greater than 0 and finite.

    Source: Zheng et al., full-one data; in their code the scale is ignored.

    Example:
        >>> float(full_one().moment(np.array([1, 3])))
        1.0
    """
    check_positive(scale=scale)
    return IndependentCoordinates(
        "full_one", lambda random, size: np.full(size, scale), lambda n: scale**n
    )


def generalised_gaussian(shape: float, scale: float = 1.0) -> InitialStates:
    """Draw every coordinate with a density proportional to exp(-|x / scale|^shape).

    Shapes near 0 are spiky, 2 is Gaussian, and large ones come near to uniform.

    Args:
        shape: > 0.
        scale: > 0; at shape 2 the standard deviation is scale / sqrt(2).

    Returns:
        The distribution, with E |x|^n = scale^n Gamma((n + 1) / shape) / Gamma(1 / shape).

    Raises:
        ConfigError: shape or scale is not greater than 0 and finite, or a moment is too large for a number.

    Example:
        >>> round(float(generalised_gaussian(2.0).moment(np.array([2]))), 9)
        0.5
    """
    check_positive(shape=shape, scale=scale)

    def raw_moment(n: int) -> float:
        log_moment = math.lgamma((n + 1) / shape) - math.lgamma(1 / shape)
        return 0.0 if n % 2 else scale**n * math.exp(log_moment)

    def draw(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
        magnitude = random.gamma(1 / shape, size=size) ** (1 / shape)
        return scale * magnitude * random.choice([-1.0, 1.0], size=size)

    return IndependentCoordinates(f"generalised gaussian {shape:g}", draw, raw_moment)


def two_magnitudes(ratio: float, probability: float, scale: float = 1.0) -> InitialStates:
    """Draw a fair sign times `ratio * scale` with the given probability, and times `scale` otherwise.

    Args:
        ratio: of the two magnitudes, 0 or greater; 0 makes a sparse distribution, 1 Rademacher's.
        probability: of the first one, between 0 and 1.
        scale: the second magnitude, > 0.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> float(two_magnitudes(2.0, 0.25).moment(np.array([2])))  # 1/4 * 4 + 3/4
        1.75
    """
    if not (ratio >= 0 and math.isfinite(ratio)):
        raise ConfigError(f"ratio={ratio}: must be 0 or greater and finite")
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability={probability}: must be between 0 and 1")
    check_positive(scale=scale)

    def draw(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
        magnitude = np.where(random.random(size) < probability, ratio, 1.0)
        return scale * magnitude * random.choice([-1.0, 1.0], size=size)

    def raw_moment(n: int) -> float:
        return 0.0 if n % 2 else scale**n * (1 - probability + probability * ratio**n)

    return IndependentCoordinates(f"two magnitudes 1 and {ratio:g}", draw, raw_moment)


def from_distribution(distribution: Any, *, name: str | None = None) -> InitialStates:
    """Draw every coordinate from a distribution of `scipy.stats`.

    Its moments come from scipy's formulas or quadrature.

    Args:
        distribution: a frozen distribution, such as `scipy.stats.laplace(scale=0.5)`.
        name: of the distribution; scipy's name if not given.

    Returns:
        The distribution of independent coordinates.

    Raises:
        ConfigError: a moment up to the sixth is not finite.

    Example:
        >>> import scipy.stats
        >>> initial = from_distribution(scipy.stats.logistic())
        >>> round(float(initial.moment(np.array([2]))), 6)  # pi^2 / 3
        3.289868
        >>> from_distribution(scipy.stats.t(df=5))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: initial states 't': moment 6 is inf: must be finite up to 6
    """
    return IndependentCoordinates(
        name or distribution.dist.name,
        lambda random, size: np.asarray(distribution.rvs(size=size, random_state=random)),
        lambda n: _scipy_moment(distribution, n),
    )


def _scipy_moment(distribution: Any, order: int) -> float:
    """Return a raw moment, infinity where scipy's quadrature does not converge."""
    if order == 0:
        return 1.0
    # scipy multiplies infinite moments by zero without a word in its answer: a NaN.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("error", IntegrationWarning)
        try:
            return float(distribution.moment(order))
        except IntegrationWarning:
            return math.inf


_MAKERS: dict[StartName, Callable[[float], InitialStates]] = {
    "full_one": full_one,
    "gaussian": gaussian,
    "sparse": SparseStates,
    "rademacher": rademacher,
    "uniform": uniform,
}


def initial_states(name: str, *, scale: float = 1.0) -> InitialStates:
    """Look up a distribution of initial states by name.

    Args:
        name: "full_one" (all coordinates equal scale), "gaussian" (standard deviation scale), "sparse" (one
            coordinate is +-scale, the others are 0), "rademacher" (all are +-scale) or "uniform" (on
            [-scale, scale]).
        scale: > 0.

    Returns:
        The distribution.

    Raises:
        ConfigError: there is no such distribution, or the scale is not greater than 0.

    Source: Zheng et al. use the first three; in their code full-one ignores the scale.

    Example:
        >>> initial_states("gausian")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: start='gausian': did you mean 'gaussian'?
    """
    if name not in get_args(StartName):
        raise ConfigError(f"start={name!r}: {suggest(name, get_args(StartName))}")
    return _MAKERS[name](scale)  # type: ignore[index]
