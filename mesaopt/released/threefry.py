"""The random numbers of JAX in NumPy: the matrices that the authors drew once and for all.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011, for Threefry-2x32, 20 rounds.
How keys, counters, uniform and normal numbers follow from it is JAX's own; this is its behaviour before
version 0.5, where `jax_threefry_partitionable` was off.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfinv

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry2x32(key: tuple[int, int], counters: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Encrypt counters: Threefry-2x32 with 20 rounds.

    Args:
        key: two words, 0 to 2**32 - 1.
        counters: pairs of words [count, 2].

    Returns:
        Random words, in the same shape.

    Source: Salmon et al., 2011; the example is one of the known answers of their library Random123.

    Example:
        >>> words = threefry2x32((0, 0), np.zeros((1, 2), dtype=np.uint32))
        >>> [hex(word) for word in words[0].tolist()]
        ['0x6b200159', '0x99ba4efe']
    """
    first, second = (np.uint32(word) for word in key)
    schedule = (first, second, first ^ second ^ _PARITY)
    x, y = counters[:, 0] + first, counters[:, 1] + second  # words wrap around
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = x ^ y
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return np.stack([x, y], axis=1)


def normal(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw standard normal numbers: `jax.random.normal(jax.random.PRNGKey(seed), shape)`.

    Args:
        seed: 0 to 2**32 - 1.
        shape: of the result, without a zero.

    Returns:
        float32 numbers, those of JAX up to rounding.

    Example:
        >>> [round(number, 4) for number in normal(0, (10,)).tolist()][:3]
        [-0.3721, 0.2642, -0.1825]
    """
    uniform = _uniform(seed, int(np.prod(shape)))
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    between = np.maximum(lowest, uniform * (np.float32(1) - lowest) + lowest)  # above -1, below 1
    return (np.sqrt(2) * erfinv(between.astype(np.float64))).astype(np.float32).reshape(shape)


def orthogonal(seed: int, dim: int) -> NDArray[np.float64]:
    """Draw an orthogonal matrix: `jax.random.orthogonal(jax.random.PRNGKey(seed), dim)`.

    Args:
        seed: 0 to 2**32 - 1.
        dim: rows and columns.

    Returns:
        float64 matrix [dim, dim], that of JAX up to the rounding of float32.

    Example:
        >>> w = orthogonal(42, 10)
        >>> bool(np.allclose(w @ w.T, np.eye(10)))
        True
    """
    q, r = np.linalg.qr(normal(seed, (dim, dim)).astype(np.float64))
    return q * np.sign(np.diagonal(r))


def _uniform(seed: int, count: int) -> NDArray[np.float32]:
    """Draw numbers from [0, 1), multiples of 2**-23."""
    half = (count + 1) // 2
    words = np.zeros(2 * half, dtype=np.uint32)
    words[:count] = np.arange(count, dtype=np.uint32)
    pairs = words.reshape(2, half).T  # [half,2]: JAX pairs a counter with the one half the count on
    random = threefry2x32((0, seed), pairs).T.reshape(-1)[:count]
    mantissas = (random >> np.uint32(9)) | np.uint32(0x3F800000)  # of numbers from [1, 2)
    return mantissas.view(np.float32) - np.float32(1)
