"""Exact expectations over the process, by counting, without sampling.

Every product of features and targets is a product of coordinates of x_1, whose moments are known, times
eigenvalues lambda_j = exp(i theta_j) raised to integers. With theta_j uniform, its expectation is 1
where the exponents of every distinct eigenvalue cancel and 0 otherwise. The indices that share an
eigenvalue make a partition of the six (or four) indices. So an expectation over W is a weighted count of
times.
"""

import functools
import operator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates
from mesaopt.theory.ar_process.moments import third_products
from mesaopt.theory.ar_process.statistics import QuadraticLoss
from mesaopt.theory.ar_process.weights import Array, Blocks, Contexts, check_choice


def population_loss(
    initial: InitialStates,
    *,
    dim: int,
    length: int,
    blocks: Blocks = "core",
    contexts: Contexts = "all",
) -> QuadraticLoss:
    """Build the expected loss of the layer on the process x_{t+1} = W x_t.

    Args:
        initial: distribution of x_1; its W = diag(exp(i theta_j)), theta_j uniform and independent.
        dim: width of a state, 1 or more.
        length: T, states in a sequence, 3 or more.
        blocks: "core", dim^3 features; or "all", (2 dim)^3.
        contexts: "all", t = 2 ... T-1; or "last", t = T-1 only.

    Returns:
        The loss, for any weights with these blocks.

    Raises:
        ConfigError: dim or length is out of range, or a moment of the distribution is not finite.

    Source: derived; checked against the closed form and against samples.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import diagonal
        >>> loss = population_loss(initial_states("sparse"), dim=2, length=5)
        >>> solution = diagonal(2, key_query=1.0, output_value=1.0)
        >>> round(abs(float(loss.loss_and_gradient(solution)[0])), 12)
        0.0
    """
    check_size(dim, length)
    check_choice("blocks", blocks, Blocks)
    check_choice("contexts", contexts, Contexts)
    gram, cross, energy = third_products(initial, dim)
    pairs, targets = _time_counts(dim, length, blocks, contexts)
    order = _token_order(len(_FEATURES[blocks]), dim)
    features = len(order)
    # [klm, k'l'm', block, block'] and [klm, j, block] to [feature, feature'] and [feature, j]
    full_gram = (pairs * gram[:, :, None, None]).transpose(2, 0, 3, 1).reshape(features, features)
    full_cross = (targets * cross[:, :, None]).transpose(2, 0, 1).reshape(features, dim)
    times = len(_times(length, contexts))
    return QuadraticLoss(full_gram[np.ix_(order, order)], full_cross[order], times * energy.sum())


def check_size(dim: int, length: int) -> None:
    """Refuse sizes for which there is nothing to learn.

    Args:
        dim: wanted 1 or more.
        length: wanted 3 or more.

    Raises:
        ConfigError: naming the argument.

    Example:
        >>> check_size(5, 2)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: length=2: must be 3 or greater: a pair and a target take three states
    """
    if dim < 1:
        raise ConfigError(f"dim={dim}: must be 1 or greater")
    if length < 3:
        raise ConfigError(
            f"length={length}: must be 3 or greater: a pair and a target take three states"
        )


class _Exponent(NamedTuple):
    """Exponent i * of_i + j * of_j + t * of_t + constant of an eigenvalue, i and j the summed times."""

    of_i: int = 0
    of_j: int = 0
    of_t: int = 0
    constant: int = 0


_Feature = tuple[int, int, int]
"""Which token half, 0 for x_t and 1 for x_{t-1}, each factor of e_i[a] conj(e_i[b]) e_t[c] is of."""
_FEATURES: dict[Blocks, list[_Feature]] = {
    "core": [(0, 1, 0)],
    "all": [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)],
}
_TARGET = _Exponent(of_t=-1)
"""conj(x_{t+1}): x_{t+1} = W^t x_1."""


def _first(feature: _Feature) -> tuple[_Exponent, _Exponent, _Exponent]:
    """Exponents of e_i[a] conj(e_i[b]) e_t[c], with x_i = W^{i-1} x_1."""
    a, b, c = feature
    return (
        _Exponent(of_i=1, constant=-1 - a),
        _Exponent(of_i=-1, constant=1 + b),
        _Exponent(of_t=1, constant=-1 - c),
    )


def _second(feature: _Feature) -> tuple[_Exponent, _Exponent, _Exponent]:
    """Exponents of the conjugate, summed over times j of its own."""
    a, b, c = feature
    return (
        _Exponent(of_j=-1, constant=1 + a),
        _Exponent(of_j=1, constant=-1 - b),
        _Exponent(of_t=-1, constant=1 + c),
    )


