"""Distribution shifts: sequences unlike those of training, on which an algorithm remains the same."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from mesaopt.analysis.diagnosis.model_target import few_sequences
from mesaopt.analysis.diagnosis.regression import LinearTask
from mesaopt.analysis.in_context import Predictor
from mesaopt.config import LinearSystemConfig
from mesaopt.tasks import (
    Batch,
    LinearSystem,
    PartiallyObservedBatch,
    Split,
    Task,
    make_task,
    tokens_from_states,
)


@dataclass(frozen=True)
class DistributionShift:
    """A distribution of sequences on which a model is compared with algorithms."""

    name: str
    """The change from the training distribution, in words."""
    task: Task
    """Source of the sequences."""
    counts: bool
    """Whether the verdict asks for agreement here; otherwise the agreement is only shown."""


def distribution_shifts(task: LinearTask) -> list[DistributionShift]:
    """List distributions that the model was not trained on.

    States times c are those of the same system with an initial state c times as large (and c times the
    noise). States times 0.95^t are those of the system 0.95 W, whose eigenvalues lie inside the unit
    circle. A model that has learned an algorithm follows it there too, with the same step sizes and ridges.
    A model that has learned the look of its training sequences does not.

    Larger changes show limits built into a model: streams clipped just outside the training range,
    encodings of positions never seen. Such shifts are shown and do not count.
    """
    config = task.config
    longer = replace(config, length=3 * config.length // 2)
    shifts = [
        DistributionShift("0.5 times as large", Rescaled(task, 0.5), counts=True),
        DistributionShift("1.25 times as large", Rescaled(task, 1.25), counts=True),
        DistributionShift("damped, 0.95 W", Rescaled(task, 1.0, decay=0.95), counts=True),
        DistributionShift("1.5 times as large", Rescaled(task, 1.5), counts=False),
        DistributionShift("1.5 times as long", make_task(longer), counts=False),
    ]
    if isinstance(config, LinearSystemConfig):
        shifts.append(_other_spectrum(config))
    return shifts


def _other_spectrum(config: LinearSystemConfig) -> DistributionShift:
    if config.transition == "contracting":
        other = replace(config, transition="orthogonal", matrix=None, state_clip=10.0)
        return DistributionShift("orthogonal W", LinearSystem(other), counts=False)
    other = replace(config, transition="contracting", matrix=None, state_clip=2.0)
    return DistributionShift("contracting W", LinearSystem(other), counts=False)


@dataclass(frozen=True)
class Rescaled:
    """A task whose states are multiplied by scale * decay^(t - 1), t = 1, 2, ..., and its matrix by decay.

    Example:
        >>> task = LinearSystem(LinearSystemConfig(dim=2, length=3))
        >>> states = Rescaled(task, 2.0, decay=0.5).sample(1, seed=0).states
        >>> ratio = states / task.sample(1, seed=0).states
        >>> ratio[0, :, 0].tolist()
        [2.0, 1.0, 0.5, 0.25]
    """

    task: LinearTask
    """Source of the states before they are rescaled."""
    scale: float
    """Factor of all states."""
    decay: float = 1.0
    """Factor from one state to the next."""

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
    ) -> Batch:
        """Draw one batch."""
        batch = self.task.sample(batch_size, seed=seed, step=step, split=split)
        times = torch.arange(batch.require("states").shape[1])
        factors = (self.scale * self.decay**times)[:, None]
        states = batch.require("states") * factors
        if isinstance(batch, PartiallyObservedBatch):
            batch = replace(batch, hidden=batch.hidden * factors)
        tokens = tokens_from_states(states[:, :-1], self.task.config.token_slots)
        return replace(
            batch,
            tokens=tokens,
            targets=states[:, 1:],
            states=states,
            transition=self.decay * batch.require("transition"),
        )


def supported(
    predict: Predictor, shifts: Iterable[DistributionShift]
) -> tuple[list[DistributionShift], tuple[str, ...]]:
    """Drop the shifts whose sequences a model cannot process, unless they count.

    Returns:
        The shifts to be measured, and the names of the others.
    """
    measured, skipped = [], []
    for shift in shifts:
        if shift.counts or _can_process(predict, shift.task):
            measured.append(shift)
        else:
            skipped.append(shift.name)
    return measured, tuple(skipped)


def _can_process(predict: Predictor, task: Task) -> bool:
    """Run a model on a few sequences: some models end at a length."""
    try:
        predict(few_sequences(task))
    except ValueError:
        return False
    return True
