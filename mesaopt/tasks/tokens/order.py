"""The order in which a limited number of sequences is shown, as a pure function of (seed, step)."""

import functools
from collections.abc import Sequence

import numpy as np

from mesaopt.tasks.random import generator
from mesaopt.tasks.tokens.drawing import Integers


def shuffled(
    number: int, batch_size: int, sizes: Sequence[int], *, seed: int, stream: str
) -> tuple[int, int, Integers]:
    """Say which sequences are in a batch, where there are several groups of sequences.

    An epoch shows each sequence at most once: every group is shuffled and cut into batches, and the
    batches of all groups are shuffled. A rest of a group that fills no batch is left out, another one in
    every epoch. A group smaller than a batch makes one batch, in which its sequences come several times.

    Args:
        number: of the batch, 0 for the first one of the training.
        batch_size: sequences in a batch.
        sizes: number of sequences in each group.
        seed: of the order.
        stream: name of the order.

    Returns:
        The epoch, the group, and which of its sequences [batch_size].

    Example:
        >>> epoch, group, which = shuffled(5, 2, [4, 6], seed=0, stream="demo")
        >>> seen = [shuffled(number, 2, [4, 6], seed=0, stream="demo")[1:] for number in range(5)]
        >>> epoch, sorted(int(i) for group, which in seen if group == 1 for i in which)
        (1, [0, 1, 2, 3, 4, 5])
    """
    batches = np.array([max(1, size // batch_size) for size in sizes])
    epoch, place = divmod(number, int(batches.sum()))
    if len(sizes) > 1:
        place = int(_permutation(int(batches.sum()), seed, f"{stream}/batches", epoch)[place])
    ends = batches.cumsum()
    group = int(np.searchsorted(ends, place, side="right"))
    start = (place - int(ends[group] - batches[group])) * batch_size
    order = _permutation(sizes[group], seed, f"{stream}/{group}", epoch)
    return epoch, group, np.take(order, np.arange(start, start + batch_size), mode="wrap")


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: int, stream: str, epoch: int) -> Integers:
    """Shuffle the numbers below `size` for one epoch."""
    order = generator(seed, stream, epoch).permutation(size)
    order.flags.writeable = False  # it is shared
    return order