def _times(length: int, contexts: Contexts) -> Int[Array, " context"]:
    return np.arange(2 if contexts == "all" else length - 1, length)


@functools.lru_cache(maxsize=8)
def _time_counts(
    dim: int, length: int, blocks: Blocks, contexts: Contexts
) -> tuple[Float[Array, "feature feature kind kind"], Float[Array, "feature dim kind"]]:
    """Expect products of eigenvalues in F F^* and F x_{t+1}^*; distributions of x_1 share them."""
    kinds, times = _FEATURES[blocks], _times(length, contexts)
    pairs = _weights(dim, [(*_first(f), *_second(g)) for f in kinds for g in kinds], times)
    targets = _weights(dim, [(*_first(f), _TARGET) for f in kinds], times)
    size, count = dim**3, len(kinds)
    return pairs.reshape(size, size, count, count), targets.reshape(size, dim, count)


def _weights(
    dim: int, factors: list[tuple[_Exponent, ...]], times: Int[Array, " context"]
) -> Float[Array, "index kind"]:
    """Expect products of eigenvalues, for every choice of coordinates and every kind of product.

    Args:
        dim: number of eigenvalues.
        factors: the exponents of each kind of product, in the order of the indices.
        times: the contexts t.

    Returns:
        One number for every tuple of indices (row-major) and kind.
    """
    indices = np.indices((dim,) * len(factors[0])).reshape(len(factors[0]), -1)
    patterns, place = np.unique(_pattern(indices), axis=1, return_inverse=True)
    count = functools.lru_cache(maxsize=None)(functools.partial(_count, times))
    table = [[count(*_conditions(p, kind)) for kind in factors] for p in patterns.T.tolist()]
    return np.array(table)[place]


def _pattern(indices: Int[Array, "position index"]) -> Int[Array, "position index"]:
    """Name every position by the first one with the same index: (3, 1, 3) becomes (0, 1, 0)."""
    same = indices[:, None] == indices[None]  # [position, earlier position, index]
    return same.argmax(1)


def _conditions(
    pattern: list[int], exponents: tuple[_Exponent, ...]
) -> tuple[frozenset[_Exponent], int, int | None]:
    """Return the exponents that must vanish, and the first times i and j of the sums.

    An exponent and its negative are one condition, and zero is none. Tokens hold x_0 = 0, so
    that a sum over x_{i-1} begins with i = 2.
    """
    groups = dict.fromkeys(pattern, _Exponent())
    for place, exponent in zip(pattern, exponents, strict=True):
        groups[place] = _Exponent(*map(operator.add, groups[place], exponent))
    conditions = {max(g, _Exponent(*map(operator.neg, g))) for g in groups.values()}
    starts = [2 if abs(e.constant) == 2 else 1 for e in exponents]
    second = max(starts[3:5]) if len(exponents) == 6 else None
    return frozenset(conditions - {_Exponent()}), max(starts[:2]), second


def _count(
    times: Int[Array, " context"],
    conditions: frozenset[_Exponent],
    first: int,
    second: int | None,
) -> float:
    """Count the times at which all exponents vanish, each with the weight of its sums.

    Args:
        times: the contexts t.
        conditions: exponents with coefficients -1, 0 or 1. One that depends on no time is never met.
        first: smallest i.
        second: smallest j; None if there is no second sum.

    Returns:
        sum_t #{(i, j)} / (t-1)^2, or sum_t #{i} / (t-1) without the second sum; i, j <= t.
    """
    t, i = times[:, None], np.arange(first, times[-1] + 1)[None]
    if second is None:
        j, count = np.zeros_like(i), np.where(i <= t, 1, 0)
    elif fixing := next((c for c in conditions if c.of_j), None):  # it says which j is meant
        j = -fixing.of_j * (fixing.of_i * i + fixing.of_t * t + fixing.constant)
        count = np.where((i <= t) & (second <= j) & (j <= t), 1, 0)
    else:  # every j will do
        j, count = np.zeros_like(i), np.where(i <= t, t + 1 - second, 0)
    for c in conditions:
        count = np.where(c.of_i * i + c.of_j * j + c.of_t * t + c.constant == 0, count, 0)
    return float((count.sum(1) / (times - 1.0) ** (1 if second is None else 2)).sum())


def _token_order(kinds: int, dim: int) -> Int[Array, " feature"]:
    """Return the place of each feature in token order among features sorted by kind."""
    halves = 1 if kinds == 1 else 2
    order = np.arange(kinds * dim**3).reshape(*(halves,) * 3, *(dim,) * 3)
    return order.transpose(0, 3, 1, 4, 2, 5).ravel()  # [a half, a, b half, b, c half, c]
