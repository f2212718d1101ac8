"""Tasks of the user's own: tried out before they are used, and checked batch by batch."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mesaopt.config import OwnTaskConfig, Split
from mesaopt.errors import ConfigError
from mesaopt.tasks.batch import Batch, Task

_FEW = 8  # sequences with which a task is tried out
_SIGNATURE = "sample(batch_size, *, seed, step, split)"


class OwnTask:
    """A task of your own as the library uses it: batches are checked and rounded.

    Numbers in double precision are rounded to single precision, as those of the library's tasks are.

    Args:
        config: of the task, with the object in it.

    Raises:
        ConfigError: the object is missing.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> config = own_task(LinearSystem(LinearSystemConfig(dim=2, length=5)))
        >>> OwnTask(config).sample(3, seed=0).tokens.shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, config: OwnTaskConfig):
        if config.task is None:
            raise ConfigError(
                f"task={config.name!r}: is a task of your own, whose code no file holds: give it again "
                "(task=..., or --task module:Class on the command line)"
            )
        self.config = config

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
    ) -> Batch:
        """Draw one batch.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: "train", "validation" or "test".

        Returns:
            The batch.

        Raises:
            ConfigError: what the task returns is no batch, or one of other sizes than the first.
        """
        batch = _draw(self.config.task, batch_size, seed=seed, step=step, split=split)
        config = self.config
        for name, dim in (("tokens", config.token_dim), ("targets", config.dim)):
            shape, wanted = tuple(getattr(batch, name).shape), (batch_size, config.length, dim)
            if shape != wanted:
                where = f"task.sample(step={step}, split={split!r})"
                raise ConfigError(f"{where}: {name} has shape {shape}: must be {wanted}, as before")
        return batch


def own_task(
    task: Task,
    *,
    name: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    data: Literal["fresh", "fixed"] = "fresh",
) -> OwnTaskConfig:
    """Try a task of your own out, and make the settings that stand for it.

    A task is any object with `sample(batch_size, *, seed, step, split) -> Batch`, a pure function: the same
    arguments give the same batch, whatever was drawn before and in whichever thread. A generator made of
    the seed, the split and the step does that, such as :func:`mesaopt.tasks.generator`.

    Args:
        task: the object.
        name: "module:Class", if it can be made from there; the name of its class if not given.
        keywords: arguments that `Class` was called with.
        data: "fixed" if all steps may have the same sequences, as in :class:`mesaopt.config.TrainConfig`.

    Returns:
        The settings, for a :class:`mesaopt.config.RunConfig`.

    Raises:
        ConfigError: `sample` is missing or of other arguments, or what it returns is no batch, is not
            finite, is another one when it is drawn again, or is the same at another step or split.

    Example:
        >>> class Sines:
        ...     def sample(self, batch_size, *, seed, step, split):
        ...         random = generator(seed, f"sines/{split}", step)
        ...         phase = torch.from_numpy(random.uniform(0, 6.28, (batch_size, 1, 1)))
        ...         x = torch.sin(phase + 0.3 * torch.arange(10.0)[:, None])
        ...         return Batch(tokens=x[:, :-1], targets=x[:, 1:])
        >>> from mesaopt.tasks import generator
        >>> own_task(Sines()).length
        9
    """
    _check_signature(task)
    first, later = _pure_batches(task)
    same = "gives the sequences of step=0, split='train': must be others"
    if data == "fresh" and _equal(first, later):
        hint = "or train.data='fixed', for the same ones at every step"
        raise ConfigError(f"task.sample(step=1): {same}, {hint}")
    if _equal(first, _draw(task, _FEW, split="test")):
        raise ConfigError(f"task.sample(split='test'): {same}, on which a model is not trained")
    config = OwnTaskConfig(
        name=type(task).__name__ if name is None else name,
        keywords=dict(keywords or {}),
        numbers="complex" if first.tokens.is_complex() else "real",
        token_dim=first.tokens.shape[2],
        dim=first.targets.shape[2],
        length=first.tokens.shape[1],
        first_batch=(*_characterise(first.tokens), *_characterise(first.targets)),
        task=task,
    )
    OwnTask(config).sample(_FEW + 1, seed=0, split="test")  # of the same sizes
    return config


