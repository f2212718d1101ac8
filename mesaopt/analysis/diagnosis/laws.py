"""Where a diagnosis looks: fresh systems, the same ones rescaled, and tasks whose answer is a model's."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.tuning import InputMap
from mesaopt.config import LinearSystemConfig, stacked
from mesaopt.tasks import (
    Batch,
    LinearSystem,
    PartiallyObserved,
    Split,
    Task,
    make_task,
    tokens_from_states,
)

HISTORY = 5
"""Observations side by side that algorithms see of a partially observed system: with 3 of 5 coordinates
each, 15 hidden ones are determined; two more average over noise."""

LinearTask = LinearSystem | PartiallyObserved


@dataclass(frozen=True)
class Law:
    """A law of sequences on which a model is held against algorithms."""

    name: str
    task: Task
    counts: bool
    """Whether the verdict asks for agreement here; if not, it is shown only."""


@dataclass(frozen=True)
class Problem:
    """What a task poses to an algorithm that knows nothing but the context."""

    task: LinearTask
    """With a new system in every sequence, even where the model was trained on one for all."""
    inputs: InputMap | None
    """From observations to regression inputs; None: the states themselves."""
    taught: LinearTask | None
    """The task of the one fixed system, where the model was trained on that."""


def problem_of(task: Task) -> Problem:
    """Say what an in-context algorithm has to solve, and with which inputs.

    Raises:
        ValueError: the task is not covered.
    """
    if isinstance(task, LinearSystem):
        if task.config.transition == "fixed":
            fresh = LinearSystem(replace(task.config, transition="orthogonal"))
            return Problem(fresh, None, taught=task)
        return Problem(task, None, taught=None)
    if isinstance(task, PartiallyObserved):
        slots = stacked(HISTORY)
        return Problem(task, lambda states: tokens_from_states(states, slots), taught=None)
    kind = getattr(getattr(task, "config", None), "kind", type(task).__name__)
    raise ValueError(
        f"task={kind!r}: must be 'linear_system' or 'partially_observed', whose "
        "in-context problem is a linear regression on what is observed"
    )


def other_laws(task: LinearTask) -> list[Law]:
    """List laws the model was not trained on, under which an algorithm stays what it is.

    States times c are those of the same system started c times as far out (with c times the noise); states
    times 0.95^t are those of the system 0.95 W, whose eigenvalues lie inside the unit circle. A model that
    has learned an algorithm goes on following it, with the step sizes and ridges it has; one that has
    learned what its training sequences look like does not.

    Beyond that, limits built into a model show: streams clipped just outside the training range,
    encodings of positions never seen. Such laws are shown, and do not count.
    """
    config = task.config
    longer = replace(config, length=3 * config.length // 2)
    laws = [
        Law("half as large", Rescaled(task, 0.5), counts=True),
        Law("a quarter larger", Rescaled(task, 1.25), counts=True),
        Law("damped, 0.95 W", Rescaled(task, 1.0, decay=0.95), counts=True),
        Law("half as large again", Rescaled(task, 1.5), counts=False),
        Law("half as long again", make_task(longer), counts=False),
    ]
    if isinstance(config, LinearSystemConfig):
        laws.append(_other_spectrum(config))
    return laws


def _other_spectrum(config: LinearSystemConfig) -> Law:
    if config.transition == "contracting":
        other = replace(config, transition="orthogonal", state_clip=10.0)
        return Law("orthogonal W", LinearSystem(other), counts=False)
    other = replace(config, transition="contracting", state_clip=2.0)
    return Law("contracting W", LinearSystem(other), counts=False)


@dataclass(frozen=True)
class Rescaled:
    """A task whose states are multiplied by scale * decay^(t - 1), t = 1, 2, ...

    Example:
        >>> task = LinearSystem(LinearSystemConfig(dim=2, length=3))
        >>> states = Rescaled(task, 2.0, decay=0.5).sample(1, seed=0).states
        >>> ratio = states / task.sample(1, seed=0).states
        >>> ratio[0, :, 0].tolist()
        [2.0, 1.0, 0.5, 0.25]
    """

    task: LinearTask
    scale: float
    decay: float = 1.0

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Draw one batch."""
        batch = self.task.sample(batch_size, seed=seed, step=step, split=split, device=device)
        times = torch.arange(batch.states.shape[1], device=device)
        states = batch.states * (self.scale * self.decay**times)[:, None]
        tokens = tokens_from_states(states[:, :-1], self.task.config.token_slots)
        return replace(batch, tokens=tokens, targets=states[:, 1:], states=states)


class Imitation:
    """A task with the sequences of another, in which what is to be predicted is what a model says.

    Whatever fits a predictor to a task then fits it to the model. Batches are kept: a model is asked once.

    Args:
        task: where the sequences come from.
        predict: the model.

    Example:
        >>> task = LinearSystem(LinearSystemConfig(dim=2, length=3))
        >>> twice = Imitation(task, lambda batch: 2 * batch.observed)
        >>> batch = twice.sample(1, seed=0)
        >>> bool((batch.targets == 2 * batch.observed).all())
        True
    """

    def __init__(self, task: Task, predict: Predictor):
        self._task, self._predict = task, predict
        self._kept: dict[tuple[int, int, int, Split], Batch] = {}

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Draw one batch, or return it if it has been drawn."""
        key = (batch_size, seed, step, split)
        if key not in self._kept:
            batch = self._task.sample(batch_size, seed=seed, step=step, split=split, device=device)
            self._kept[key] = replace(batch, targets=self._predict(batch))
        return self._kept[key]


def predictor_of(model: nn.Module, task: LinearTask) -> Predictor:
    """Make a predictor of a module, after asking it once whether it is one.

    Raises:
        ValueError: what it gives is no prediction at every position, is not finite, or depends on tokens
            that come later.
    """

    @torch.no_grad()
    def predict(batch: Batch) -> Tensor:
        return model(batch.tokens)

    _check_predictor(predict, task.sample(8, seed=0, split="validation"))
    return predict


def _check_predictor(predict: Predictor, batch: Batch) -> None:
    found = predict(batch)
    if found.shape != batch.targets.shape:
        wanted = f"must be {tuple(batch.targets.shape)}, that of the next states"
        raise ValueError(f"model: its output has shape {tuple(found.shape)}: {wanted}")
    if not found.isfinite().all():
        raise ValueError("model: its output is not finite")
    half = batch.tokens.shape[1] // 2
    tokens = batch.tokens.clone()
    tokens[:, half:] = -tokens[:, half:]
    change = (predict(replace(batch, tokens=tokens)) - found)[:, :half].abs().max()
    if change > 1e-3 * found.abs().max():  # rounding moves float32 by 1e-6
        raise ValueError("model: its predictions depend on later tokens: must be causal")


def batches_of(task: Task, num_sequences: int, seed: int, split: Split) -> Iterator[Batch]:
    """Draw whole batches of 256."""
    for step in range(-(-num_sequences // 256)):
        yield task.sample(256, seed=seed, step=step, split=split)
