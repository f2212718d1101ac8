"""The in-context loss: how well a predictor does as a function of the position in the sequence."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from mesaopt.config import TokenSlot
from mesaopt.models import Model
from mesaopt.tasks import Batch, Split, Task, tokens_from_states
from mesaopt.theory import Objective, gradient_descent

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
    if num_sequences < 1:
        raise ValueError(f"num_sequences={num_sequences}: must be 1 or greater")
    batches = -(-num_sequences // EVALUATION_BATCH)
    losses: dict[str, list[Tensor]] = {name: [] for name in predictors}
    positions = None
    for step in range(batches):
        batch = task.sample(EVALUATION_BATCH, seed=seed, step=step, split=split)
        positions = batch.positions
        for name, predict in predictors.items():
            losses[name].append(batch.losses(predict(batch)).float())
        if report is not None:
            report(step + 1)
    # pop() lets go of the parts, one predictor at a time.
    return {name: InContextLoss(torch.cat(losses.pop(name)), positions) for name in predictors}


def line_search_step_size(
    task: Task,
    *,
    num_steps: int = 1,
    objective: Objective = "sum",
    largest: float = 0.1,
    num_sequences: int = 2560,
    seed: int = 0,
) -> float:
    """Find the step size with which gradient descent on the context predicts best.

    It minimises the mean loss of :func:`mesaopt.theory.gradient_descent` over (0, largest] on
    validation sequences; test sequences are never seen. Where the best lies at the upper end, the
    search goes on ten times further.

    Args:
        task: where the sequences come from.
        num_steps: steps of gradient descent.
        objective: "sum" or "mean" over the pairs of the context.
        largest: upper end of the first search, > 0.
        num_sequences: rounded up to whole batches of 256.
        seed: of the sequences.

    Returns:
        The step size, to about 1e-4 of the last upper end.

    Source: von Oswald et al. search a grid, on test data; the objective is the same.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> 0.030 < line_search_step_size(LinearSystem(LinearSystemConfig())) < 0.034
        True
    """
    batches = [
        task.sample(EVALUATION_BATCH, seed=seed, step=step, split="validation")
        for step in range(-(-num_sequences // EVALUATION_BATCH))
    ]

    def loss(step_size: float) -> float:
        losses = [
            batch.losses(
                gradient_descent(
                    batch.observed, step_size=step_size, num_steps=num_steps, objective=objective
                )
            ).mean()
            for batch in batches
        ]
        return torch.stack(losses).mean().item()

    def search(largest: float) -> float:
        tolerance = {"xatol": 1e-4 * largest}
        bounds = (0, largest)
        return float(minimize_scalar(loss, bounds=bounds, method="bounded", options=tolerance).x)

    found = search(largest)
    while found > 0.99 * largest:
        largest *= 10
        found = search(largest)
    return found
