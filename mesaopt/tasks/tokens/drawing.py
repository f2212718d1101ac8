"""Tools of the generators of token sequences: distinct numbers, and targets at some positions only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mesaopt.tasks.tokens.batch import IGNORE, TokenBatch

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class DrawnSequences:
    """Sequences as their generator draws them, with a target for every position.

    Example:
        >>> drawn = DrawnSequences(tokens=np.array([[3, 7, 3]]), targets=np.array([[IGNORE, IGNORE, 7]]))
        >>> [array.tolist() for array in drawn.at_scored()]
        [[[2]], [[7]]]
    """

    tokens: Integers
    """[batch, time]."""
    targets: Integers
    """Token to be predicted at each position [batch, time]; IGNORE where there is none."""
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """More numbers of each position, by name: [batch, time] each."""

    def rows(self, which: Integers) -> "DrawnSequences":
        """Choose some of the sequences."""
        more = {name: array[which] for name, array in self.more.items()}
        tokens, targets = (x[which].astype(np.int64) for x in (self.tokens, self.targets))
        return DrawnSequences(tokens, targets, more)

    def small(self) -> "DrawnSequences":
        """Take less memory: two bytes a token where that is enough."""
        largest = max(self.tokens.max(), self.targets.max())
        kind = np.int16 if largest < 2**15 else np.int32
        return DrawnSequences(self.tokens.astype(kind), self.targets.astype(kind), self.more)

    @classmethod
    def join(cls, parts: Sequence["DrawnSequences"]) -> "DrawnSequences":
        """Put sequences of several draws together."""
        more = {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more}
        tokens = np.concatenate([part.tokens for part in parts])
        return cls(tokens, np.concatenate([part.targets for part in parts]), more)

    def at_scored(self) -> tuple[Integers | None, Integers]:
        """Keep the positions with a target.

        Returns:
            The positions in order [batch, scored], None if there is a target everywhere, and the targets
            there [batch, scored]. A row with fewer than the others ends in position 0 with target IGNORE.
        """
        is_scored = self.targets != IGNORE
        if is_scored.all():
            return None, self.targets
        counts = is_scored.sum(1)
        row, position = np.nonzero(is_scored)
        place = np.arange(len(row)) - (counts.cumsum() - counts)[row]  # within its row
        at = np.zeros((len(counts), counts.max()), dtype=np.int64)
        targets = np.full_like(at, IGNORE)
        at[row, place], targets[row, place] = position, self.targets[row, position]
        return at, targets

    def batch(self) -> TokenBatch:
        """Make a batch, with the targets at the scored positions alone."""
        at, targets = self.at_scored()
        tokens, answers = torch.from_numpy(self.tokens), torch.from_numpy(targets)
        return TokenBatch(tokens, answers, at=None if at is None else torch.from_numpy(at))


def choose_distinct(
    random: np.random.Generator, *, batch_size: int, size: int, count: int
) -> Integers:
    """Draw different numbers for each row, all orders alike: the first steps of a shuffle.

    Args:
        random: source of the numbers.
        batch_size: number of rows.
        size: numbers are drawn from 0 to size - 1.
        count: how many in each row, at most size.

    Returns:
        [batch, count].

    Example:
        >>> rows = choose_distinct(np.random.default_rng(0), batch_size=2, size=5, count=5)
        >>> np.sort(rows).tolist()
        [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    items = np.tile(np.arange(size, dtype=np.int32), (batch_size, 1))
    rows = np.arange(batch_size)
    for i in range(count):
        j = random.integers(i, size, batch_size)
        chosen = items[rows, j]
        items[rows, j] = items[:, i]
        items[:, i] = chosen
    return items[:, :count].astype(np.int64)


def choose_weighted(
    random: np.random.Generator, weights: NDArray[np.float64], *, batch_size: int, count: int
) -> Integers:
    """Draw different numbers one after the other, each time in proportion to the weights of those left.

    Number i comes at time E_i / w_i, with E_i exponential; the first `count` are taken, in this order.

    Args:
        random: source of the numbers.
        weights: of the numbers 0, 1, ..., [size]; a row each [batch, size] also does; 0 is never drawn
            while another is left.
        batch_size: number of rows.
        count: how many in each row, at most size.

    Returns:
        [batch, count].

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.

    Example:
        >>> choose_weighted(np.random.default_rng(0), np.array([0.0, 1.0]), batch_size=2, count=1).tolist()
        [[1], [1]]
    """
    with np.errstate(divide="ignore"):
        times = random.exponential(size=(batch_size, weights.shape[-1])) / weights
    return np.argsort(times, axis=1)[:, :count]
