"""Moments of the initial state that determine the limit of training."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates
from mesaopt.theory.ar_process.weights import Array


@dataclass(frozen=True)
class StartMoments:
    """Even moments of x_1, coordinate by coordinate, |x|^2 in place of x^2 where it is complex.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> start_moments(initial_states("gaussian", scale=1.0), dim=2).sixth.tolist()
        [15.0, 15.0]
    """

    second: Float[Array, " dim"]
    """E |x_j|^2."""
    fourth: Float[Array, " dim"]
    """E |x_j|^4."""
    sixth: Float[Array, " dim"]
    """E |x_j|^6."""
    mixed: Float[Array, "dim dim"]
    """E |x_j|^2 |x_r|^4 in row j and column r, with zeros on the diagonal."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.second)


def start_moments(initial: InitialStates, dim: int) -> StartMoments:
    """Collect the moments that the diagonal theory needs from a distribution.

    Args:
        initial: distribution of x_1.
        dim: number of coordinates, 1 or more.

    Returns:
        The moments.

    Raises:
        ConfigError: a moment is not finite.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> start_moments(initial_states("sparse"), dim=2).mixed.tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    one = np.eye(dim, dtype=np.int64)
    mixed = np.zeros((dim, dim))
    pairs = list(itertools.permutations(range(dim), 2))
    if pairs:
        powers = np.stack([one[j] + 2 * one[r] for j, r in pairs])
        mixed[tuple(zip(*pairs, strict=True))] = _absolute(initial, powers)
    second, fourth, sixth = (_absolute(initial, n * one) for n in (1, 2, 3))
    return StartMoments(second, fourth, sixth, mixed)


def third_products(
    initial: InitialStates, dim: int
) -> tuple[NDArray[np.inexact], NDArray[np.inexact], NDArray[np.floating]]:
    """Return the moments of f = x_k conj(x_l) x_m, of which the features of the layer are made.

    Args:
        initial: distribution of x_1.
        dim: number of coordinates.

    Returns:
        E f f^* [dim^3, dim^3], E f conj(x_j) [dim^3, dim] and E |x_j|^2 [dim].

    Raises:
        ConfigError: a moment is not finite.
    """
    one = np.eye(dim, dtype=np.int64)
    first, conjugate, last = (one[i] for i in np.indices((dim,) * 3).reshape(3, -1))
    plain = first + last  # exponents of x in f, [dim^3,dim], as `conjugate` are of conj(x)
    gram = initial.moment(plain[:, None] + conjugate[None], conjugate[:, None] + plain[None])
    cross = initial.moment(
        np.broadcast_to(plain[:, None], (dim**3, dim, dim)), conjugate[:, None] + one[None]
    )
    energy = initial.moment(one, one).real
    for values in (energy, cross, gram):
        _check_finite(initial, values)
    return gram, cross, energy


def _absolute(initial: InitialStates, powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return E prod_j |x_j|^{2 powers_j}."""
    values = np.real(initial.moment(powers, powers))
    _check_finite(initial, values)
    return values


def _check_finite(initial: InitialStates, values: NDArray[np.inexact]) -> None:
    if not np.isfinite(values).all():
        raise ConfigError(
            f"initial states {initial.name!r}: has a moment that is not finite: "
            "must be finite up to the sixth"
        )
