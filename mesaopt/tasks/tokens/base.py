"""The base of the tasks on tokens."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from mesaopt.config import ContinuousMQARConfig, Split, TokenTaskConfig, require_count
from mesaopt.tasks.base import Configured, Streams, check_split, choose_settings, streams_of
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.tokens.drawing import DrawnSequences
from mesaopt.tasks.tokens.order import shuffled

ConfigT = TypeVar("ConfigT", bound=TokenTaskConfig | ContinuousMQARConfig)
BLOCK = 1000
"""Sequences of a limited number that are drawn at once."""


class TokenTask(Configured, ABC, Generic[ConfigT]):
    """A task whose batches are tokens: a subclass says which, in :meth:`sequences`.

    Args:
        config: settings of the task; the defaults if not given.
        settings: some of them by keyword, instead of a config or to change one: `Copying(longest=8)`.

    Raises:
        TypeError: config is something else, such as the settings of a whole run.
        ConfigError: there is no setting of that name, or a value is out of range.
    """

    def __init__(self, config: ConfigT | None = None, **settings: Any):
        self.config: ConfigT = choose_settings(self.config_type, config, settings)

    def variants(self, split: Split) -> Sequence[ConfigT]:
        """Return the settings that the batches of a split are drawn with, one or several in turn.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The settings of the task, or changed ones, such as longer sequences in tests.
        """
        return (self.config,)

    @abstractmethod
    def sequences(self, batch_size: int, *, seed: int, number: int, split: Split) -> DrawnSequences:
        """Return the sequences of one batch.

        Args:
            batch_size: sequences, 1 or more.
            seed: of the sequences.
            number: of the batch, 0 for the first.
            split: "train", "validation" or "test".

        Returns:
            The sequences, a pure function of the arguments.
        """

    def batch(self, drawn: DrawnSequences) -> Batch:
        """Make a batch of sequences as they were drawn.

        Args:
            drawn: the sequences.

        Returns:
            The batch, with the targets at the scored positions alone.
        """
        return drawn.batch()

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> Batch:
        """Draw one batch, a pure function of (seed, split, step, rank) on every device.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 to 2**64 - 1.
            step: 0 to 2**64 - 1.
            split: stream to draw from; streams never overlap.
            device: where the batch is put.
            rank: of the process, where several draw batches of the same step.
            ranks: number of these processes; batch s of rank r is batch s * ranks + r of one alone.

        Returns:
            The batch.

        Raises:
            ConfigError: batch_size, seed, step, split or rank is out of range.
        """
        require_count("batch_size", batch_size, smallest=1)
        require_count("seed", seed, smallest=0)
        require_count("step", step, smallest=0)
        require_count("ranks", ranks, smallest=1)
        require_count("rank", rank, smallest=0, largest=ranks - 1)
        check_split(split)
        number = int(step) * int(ranks) + int(rank)
        drawn = self.sequences(batch_size, seed=int(seed), number=number, split=split)
        return self.batch(drawn).to(device)


class SyntheticTask(TokenTask[ConfigT]):
    """A task whose sequences are made from random numbers: a subclass says how, in :meth:`draw`.

    Where the settings have a number of `examples`, there are so many different training sequences. They are
    drawn when the first is asked for, kept in memory, and shown in another order in every epoch. Sequences
    for validation and tests are always new.

    Args:
        config: settings of the task; the defaults if not given.
        settings: some of them by keyword.

    Example:
        >>> from mesaopt.config import ParityConfig
        >>> class Anything(SyntheticTask[ParityConfig]):
        ...     config_type = ParityConfig
        ...
        ...     def draw(self, config, batch_size, streams):
        ...         tokens = streams().integers(0, 3, (batch_size, config.length))
        ...         return DrawnSequences(tokens, tokens)
        >>> Anything(longest=7).sample(2, seed=0).tokens.shape
        torch.Size([2, 6])
    """

    def __init__(self, config: ConfigT | None = None, **settings: Any):
        super().__init__(config, **settings)
        self._kept: dict[tuple[int, int], DrawnSequences] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def draw(self, config: ConfigT, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw sequences.

        Args:
            config: one of the :meth:`variants`.
            batch_size: sequences, 1 or more.
            streams: the random numbers of this batch, and nothing else may be random.

        Returns:
            The sequences.
        """

    def sequences(self, batch_size: int, *, seed: int, number: int, split: Split) -> DrawnSequences:
        """Draw new sequences, or take some of a limited number; see :meth:`TokenTask.sequences`."""
        streams = streams_of(self.config.kind, seed=seed, step=number, split=split)
        variants = self.variants(split)
        given = (getattr(variant, "examples", None) for variant in variants)
        sizes = [size for size in given if size is not None]
        if split != "train" or not sizes:
            return self.draw(variants[number % len(variants)], batch_size, streams)
        stream = f"{self.config.kind}/order"
        _, group, which = shuffled(number, batch_size, sizes, seed=seed, stream=stream)
        return self._examples(seed, group, variants[group], sizes[group]).rows(which)

    def _examples(self, seed: int, group: int, config: ConfigT, size: int) -> DrawnSequences:
        """Draw all sequences of a limited number, once, block by block."""
        with self._lock:
            if (seed, group) not in self._kept:
                parts = []
                for start in range(0, size, BLOCK):
                    streams = _examples_of(config.kind, seed, group, start)
                    parts.append(self.draw(config, min(BLOCK, size - start), streams).small())
                self._kept[seed, group] = DrawnSequences.join(parts)
            return self._kept[seed, group]


def _examples_of(kind: str, seed: int, group: int, start: int) -> Streams:
    """Return the random numbers of one block of a limited number of sequences."""
    streams = streams_of(kind, seed=seed, step=start, split="train")
    return lambda name="": streams(f"examples/{group}/{name}")


def num_settings(task: object, split: Split) -> int:
    """Count the settings that the batches of a split are of in turn; 1 where a task is not on tokens."""
    return len(task.variants(split)) if isinstance(task, TokenTask) else 1
