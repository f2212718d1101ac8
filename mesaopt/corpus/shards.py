"""Tokens in a row, in memory or in several files that are read where they are needed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mesaopt.errors import ConfigError

INDEX = "index.json"
"""The file that makes a folder a prepared corpus."""


def shard_name(part: str, number: int) -> str:
    """Name the file of a shard."""
    return f"{part}-{number:05d}.bin"


class Tokens:
    """A long row of tokens, made of pieces that lie one behind the other.

    Args:
        pieces: arrays of 16-bit numbers, which may be memory maps of files.
        vocabulary: number of different tokens: those that are read must be below it; 2**16 allows all.

    Example:
        >>> row = Tokens([np.arange(3, dtype=np.uint16), np.arange(3, 8, dtype=np.uint16)])
        >>> len(row), row.stretches(np.array([0, 2]), 4).tolist()
        (8, [[0, 1, 2, 3], [2, 3, 4, 5]])
    """

    def __init__(self, pieces: Sequence[NDArray[np.uint16]], vocabulary: int = 2**16):
        self.pieces = [piece for piece in pieces if len(piece)]
        self._vocabulary = vocabulary
        self._ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.pieces else 0

    def stretches(self, starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Read stretches of one size.

        Args:
            starts: where they begin [count]; each must end before the row does.
            size: tokens in each.

        Returns:
            [count, size].

        Raises:
            ConfigError: a shard has a token that is not in the vocabulary.
        """
        return np.stack([self._read(int(start), size) for start in starts])

    def _read(self, start: int, size: int) -> NDArray[np.int64]:
        """Read one stretch, from as many pieces as it lies in."""
        number = int(np.searchsorted(self._ends, start, side="right"))
        found: list[NDArray[np.uint16]] = []
        missing = size
        while missing:
            piece = self.pieces[number]
            begin = start - (int(self._ends[number]) - len(piece))
            found.append(piece[begin : begin + missing])
            if (largest := int(found[-1].max())) >= self._vocabulary:
                wanted = f"must be below {self._vocabulary}, the vocabulary; prepare it again"
                shard = getattr(piece, "filename", "corpus")
                raise ConfigError(f"{shard}: is damaged: has the token {largest}: {wanted}")
            start, missing, number = start + len(found[-1]), missing - len(found[-1]), number + 1
        return np.concatenate(found).astype(np.int64)