def _check_signature(task: Any) -> None:
    """Refuse what has no `sample` with the arguments that are used."""
    sample = getattr(task, "sample", None)
    if isinstance(task, type) or not callable(sample):
        what = (
            f"the class {task.__name__}"
            if isinstance(task, type)
            else f"of type {type(task).__name__}"
        )
        raise ConfigError(f"task: is {what}: must be an object with {_SIGNATURE}")
    try:
        inspect.signature(sample).bind(1, seed=0, step=0, split="train")
    except TypeError as error:
        raise ConfigError(f"task.sample: {error}: must be {_SIGNATURE}") from None


def _pure_batches(task: Any) -> tuple[Batch, Batch]:
    """Draw the batches of two steps, and refuse a task whose batches depend on more than the arguments."""
    before = _global_random()
    first, later, again = (_draw(task, _FEW), _draw(task, _FEW, step=1), _draw(task, _FEW))
    if _global_random() != before:
        raise ConfigError(
            "task.sample: uses the global random numbers of torch or NumPy, which several threads "
            "share: must make a generator of its own, such as mesaopt.tasks.generator(seed, split, step)"
        )
    if not _equal(first, again):
        raise ConfigError(
            "task.sample: gives another batch for the same seed, step and split: must be a function of "
            "these, such as by mesaopt.tasks.generator(seed, split, step)"
        )
    return first, later


def _global_random() -> tuple[Any, ...]:
    """Read the states of the generators that all threads share."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().tolist(), repr(numpy)


def _equal(one: Batch, other: Batch) -> bool:
    return one.tokens.equal(other.tokens) and one.targets.equal(other.targets)


@torch.no_grad()
def _draw(
    task: Any, batch_size: int, *, seed: int = 0, step: int = 0, split: Split = "train"
) -> Batch:
    """Draw a batch, check it and round it to single precision."""
    batch = task.sample(batch_size, seed=seed, step=step, split=split)
    if not isinstance(batch, Batch):
        raise ConfigError(
            f"task.sample: returns something of type {type(batch).__name__}: must be a mesaopt.tasks.Batch"
        )
    for name in ("tokens", "targets"):
        _check_tensor(name, getattr(batch, name))
    if batch.tokens.shape[1] != batch.targets.shape[1]:
        lengths = f"{batch.targets.shape[1]} positions, tokens {batch.tokens.shape[1]}"
        raise ConfigError(f"task.sample: targets has {lengths}: must be the same")
    for name, tensor in batch.tensors.items():
        if tensor.shape[:1] != (batch_size,):
            shape, wanted = tuple(tensor.shape), f"must begin with batch_size={batch_size}"
            raise ConfigError(f"task.sample: {name} has shape {shape}: {wanted}")
        if not tensor.isfinite().all():
            raise ConfigError(
                f"task.sample: {name} is not finite at step={step}, split={split!r}: must be"
            )
    if not isinstance(batch.scored, slice) or len(batch.positions) == 0:
        raise ConfigError(
            f"task.sample: scored={batch.scored!r}: must be a slice of one position or more"
        )
    return _rounded(batch)


def _check_tensor(name: str, value: Any) -> None:
    """Refuse tokens and targets that are no tensors of numbers with three axes."""
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"task.sample: {name} is of type {type(value).__name__}: must be a tensor"
        )
    if value.dim() != 3 or 0 in value.shape:
        shape = tuple(value.shape)
        raise ConfigError(f"task.sample: {name} has shape {shape}: must be [batch, time, width]")
    if not (value.is_floating_point() or value.is_complex()):
        wanted = "must be of floating-point or complex numbers"
        raise ConfigError(f"task.sample: {name} has {value.dtype}: {wanted}")


def _rounded(batch: Batch) -> Batch:
    """Round double precision to single precision."""
    single = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    tensors = {n: x.to(single[x.dtype]) for n, x in batch.tensors.items() if x.dtype in single}
    return replace(batch, **tensors) if tensors else batch  # type: ignore[bad-argument-type]


def _characterise(x: Tensor) -> tuple[float, float, float]:
    """Compute three numbers of a tensor: the logarithm of its size, and two sums with signs."""
    values = torch.view_as_real(x) if x.is_complex() else x
    flat = values.detach().cpu().double().flatten()
    size = flat.square().mean().sqrt().item()
    if size == 0:
        return (0.0, 0.0, 0.0)
    places = torch.arange(len(flat), dtype=torch.float64)
    waves = (torch.cos(places), torch.sin(places))
    cosine, sine = ((flat @ wave).item() / (size * len(flat) ** 0.5) for wave in waves)
    return (round(math.log(size), 6), round(cosine, 6), round(sine, 6))
