"""Threads that compute the parts of a batch at the same time; results do not depend on their number.

A batch is divided into parts of a fixed size, each part is computed by one thread with one intra-op thread,
and losses and gradients are added in the order of the parts. A part fits into the cache of a core, which is
why this is faster than one thread after another over the whole batch, even with a single worker.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

SMALLEST_PART = 64
"""Sequences in a part of a batch of up to 2048."""
MOST_PARTS = 32
"""Parts of a larger batch: for each, every operation of the model is called once."""
WHOLE_PART = 1024
"""Sequences in a part on a GPU, and in runs of earlier versions."""

T = TypeVar("T")
R = TypeVar("R")


def part_size(batch_size: int) -> int:
    """Give the number of sequences in a part, which decides the last bits of a training.

    Args:
        batch_size: sequences in a batch, 1 or more.

    Returns:
        64, or a 32nd of a batch of more than 2048.

    Example:
        >>> part_size(256), part_size(10_000)
        (64, 313)
    """
    return max(SMALLEST_PART, -(-batch_size // MOST_PARTS))


@dataclass(frozen=True)
class Workers:
    """A pool of threads, or the calling thread alone.

    Example:
        >>> Workers().map(lambda x: x * x, range(4))
        [0, 1, 4, 9]
    """

    pool: ThreadPoolExecutor | None = None
    """None: the calling thread computes everything."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call a function on every item.

        Args:
            function: called by several threads at once.
            items: taken by the calling thread.

        Returns:
            The results, in the order of the items.

        Raises:
            Exception: what the function raised for the first item that it failed on.
        """
        if self.pool is None:
            return [function(item) for item in items]
        futures = [self.pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def later(self, function: Callable[..., R], *args: Any) -> Callable[[], R]:
        """Begin a call that is needed later.

        Args:
            function: to call.
            *args: its arguments.

        Returns:
            A function that waits for the result and returns it. With the calling thread alone, it is the
            one that makes the call.
        """
        if self.pool is None:
            return lambda: function(*args)
        future: Future[R] = self.pool.submit(function, *args)
        return future.result


CALLING_THREAD = Workers()
"""No pool: the calling thread computes everything."""


@contextlib.contextmanager
def training_workers(count: int) -> Generator[Workers]:
    """Open a pool of threads, each of which computes with one intra-op thread.

    Args:
        count: of the threads, 1 or more; with 1 the calling thread computes everything.

    Yields:
        The workers. Meanwhile the calling thread computes with one intra-op thread, too.
    """
    with num_threads(1):
        if count == 1:
            yield CALLING_THREAD
            return
        with ThreadPoolExecutor(count, "mesaopt", torch.set_num_threads, (1,)) as pool:
            yield Workers(pool)


@contextlib.contextmanager
def num_threads(threads: int) -> Generator[None]:
    """Compute with a number of intra-op threads, since sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
