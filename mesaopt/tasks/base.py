"""The base of all tasks: drawing in double precision, rounding, and building tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Generic, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from mesaopt.config import (
    GeneratedTaskConfig,
    Numbers,
    Split,
    as_arguments,
    changed_settings,
    require_config,
    require_count,
)
from mesaopt.errors import ConfigError, suggest
from mesaopt.tasks.batch import Batch, tokens_from_states
from mesaopt.tasks.random import generator

ConfigT = TypeVar("ConfigT", bound=GeneratedTaskConfig)
BatchT = TypeVar("BatchT", bound=Batch)

Streams = Callable[..., np.random.Generator]
"""Random numbers of one batch: `streams()` is the main stream, `streams("noise")` an independent one."""


class Configured:
    """A task with settings, which is shown as the call that makes it.

    Example:
        >>> from mesaopt.tasks import LinearSystem
        >>> LinearSystem(dim=3)
        LinearSystem(dim=3)
    """

    config: Any
    """The settings."""
    config_type: type[Any] | UnionType
    """The class of the settings."""

    def __repr__(self) -> str:
        kind = type(self.config)
        settings = as_arguments(changed_settings(self.config))
        if self.config_type is not kind:  # it has no settings of its own to begin with
            settings = f"{kind.__name__}({settings})"
        return f"{type(self).__name__}({settings})"


class GeneratedTask(Configured, ABC, Generic[ConfigT, BatchT]):
    """A task whose sequences are made from random numbers: a subclass says how, in :meth:`draw`.

    A batch is a pure function of (seed, split, step). The targets are the states s_2 ... s_{T+1}, and the
    tokens show s_1 ... s_T as `config.token_slots` says (:func:`mesaopt.tasks.tokens_from_states`).

    Args:
        config: settings of the task; the defaults if not given.
        settings: some of them by keyword, instead of a config or to change one: `LinearSystem(dim=4)`.

    Raises:
        TypeError: config is something else, such as the settings of a whole run.
        ConfigError: there is no setting of that name, or a value is out of range.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> class Constant(GeneratedTask[LinearSystemConfig, Batch]):
        ...     batch_type = Batch
        ...
        ...     def draw(self, batch_size, streams):
        ...         dim, length = self.config.dim, self.config.length
        ...         start = torch.from_numpy(streams().random((batch_size, 1, dim)))
        ...         matrices = torch.eye(dim).expand(batch_size, dim, dim)
        ...         return {"states": start.expand(-1, length + 1, -1), "transition": matrices}
        >>> batch = Constant(LinearSystemConfig(dim=2, length=3)).sample(4, seed=0)
        >>> tuple(batch.tokens.shape), batch.tokens.dtype
        ((4, 3, 8), torch.float32)
    """

    config_type: type[GeneratedTaskConfig] | UnionType = GeneratedTaskConfig
    """The class of the settings."""
    batch_type: type[BatchT]
    """The class of the batches."""

    def __init__(self, config: ConfigT | None = None, **settings: Any):
        self.config: ConfigT = choose_settings(self.config_type, config, settings)

    @property
    def scored(self) -> slice:
        """The places along time where a prediction counts, as in :attr:`Batch.scored`."""
        return slice(None)

    @abstractmethod
    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw the tensors of one batch on the CPU, in float64 or complex128.

        Args:
            batch_size: sequences, 1 or more.
            streams: the random numbers of this batch, and nothing else may be random.

        Returns:
            "states" [batch, time + 1, dim], "transition" [batch, hidden, hidden], and the other fields
            of `batch_type` where it has some.
        """

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> BatchT:
        """Draw one batch, a pure function of (seed, split, step) on every device.

        The numbers are always computed in double precision on the CPU, then rounded to `dtype` and moved:
        a float32 batch is the float64 batch rounded, and a GPU sees what a CPU sees.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 to 2**64 - 1.
            step: 0 to 2**64 - 1.
            split: stream to draw from; streams never overlap.
            dtype: floating-point type of the batch, complex for an autoregressive process; torch.float32
                or torch.complex64 if not given.
            device: where the batch is put.

        Returns:
            The batch; states [batch, T + 1, dim], tokens [batch, T, token_dim], targets [batch, T, dim].

        Raises:
            ConfigError: batch_size, seed, step or split is out of range, or states outgrow the dtype.
            ValueError: the dtype is of other numbers.
        """
        config = self.config
        dtype = dtype or (torch.complex64 if config.numbers == "complex" else torch.float32)
        check_sample(config.numbers, batch_size=batch_size, dtype=dtype)
        drawn = self.draw(batch_size, streams_of(config.kind, seed=seed, step=step, split=split))
        tensors = {name: x.to(device=device, dtype=dtype) for name, x in drawn.items()}
        states = tensors["states"]
        if not states.isfinite().all():
            raise ConfigError(
                f"dtype={dtype}: states outgrow it in length={config.length} steps: must be shorter, "
                "or of smaller weights"
            )
        tokens = tokens_from_states(states[:, :-1], config.token_slots)
        return self.batch_type(tokens=tokens, targets=states[:, 1:], scored=self.scored, **tensors)


def choose_settings(kind: type[Any] | UnionType, config: Any, changes: Mapping[str, Any]) -> Any:
    """Return the settings of a task: the given ones, or the defaults of its kind, with some changed."""
    given = kind() if config is None and isinstance(kind, type) else config
    require_config(given, kind, part="task")
    known = [field.name for field in fields(given)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"{name}: is no setting of this task; {suggest(name, known)}")
    return replace(given, **changes) if changes else given


def streams_of(kind: str, *, seed: int, step: int, split: Split) -> Streams:
    """Return the random numbers of one batch.

    Args:
        kind: of the task.
        seed: 0 to 2**64 - 1.
        step: 0 to 2**64 - 1.
        split: a stream of its own.

    Returns:
        A function: without an argument it makes the generator of the main stream, with a name that of
        another, independent stream.

    Example:
        >>> streams = streams_of("linear_system", seed=0, step=7, split="test")
        >>> float(streams().random()) == float(streams("noise").random())
        False
    """
    check_split(split)

    def streams(name: str = "") -> np.random.Generator:
        stream = f"{kind}/{split}/{name}" if name else f"{kind}/{split}"
        return generator(seed, stream, step)

    return streams


def check_split(split: str) -> None:
    """Refuse a split that does not exist."""
    if split not in get_args(Split):
        raise ConfigError(f"split={split!r}: {suggest(str(split), get_args(Split))}")


def check_sample(numbers: Numbers, *, dtype: torch.dtype, **counts: int) -> None:
    """Refuse what no task can sample.

    Args:
        numbers: what the states of the task are made of.
        dtype: asked for.
        counts: how many sequences, under the name of the argument; 1 or more.

    Raises:
        ValueError: a count is less than 1, or the dtype holds other numbers.

    Example:
        >>> check_sample("real", dtype=torch.float32, batch_size=0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: batch_size=0: must be 1 or greater
    """
    for name, value in counts.items():
        require_count(name, value, smallest=1)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype={dtype!r}: must be a torch.dtype")
    fits = dtype.is_complex if numbers == "complex" else dtype.is_floating_point
    if not fits:
        wanted = {
            "real": "torch.float32 or torch.float64",
            "complex": "torch.complex64 or torch.complex128",
        }
        raise ValueError(f"dtype={dtype}: must be {wanted[numbers]}")
