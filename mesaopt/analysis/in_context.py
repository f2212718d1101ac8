"""The in-context loss: how well a predictor does as a function of the position in the sequence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.estimate import Estimate
from mesaopt.config import TokenSlot
from mesaopt.models import Model
from mesaopt.tasks import Batch, Split, Task, tokens_from_states

Predictor = Callable[[Batch], Tensor]

EVALUATION_BATCH = 256
"""Sequences in one batch of an evaluation; evaluations of any size draw whole batches."""


@dataclass(frozen=True)
class InContextLoss:
    """Losses of one predictor on many sequences, and their sampling error.

    Example:
        >>> loss = InContextLoss(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
        >>> loss.curve.tolist(), loss.mean
        ([2.0, 2.0], 2.0)
    """

    losses: Float[Tensor, "sequence position"]
    """Half the squared error of every sequence at every scored position."""
    scored: range | None = None
    """These positions, counted from 1; None: all from the first on."""

    @property
    def positions(self) -> range:
        """The position of every column, counted from 1."""
        return range(1, self.losses.shape[1] + 1) if self.scored is None else self.scored

    @property
    def curve(self) -> Float[Tensor, " position"]:
        """Mean over sequences, by position."""
        return self.losses.mean(0)

    @property
    def curve_error(self) -> Float[Tensor, " position"]:
        """Standard error of :attr:`curve` over sequences."""
        return self.losses.std(0) / len(self.losses) ** 0.5

    @property
    def mean(self) -> float:
        """Mean over sequences and positions: the training loss, where that is no sum over positions."""
        return self.losses.mean().item()

    @property
    def estimate(self) -> Estimate:
        """:attr:`mean` with its standard error over sequences."""
        return Estimate(self.mean, self.mean_error)

    @property
    def mean_error(self) -> float:
        """Standard error of :attr:`mean` over sequences."""
        return (self.losses.mean(1).std() / len(self.losses) ** 0.5).item()


def model_predictor(model: Model, slots: tuple[TokenSlot, ...]) -> Predictor:
    """Make a predictor of a model, whatever tokens the batches of others are made of.

    Args:
        model: on the CPU.
        slots: of the tokens it was trained on.

    Returns:
        The predictor.

    Example:
        >>> from mesaopt import recipes
        >>> config = recipes.get("lsa-1")
        >>> from mesaopt.models import make_model
        >>> from mesaopt.tasks import make_task
        >>> predict = model_predictor(make_model(config.model), config.task.token_slots)
        >>> predict(make_task(config.task).sample(2, seed=0)).shape
        torch.Size([2, 50, 10])
    """
    return lambda batch: model(tokens_from_states(batch.observed, slots))


@torch.no_grad()
def in_context_loss(
    predictors: dict[str, Predictor],
    task: Task,
    *,
    num_sequences: int = 2560,
    seed: int = 0,
    split: Split = "test",
    report: Callable[[int], None] | None = None,
) -> dict[str, InContextLoss]:
    """Score predictors on the same fresh sequences, so that they can be compared in pairs.

    Args:
        predictors: by name; each maps a batch to predictions [batch, time, dim].
        task: where the sequences come from.
        num_sequences: rounded up to whole batches of 256, 1 or more.
        seed: of the sequences.
        split: "test", or "validation" to tune on.
        report: told how many batches of 256 are done.

    Returns:
        The losses of each predictor, under its name.

    Raises:
        ValueError: num_sequences is less than 1.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> zero = lambda batch: torch.zeros_like(batch.targets)
        >>> loss = in_context_loss({"zero": zero}, LinearSystem(LinearSystemConfig()))["zero"]
        >>> round(loss.mean, 1)
        1.7
    """
    batches = evaluation_batches(task, num_sequences=num_sequences, seed=seed, split=split)
    losses: dict[str, list[Tensor]] = {name: [] for name in predictors}
    positions = None
    for done, batch in enumerate(batches, start=1):
        positions = batch.positions
        for name, predict in predictors.items():
            losses[name].append(batch.losses(predict(batch)).float())
        if report is not None:
            report(done)
    # pop() lets go of the parts, one predictor at a time.
    return {name: InContextLoss(torch.cat(losses.pop(name)), positions) for name in predictors}


def evaluation_batches(
    task: Task, *, num_sequences: int, seed: int, split: Split
) -> Iterator[Batch]:
    """Draw the sequences of an evaluation, batch by batch.

    Args:
        task: where they come from.
        num_sequences: rounded up to whole batches of 256, 1 or more.
        seed: of the sequences.
        split: "test", or "validation" to tune on.

    Returns:
        The batches, drawn one by one as they are asked for.

    Raises:
        ValueError: num_sequences is less than 1.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(length=5))
        >>> [len(b.states) for b in evaluation_batches(task, num_sequences=300, seed=0, split="test")]
        [256, 256]
    """
    if num_sequences < 1:
        raise ValueError(f"num_sequences={num_sequences}: must be 1 or greater")
    steps = range(-(-num_sequences // EVALUATION_BATCH))
    return (task.sample(EVALUATION_BATCH, seed=seed, step=step, split=split) for step in steps)
