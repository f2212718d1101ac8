"""Where a diagnosis looks: fresh systems, the same ones rescaled, and tasks whose answer is a model's."""

from collections.abc import Iterable
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
    PartiallyObservedBatch,
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
    """A task whose states are multiplied by scale * decay^(t - 1), t = 1, 2, ..., and its matrix by decay.

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
        factors = (self.scale * self.decay**times)[:, None]
        states = batch.states * factors
        if isinstance(batch, PartiallyObservedBatch):
            batch = replace(batch, hidden=batch.hidden * factors)
        tokens = tokens_from_states(states[:, :-1], self.task.config.token_slots)
        return replace(
            batch,
            tokens=tokens,
            targets=states[:, 1:],
            states=states,
            transition=self.decay * batch.transition,
        )


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

    Returns:
        The predictor. It hands a copy of the tokens to the model, and raises ValueError wherever it gives
        no predictions.

    Raises:
        ValueError: the model cannot be asked; what it gives is no prediction at every position, is not
            finite, or depends on tokens that come later.
    """

    @torch.no_grad()
    def predict(batch: Batch) -> Tensor:
        tokens = batch.tokens.clone()  # a model may change its input in place
        try:
            found = model(tokens)
        except Exception as error:
            given = f"given {_described(batch.tokens)}, it raised {type(error).__name__}"
            raise ValueError(f"model: {given}: {error}") from error
        if not isinstance(found, Tensor):
            raise ValueError(f"model: it gives a {type(found).__name__}: must be a tensor")
        if found.shape != batch.targets.shape:
            wanted = f"must be {tuple(batch.targets.shape)}, that of the next states"
            raise ValueError(f"model: its output has shape {tuple(found.shape)}: {wanted}")
        return found

    _check_predictor(predict, _few(task))
    return predict


def taken(predict: Predictor, laws: Iterable[Law]) -> tuple[list[Law], tuple[str, ...]]:
    """Ask a model once under every law that does not count: some end at a length.

    Returns:
        The laws to look at, and the names of those that the model cannot take.
    """
    kept, skipped = [], []
    for law in laws:
        if law.counts or _can_take(predict, law.task):
            kept.append(law)
        else:
            skipped.append(law.name)
    return kept, tuple(skipped)


def _can_take(predict: Predictor, task: Task) -> bool:
    try:
        predict(_few(task))
    except ValueError:
        return False
    return True


def _few(task: Task) -> Batch:
    return task.sample(8, seed=0, split="validation")


def _described(tokens: Tensor) -> str:
    return f"tokens {tuple(tokens.shape)} of {str(tokens.dtype).removeprefix('torch.')}"


def _check_predictor(predict: Predictor, batch: Batch) -> None:
    found = predict(batch)
    if not found.isfinite().all():
        raise ValueError("model: its output is not finite")
    half = batch.tokens.shape[1] // 2
    if half == 0:
        return  # a single token has none later
    # The second half of other sequences: what is new in them is no mirror image of what was there.
    tokens = batch.tokens.clone()
    tokens[:, half:] = tokens[:, half:].roll(1, dims=0)
    change = (predict(replace(batch, tokens=tokens)) - found)[:, :half].abs().max()
    if change > 1e-3 * found.abs().max():  # rounding moves float32 by 1e-6
        raise ValueError("model: its predictions depend on later tokens: must be causal")
