"""Random numbers as pure functions of (seed, stream, step), and random matrices."""

import zlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.errors import ConfigError


def generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """Return the generator of one step of one stream: the same numbers whatever came before.

    The bit generator is Philox, whose counter starts at (0, 0, 0, step) and whose key is the pair
    (seed, CRC-32 of the stream's name), so that no two steps, streams or seeds ever overlap.

    Args:
        seed: 0 to 2**64 - 1.
        stream: name of the stream, such as "train" or "test".
        step: 0 to 2**64 - 1.

    Returns:
        A fresh NumPy generator.

    Raises:
        ConfigError: seed or step is out of range.

    Example:
        >>> float(generator(0, "train", 7).random()) == float(generator(0, "train", 7).random())
        True
    """
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**64:
            raise ConfigError(f"{name}={value}: must be between 0 and 2**64 - 1")
    key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def haar_orthogonal(
    random: np.random.Generator, count: int, dim: int
) -> Float[Tensor, "count dim dim"]:
    """Draw orthogonal matrices from the Haar (rotation-invariant) distribution.

    Q R = A with A of independent standard normals; the columns of Q are then multiplied by the signs
    of the diagonal of R. Without the signs the distribution depends on the QR routine and is not Haar
    (Mezzadri, "How to generate random matrices from the classical compact groups", 2007, section 5).

    Args:
        random: NumPy generator.
        count: how many matrices.
        dim: their size.

    Returns:
        float64 matrices [count, dim, dim].

    Example:
        >>> q = haar_orthogonal(generator(0, "demo"), 4, 3)
        >>> bool(torch.allclose(q @ q.mT, torch.eye(3, dtype=torch.float64)))
        True
    """
    q, r = torch.linalg.qr(torch.from_numpy(random.standard_normal((count, dim, dim))))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


SMALLEST_EIGENVALUE, LARGEST_EIGENVALUE = 0.3, 0.9


def contracting(
    random: np.random.Generator, count: int, dim: int
) -> Float[Tensor, "count dim dim"]:
    """Draw matrices with real eigenvalues below one, and eigenvectors that are not orthogonal.

    W = G diag(mu) G^{-1} with G of independent standard normals, mu_1 = 0.9 and the others uniform on
    [0.3, 0.9]. Where G is nearly singular, W has a large norm: states grow before they shrink.

    Args:
        random: NumPy generator.
        count: how many matrices.
        dim: their size.

    Returns:
        float64 matrices [count, dim, dim].

    Source: von Oswald et al., appendix E.1. They shuffle mu, which does not change the distribution of W:
    the columns of G are exchangeable.

    Example:
        >>> w = contracting(generator(0, "demo"), 4, 3)
        >>> [round(x, 6) for x in torch.linalg.eigvals(w).abs().amax(-1).tolist()]
        [0.9, 0.9, 0.9, 0.9]
    """
    basis = random.standard_normal((count, dim, dim))
    eigenvalues = random.uniform(SMALLEST_EIGENVALUE, LARGEST_EIGENVALUE, (count, 1, dim))
    eigenvalues[..., 0] = LARGEST_EIGENVALUE
    return torch.from_numpy((basis * eigenvalues) @ np.linalg.inv(basis))
