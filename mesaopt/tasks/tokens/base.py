"""The base of the tasks on tokens."""

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar, cast

import torch

from mesaopt.config import TokenTaskConfig, require_config, require_count
from mesaopt.errors import ConfigError, suggest
from mesaopt.tasks.base import Streams, streams_of
from mesaopt.tasks.batch import Split
from mesaopt.tasks.tokens.batch import TokenBatch

ConfigT = TypeVar("ConfigT", bound=TokenTaskConfig)


class TokenTask(ABC, Generic[ConfigT]):
    """A task whose batches are tokens: a subclass says how they are made, in :meth:`draw`.

    A batch is a pure function of (seed, split, step).

    Args:
        config: settings of the task; the defaults if not given.
        settings: some of them by keyword, instead of a config or to change one: `Copying(longest=8)`.

    Raises:
        TypeError: config is something else, such as the settings of a whole run.
        ConfigError: there is no setting of that name, or a value is out of range.

    Example:
        >>> from mesaopt.config import CopyingConfig
        >>> class Zeros(TokenTask[CopyingConfig]):
        ...     config_type = CopyingConfig
        ...
        ...     def draw(self, batch_size, streams):
        ...         tokens = torch.zeros(batch_size, self.config.length, dtype=torch.int64)
        ...         return TokenBatch(tokens, tokens)
        >>> Zeros(longest=6).sample(2, seed=0).tokens.shape
        torch.Size([2, 12])
    """

    config_type: type[TokenTaskConfig]
    """The class of the settings."""

    def __init__(self, config: ConfigT | None = None, **settings: Any):
        given = cast(ConfigT, self.config_type() if config is None else config)
        require_config(given, self.config_type, part="task")
        for name in settings:
            if name not in (known := [field.name for field in fields(given)]):
                raise ConfigError(f"{name}: is no setting of this task; {suggest(name, known)}")
        self.config: ConfigT = replace(given, **settings) if settings else given

    @abstractmethod
    def draw(self, batch_size: int, streams: Streams) -> TokenBatch:
        """Draw one batch on the CPU.

        Args:
            batch_size: sequences, 1 or more.
            streams: the random numbers of this batch, and nothing else may be random.

        Returns:
            The batch; tokens and targets are of torch.int64.
        """

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> TokenBatch:
        """Draw one batch, a pure function of (seed, split, step) on every device.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 to 2**64 - 1.
            step: 0 to 2**64 - 1.
            split: stream to draw from; streams never overlap.
            device: where the batch is put.

        Returns:
            The batch.

        Raises:
            ConfigError: batch_size, seed, step or split is out of range.
        """
        require_count("batch_size", batch_size, smallest=1)
        kind = self.config.kind
        streams = streams_of(kind, seed=seed, step=step, split=split)
        return self.draw(batch_size, streams).to(device)
