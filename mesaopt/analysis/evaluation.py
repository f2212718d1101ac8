"""The sequences on which an analysis is made."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from mesaopt.config import Split, require_count
from mesaopt.progress import AnyProgress, Progress, reporting
from mesaopt.tasks import Batch
from mesaopt.tasks.base import check_split
from mesaopt.tasks.tokens.base import num_settings
from mesaopt.workers import current_workers

EVALUATION_BATCH = 256
"""Sequences in one batch of an evaluation; evaluations of any size draw whole batches."""

R = TypeVar("R")
B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)


@runtime_checkable
class Source(Protocol[B_co]):
    """A task whose batches are of a known kind."""

    def sample(self, batch_size: int, *, seed: int, step: int, split: Split) -> B_co:
        """Draw one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The number, seed and split of the sequences that an analysis draws.

    The same evaluation draws the same sequences from a task, whatever it is used for.

    Args:
        num_sequences: rounded up to whole batches of 256, 1 or more.
        seed: of the sequences.
        split: "test", or "validation" to fit or to choose something.
        progress: a bar, nothing, or a function of the number of finished batches: see
            :data:`mesaopt.progress.AnyProgress`.

    Raises:
        ConfigError: num_sequences or seed is no whole number or too small, or there is no such split.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(length=5))
        >>> evaluation = Evaluation(num_sequences=300)
        >>> [len(batch.states) for batch in evaluation.batches(task)]
        [256, 256]
    """

    num_sequences: int = 2560
    """Number of sequences, before it is rounded up to whole batches."""
    seed: int = 0
    """Seed of the sequences."""
    split: Split = "test"
    """Split of the task that they are drawn from."""
    progress: AnyProgress = True
    """A bar where the analysis is longer, nothing, or a function to be called with finished batches."""

    def __post_init__(self) -> None:
        require_count("num_sequences", self.num_sequences, smallest=1)
        require_count("seed", self.seed, smallest=0)
        check_split(self.split)

    @property
    def num_batches(self) -> int:
        """Number of batches of 256 sequences."""
        return -(-self.num_sequences // EVALUATION_BATCH)

    def even(self, task: object) -> "Evaluation":
        """Round up the number of sequences, so that every setting that a task is tested with has as many.

        Args:
            task: source of the sequences, whose batches are of its settings in turn.

        Returns:
            The evaluation itself where the task has one setting.

        Example:
            >>> from mesaopt.tasks import ContinuousMQAR
            >>> Evaluation(num_sequences=600).even(ContinuousMQAR(test_on=(4, 16))).num_sequences
            1024
        """
        settings = num_settings(task, self.split)
        each = settings * EVALUATION_BATCH
        count = -(-self.num_sequences // each) * each
        return self if settings == 1 else replace(self, num_sequences=count)

    def batches(self, task: Source[B]) -> Iterator[B]:
        """Draw the sequences, batch by batch, and report each batch that has been used.

        Args:
            task: source of the sequences.

        Returns:
            The batches, each drawn when it is asked for.
        """
        for step in range(self.num_batches):
            yield self._draw(task, step)
            self._report(step + 1)

    def map(self, task: Source[B], function: Callable[[B], R]) -> Iterator[R]:
        """Draw the sequences and call a function on every batch; several at once in `workers.parallel`.

        Args:
            task: source of the sequences.
            function: of a batch.

        Returns:
            Its results, in the order of the batches. Each batch is reported once its result was used.
        """

        def compute(step: int) -> R:
            return function(self._draw(task, step))

        results = current_workers().map(compute, range(self.num_batches))
        for done, result in enumerate(results, start=1):
            yield result
            self._report(done)

    @contextlib.contextmanager
    def reported(self, stage: str) -> Generator["Evaluation"]:
        """Give the same evaluation, whose progress is reported as long as this lasts.

        Args:
            stage: what is computed.

        Yields:
            The evaluation whose batches are reported.
        """
        with reporting(self.progress, stage) as report:
            yield replace(self, progress=lambda batches: report(batches.done, batches.total))

    def _draw(self, task: Source[B], step: int) -> B:
        return task.sample(EVALUATION_BATCH, seed=self.seed, step=step, split=self.split)

    def _report(self, done: int) -> None:
        if callable(self.progress):
            self.progress(Progress(done, self.num_batches))
