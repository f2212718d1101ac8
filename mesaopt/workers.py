"""Threads that compute batches, or parts of one, at the same time; results do not depend on their number.

A batch of a training is divided into parts of a fixed size, each part is computed by one thread with one
intra-op thread, and losses and gradients are added in the order of the parts. A part fits into the cache
of a core, which is why this is faster than one thread after another over the whole batch, even with a
single worker. Analyses compute their batches like this inside of :func:`parallel`.
"""

import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from mesaopt.errors import ConfigError

__all__ = ["Workers", "parallel"]


SMALLEST_PART = 64
"""Sequences in a part of a batch of up to 2048."""
PART_TOKENS = 4096
"""Tokens in a part of a batch for a language model."""
MOST_PARTS = 32
"""Parts of a larger batch: for each, every operation of the model is called once."""
WHOLE_PART = 1024
"""Sequences in a part on a GPU, and in runs of earlier versions."""


def part_size(batch_size: int, *, tokens: int | None = None) -> int:
    """Give the number of sequences in a part, which decides the last bits of a training.

    Args:
        batch_size: sequences in a batch, 1 or more.
        tokens: in a sequence of a language model, whose layers are wide; None for other models.

    Returns:
        64, or a 32nd of a batch of more than 2048. Of a language model, as many as have 4096 tokens, from
        1 to 64.

    Example:
        >>> part_size(256), part_size(10_000), part_size(32, tokens=256)
        (64, 313, 16)
    """
    if tokens is not None:
        return max(1, min(SMALLEST_PART, PART_TOKENS // tokens))
    return max(SMALLEST_PART, -(-batch_size // MOST_PARTS))


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workers:
    """A pool of threads, or the calling thread alone.

    Example:
        >>> list(Workers().map(lambda x: x * x, range(4)))
        [0, 1, 4, 9]
    """

    pool: ThreadPoolExecutor | None = None
    """None: the calling thread computes everything."""
    count: int = 1
    """Number of the threads."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Call a function on every item, at most two items a thread ahead of the result that is taken.

        Args:
            function: called by several threads at once, in the modes of autograd and the context variables
                of the calling thread. Under modes of torch that belong to one thread, such as autocast and
                torch.func, the calling thread makes the calls.
            items: taken by the calling thread.

        Returns:
            The results, in the order of the items.

        Raises:
            Exception: what the function raised for the first item that it failed on.
        """
        if self.pool is None:
            yield from map(function, items)
            return
        if _has_modes():
            for item in items:
                with num_threads(1):
                    result = function(item)
                yield result
            return
        function, waiting = _as_here(function), deque[Future[R]]()
        try:
            for item in items:
                waiting.append(self.pool.submit(function, item))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
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
        future: Future[R] = self.pool.submit(_as_here(function), *args)
        return future.result


CALLING_THREAD = Workers()
"""No pool: the calling thread computes everything."""
_CURRENT = contextvars.ContextVar("workers", default=CALLING_THREAD)


def current_workers() -> Workers:
    """Return the workers of the innermost :func:`parallel`; the calling thread outside of one.

    Example:
        >>> current_workers().count
        1
    """
    return _CURRENT.get()


@contextlib.contextmanager
def parallel(count: int | None = None) -> Generator[Workers]:
    """Let the analyses of a block compute several batches at the same time.

    Every batch is computed by one thread with one intra-op thread, and sums are formed in the order of the
    batches: the number of threads changes no bit. What is not made of batches is computed as ever, with
    torch's own threads. Predictors and other functions given to an analysis are called by several threads
    at once; one that draws random numbers or keeps a state needs a count of 1, or no such block.

    Args:
        count: of the threads; as many as torch computes with if not given.

    Yields:
        The workers.

    Raises:
        ConfigError: count is less than 1.

    Example:
        >>> from mesaopt.analysis import in_context_loss
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> zero = lambda batch: torch.zeros_like(batch.targets)
        >>> with parallel(2):
        ...     loss = in_context_loss({"zero": zero}, LinearSystem(LinearSystemConfig()))["zero"]
        >>> round(loss.mean, 1)
        1.7
    """
    count = torch.get_num_threads() if count is None else count
    if count < 1:
        raise ConfigError(f"count={count}: must be 1 or greater")
    with num_threads(torch.get_num_threads()), _pool(count) as workers:
        before = _CURRENT.set(workers)
        try:
            yield workers
        finally:
            _CURRENT.reset(before)


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
        with _pool(count) as workers:
            yield workers


@contextlib.contextmanager
def num_threads(threads: int) -> Generator[None]:
    """Compute with a number of intra-op threads, since sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _pool(count: int) -> Generator[Workers]:
    with ThreadPoolExecutor(count, "mesaopt", torch.set_num_threads, (1,)) as pool:
        yield Workers(pool, count)


def _as_here(function: Callable[..., R]) -> Callable[..., R]:
    """Let another thread call a function in this one's modes and context; it has no workers of its own."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    context = contextvars.copy_context()
    context.run(_CURRENT.set, CALLING_THREAD)

    def call(*args: Any) -> R:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return context.copy().run(function, *args)

    return call


def _has_modes() -> bool:
    """Say whether this thread is under modes of torch that another one would not be under."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    )
