"""Prompts as regressions: batches with the pairs that a learner in context may know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Inexact
from torch import Tensor

from mesaopt.config import Split, stacked
from mesaopt.errors import wrong_type
from mesaopt.tasks import (
    Batch,
    GeneratedTask,
    NonlinearSystem,
    OwnTask,
    PartiallyObserved,
    Reading,
    Regression,
    Task,
    tokens_from_states,
)
from mesaopt.theory import Context, context_of

HISTORY = 5
"""Observations of a partially observed system in one regression input. Three of them, of 5 coordinates
each, determine 15 hidden coordinates; two more average over noise."""

PromptKind = Literal["states", "pairs"]
"""A sequence of "states", each the answer to the one before it; or "pairs" of inputs and answers."""


@dataclass(frozen=True, repr=False)
class Prompts(Batch):
    """A batch with its pairs. Made by :class:`PromptTask`.

    Where a prompt is no sequence of states, `states` is None.
    """

    inputs: Inexact[Tensor, "batch pair input"] = field(kw_only=True)
    """x_1 ... x_n."""
    answers: Inexact[Tensor, "batch pair dim"] = field(kw_only=True)
    """y_1 ... y_n, as the prompt shows them; the targets may be others, such as a model's predictions."""
    places: slice = field(kw_only=True)
    """The tokens at which they are asked for."""

    @property
    def seen(self) -> Inexact[Tensor, "batch pair dim"]:
        """The newest answer that is known where y_i is asked for, y_{i-1}; at first s_1, or zero.

        The functions of `mesaopt.theory` take it for the states, with :attr:`inputs` as inputs.
        """
        if self.states is not None:
            return self.observed
        return torch.nn.functional.pad(self.answers[:, :-1], (0, 0, 1, 0))

    @property
    def mean_square(self) -> float:
        """Mean square of the inputs: the unit of ridges and of 1 / step size."""
        return self.inputs.abs().double().square().mean().item()

    @property
    def context(self) -> Context:
        """The regression problem at every pair, in double precision."""
        return context_of(self.seen, inputs=self.inputs).double()

    def in_eigenvectors(self, pairs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Decompose the Gram matrices at some pairs: H = V diag(values) V^T, in double precision.

        Args:
            pairs: indices of pairs.

        Returns:
            The values, 0 or greater, and V^T q for the inputs q, both [batch, pair, input]; and G V
            [batch, pair, dim, input]. With these, any ridge and any number of steps is cheap.
        """
        context = self.context
        gram, cross = (matrices[:, pairs] for matrices in context.statistics())
        values, vectors = torch.linalg.eigh(gram)
        queries = (vectors.mT @ context.queries[:, pairs, :, None])[..., 0]
        return values.clamp(min=0), queries, cross @ vectors

    @property
    def asked(self) -> list[int]:
        """Indices of the pairs whose answers are scored."""
        scored = self._indices[self.scored]
        return [pair for pair, place in enumerate(self._indices[self.places]) if place in scored]

    @property
    def scored_targets(self) -> Inexact[Tensor, "batch asked dim"]:
        """The targets at the scored positions."""
        return self.targets[:, self.scored]

    def at_places(
        self, predictions: Inexact[Tensor, "batch pair dim"]
    ) -> Inexact[Tensor, "batch time dim"]:
        """Lay predictions of answers to the tokens at which they are asked for; zero at the others."""
        if predictions.shape[1] == self.targets.shape[1]:
            return predictions
        laid = predictions.new_zeros(len(predictions), self.targets.shape[1], predictions.shape[2])
        laid[:, self.places] = predictions
        return laid

    def pairs_at(self, positions: Sequence[int]) -> list[int]:
        """Give the indices of the pairs that are asked for at positions, counted from 1."""
        at = self._indices[self.places]
        return [at.index(position - 1) for position in positions]

    @property
    def _indices(self) -> range:
        return range(self.targets.shape[1])


PromptPredictor = Callable[[Any], Tensor]
"""From :class:`Prompts` to predictions [batch, time, dim]."""


class PromptTask:
    """A task whose batches have their pairs.

    Args:
        task: source of the sequences.
        kind: "states" to read with `read` what is the input of each state; "pairs" to read pairs.
        read: how.
    """

    def __init__(self, task: Task, kind: PromptKind, read: Reading):
        self.task, self.kind, self.read = task, kind, read

    def sample(
        self, batch_size: int, *, seed: int, step: int = 0, split: Split = "train"
    ) -> Prompts:
        """Draw one batch."""
        return self.prompts(self.task.sample(batch_size, seed=seed, step=step, split=split))

    def prompts(self, batch: Batch) -> Prompts:
        """Read the pairs of a batch.

        Raises:
            TypeError: what reads them returns something else.
            ValueError: the pairs do not fit the batch.
        """
        if isinstance(batch, Prompts):
            return batch
        batch = batch.to("cpu")
        regression = self.read(batch)
        places = _checked_places(regression, batch)
        return Prompts(
            tokens=batch.tokens,
            targets=batch.targets,
            states=batch.states if self.kind == "states" else None,
            transition=batch.transition,
            scored=batch.scored,
            inputs=regression.inputs.to(batch.targets),
            answers=regression.targets.to(batch.targets),
            places=places,
        )

    @property
    def is_generated(self) -> bool:
        """Whether the task is one of the library, whose sequences each have a new system by default."""
        return isinstance(self.task, GeneratedTask)

    def of(self, task: Task) -> "PromptTask":
        """Read another task in the same way."""
        return PromptTask(task, self.kind, self.read)


def prompt_task(
    task: Task, regression: Reading | None = None, *, plain: bool = False
) -> PromptTask:
    """Read the prompts of a task as regressions.

    Args:
        task: any task.
        regression: how; by default as the task's own method `regression` does. Without one, each state is
            the input of the next: five stacked observations where a system is observed in part, features of
            states where it is nonlinear.
        plain: states are taken as they are, observed in part or not.

    Returns:
        The task, with pairs in its batches.

    Raises:
        ValueError: it is not known how to read the prompts of the task.

    Example:
        >>> from mesaopt.tasks import FewShot, LinearSystem
        >>> prompt_task(FewShot(dim=2, length=6)).sample(4, seed=0).inputs.shape
        torch.Size([4, 3, 2])
        >>> prompt_task(LinearSystem(dim=2, length=6)).sample(4, seed=0).inputs.shape
        torch.Size([4, 6, 2])
    """
    batch = task.sample(1, seed=0, step=0, split="validation")
    source = task.config.task if isinstance(task, OwnTask) else task
    read = getattr(source, "regression", None) if regression is None else regression
    if read is not None:
        return PromptTask(task, "pairs", read)
    if batch.states is None or not torch.equal(batch.states[:, 1:], batch.targets):
        raise ValueError(
            "task: does not say which inputs and answers its tokens show: must have a method "
            "regression(batch) -> mesaopt.tasks.Regression, or give regression=..."
        )
    read = _plainly if plain else _reading_of_states(task)
    return PromptTask(task, "states", read)


def _plainly(batch: Batch) -> Regression:
    return Regression(batch.observed, batch.targets, slice(None))


def _reading_of_states(task: Task) -> Reading:
    """Give the function that reads states: each is asked for at the place of its input."""
    slots = stacked(HISTORY)

    def inputs(states: Tensor) -> Tensor:
        if isinstance(task, PartiallyObserved):
            return tokens_from_states(states, slots)
        return task.features(states) if isinstance(task, NonlinearSystem) else states

    return lambda batch: Regression(inputs(batch.observed), batch.targets, slice(None))


def _checked_places(regression: object, batch: Batch) -> slice:
    """Return the places of pairs, and refuse pairs that do not fit a batch."""
    if not isinstance(regression, Regression):
        raise wrong_type("regression", regression, "a function from a batch to a Regression")
    time = range(batch.targets.shape[1])
    places = batch.scored if regression.places is None else regression.places
    sizes = (len(batch.tokens), len(time[places]))
    for name, x in (("inputs", regression.inputs), ("targets", regression.targets)):
        if x.dim() != 3 or x.shape[:2] != sizes:
            given = f"regression: {name} has shape {tuple(x.shape)}"
            raise ValueError(
                f"{given}: must be [{sizes[0]}, {sizes[1]}, width], a row for each place"
            )
    if regression.targets.shape[2] != batch.targets.shape[2]:
        given = f"regression: targets has shape {tuple(regression.targets.shape)}"
        raise ValueError(
            f"{given}: must be as wide as those of the batch, {batch.targets.shape[2]}"
        )
    if not set(time[batch.scored]) <= set(time[places]):
        given = f"regression: places={places}"
        raise ValueError(f"{given}: must hold all scored positions, {batch.scored}")
    return places
