"""Distribution shifts: sequences unlike those of training, on which an algorithm remains the same."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mesaopt.analysis.diagnosis.layout import TokenLayout, layout_of
from mesaopt.analysis.diagnosis.model_target import few_sequences
from mesaopt.analysis.diagnosis.regression import InContextRegression
from mesaopt.analysis.given import AnyTask, as_task
from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.prompts import Prompts, PromptTask, prompt_task
from mesaopt.config import LinearSystemConfig, NonlinearSystemConfig, Split
from mesaopt.tasks import (
    Batch,
    FewShot,
    LinearSystem,
    NonlinearSystem,
    PartiallyObserved,
    PartiallyObservedBatch,
    make_task,
    tokens_from_states,
)

_LAYOUT_SEQUENCES = 64
UNSUPPORTED = "the model cannot process such sequences"
"""Why a shift is left out."""


@dataclass(frozen=True)
class DistributionShift:
    """A distribution of sequences on which a model is compared with algorithms."""

    name: str
    """The change from the training distribution, in words."""
    task: PromptTask
    """Source of the sequences."""
    counts: bool
    """Whether the verdict asks for agreement here; otherwise the agreement is only shown."""


def distribution_shifts(
    problem: InContextRegression, given: Mapping[str, AnyTask]
) -> tuple[list[DistributionShift], dict[str, str]]:
    """List distributions that the model was not trained on.

    States times c are those of the same system with an initial state c times as large (and c times the
    noise). States times 0.95^t are those of the system 0.95 W, whose eigenvalues lie inside the unit
    circle; likewise x_i times 0.95^(i - 1) and y_i times 0.95^i. A model that has learned an algorithm
    follows it there too, with the same step sizes and ridges. A model that has learned the look of its
    training sequences does not.

    Larger changes show limits built into a model: streams clipped just outside the training range,
    encodings of positions never seen. Such shifts are shown and do not count.

    Args:
        problem: that of the model.
        given: tasks of the user's own by the name of the shift, which all count.

    Returns:
        The shifts; and what is left out, with the reason.

    Raises:
        ValueError: the pairs of a prompt are not known when they are asked for, or known before.
    """
    task, own = problem.task.task, []
    for name, other in given.items():
        prompts = prompt_task(as_task(other, f"shifts[{name!r}]"), problem.regression)
        own.append(DistributionShift(name, prompts, counts=True))
    if isinstance(task, NonlinearSystem):
        return _of_nonlinear(problem.task, task) + own, {}
    if isinstance(task, LinearSystem | PartiallyObserved):
        shifts = _rescaled(lambda *factors: problem.task.of(Rescaled(task, *factors)))
        shifts.append(_longer(problem.task, task.config))
        if isinstance(task, LinearSystem):
            shifts.append(_other_spectrum(problem.task, task.config))
        return shifts + own, {}
    prompts = problem.task.sample(_LAYOUT_SEQUENCES, seed=0, split="validation")
    layout = layout_of(prompts)
    if layout is None:
        reason = (
            "tokens hold more than copies of inputs and answers, or some of these never vary: give "
            "shifts={name: task}"
        )
        return own, {"rescaled prompts": reason}
    if problem.task.kind == "pairs":
        layout.check(prompts)
    shifts = _rescaled(lambda *factors: RescaledPairs(problem.task, layout, *factors)) + own
    if isinstance(task, FewShot):
        return [*shifts, _longer(problem.task, task.config)], {}
    return shifts, {
        "longer prompts": "a task of your own makes one length: give shifts={name: task}"
    }


def _rescaled(make: Callable[..., PromptTask]) -> list[DistributionShift]:
    return [
        DistributionShift("0.5 times as large", make(0.5), counts=True),
        DistributionShift("1.25 times as large", make(1.25), counts=True),
        DistributionShift("damped, 0.95 W", make(1.0, 0.95), counts=True),
        DistributionShift("1.5 times as large", make(1.5), counts=False),
    ]


def _longer(problem: PromptTask, config: Any) -> DistributionShift:
    longer = make_task(replace(config, length=3 * config.length // 2))
    return DistributionShift("1.5 times as long", problem.of(longer), counts=False)


def _other_spectrum(problem: PromptTask, config: LinearSystemConfig) -> DistributionShift:
    if config.transition == "contracting":
        other = replace(config, transition="orthogonal", matrix=None, state_clip=10.0)
    else:
        other = replace(config, transition="contracting", matrix=None, state_clip=2.0)
    return DistributionShift(f"{other.transition} W", problem.of(LinearSystem(other)), counts=False)


def _of_nonlinear(problem: PromptTask, task: NonlinearSystem) -> list[DistributionShift]:
    """Scale W, since states times c are not those of any such system: features are not linear."""
    config = task.config
    noisy = NonlinearSystem(config, noise_std=10 * config.noise_std)
    other = NonlinearSystem(
        config, teacher_seed=config.teacher_seed + 1, teacher_hidden=None, teacher_output=None
    )
    return [
        DistributionShift("0.5 W", problem.of(ScaledNonlinear(config, 0.5)), counts=True),
        DistributionShift("1.25 W", problem.of(ScaledNonlinear(config, 1.25)), counts=True),
        DistributionShift("10 times the noise", problem.of(noisy), counts=False),
        DistributionShift("another teacher", problem.of(other), counts=False),
        _longer(problem, config),
    ]


class ScaledNonlinear(NonlinearSystem):
    """Nonlinear systems whose matrices are c W, with the features of W.

    Example:
        >>> config = NonlinearSystemConfig(dim=2, length=3, noise_std=0.0)
        >>> states = ScaledNonlinear(config, 0.5).sample(4, seed=0).states
        >>> bool((states[:, 1:].norm(dim=-1) - 0.5).abs().max() < 1e-6)
        True
    """

    def __init__(self, config: NonlinearSystemConfig, scale: float):
        super().__init__(config)
        self.scale = scale

    def _features(self, states: Any) -> Any:
        return self.scale * super()._features(states)


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

    task: LinearSystem | PartiallyObserved
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
        factors = _factors(self.scale, self.decay, batch.require("states").shape[1])
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


class RescaledPairs(PromptTask):
    """Prompts whose x_i are multiplied by scale * decay^(i - 1), and y_i by that times decay."""

    def __init__(self, problem: PromptTask, layout: TokenLayout, scale: float, decay: float = 1.0):
        super().__init__(problem, problem.kind, problem.read)
        self._layout, self._scale, self._decay = layout, scale, decay

    def prompts(self, batch: Batch) -> Prompts:
        """Rescale the prompts of a batch."""
        prompts = super().prompts(batch)
        factors = _factors(self._scale, self._decay, prompts.inputs.shape[1])
        inputs, answers = prompts.inputs * factors, prompts.answers * self._decay * factors
        targets = prompts.targets.clone()
        targets[:, prompts.places] *= self._decay * factors
        return replace(
            prompts,
            inputs=inputs,
            answers=answers,
            targets=targets,
            states=None if prompts.states is None else torch.cat([inputs[:, :1], answers], dim=1),
            tokens=self._layout.fill(prompts.tokens, inputs, answers),
        )


def _factors(scale: float, decay: float, number: int) -> Tensor:
    return (scale * decay ** torch.arange(number))[:, None]


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


def _can_process(predict: Predictor, task: PromptTask) -> bool:
    """Run a model on a few sequences: some models end at a length."""
    try:
        predict(few_sequences(task))
    except ValueError:
        return False
    return True
