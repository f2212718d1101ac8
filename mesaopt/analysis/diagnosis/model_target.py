"""The model under diagnosis, as a checked predictor and as the target that algorithms are fitted to."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from mesaopt.analysis.capture import like_weights
from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.prompts import Prompts, PromptTask
from mesaopt.config import Split
from mesaopt.tasks import Batch


class ModelAsTarget:
    """A task with the sequences of another, whose targets are the predictions of a model.

    Fitting an algorithm to this task fits it to the model. Batches are kept, so that the model runs once on
    each.

    Args:
        task: source of the sequences.
        predict: the model.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.analysis.prompts import prompt_task
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(dim=2, length=3))
        >>> twice = ModelAsTarget(prompt_task(task), lambda batch: 2 * batch.observed)
        >>> batch = twice.sample(1, seed=0)
        >>> bool((batch.targets == 2 * batch.observed).all())
        True
    """

    def __init__(self, task: PromptTask, predict: Predictor):
        self._task, self._predict = task, predict
        self._batches: dict[tuple[int, int, int, Split], Prompts] = {}

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
    ) -> Prompts:
        """Draw one batch, or return it if it was drawn before."""
        key = (batch_size, seed, step, split)
        if key not in self._batches:
            batch = self._task.sample(batch_size, seed=seed, step=step, split=split)
            self._batches[key] = replace(batch, targets=self._predict(batch))
        return self._batches[key]


def checked_predictor(model: nn.Module, task: PromptTask) -> Predictor:
    """Make a predictor of a module, after a test on a few sequences.

    Returns:
        The predictor. It gives the model a copy of the tokens, and raises ValueError where the model fails
        or does not return predictions.

    Raises:
        ValueError: the model fails, or its output is not one prediction per position, is not finite or
            depends on later tokens.
    """

    @torch.no_grad()
    def predict(batch: Batch) -> Tensor:
        tokens = like_weights(model, batch.tokens).clone()  # a model may change its input in place
        try:
            predictions = model(tokens)
        except Exception as error:
            given = f"given {_described(batch.tokens)}, it raised {type(error).__name__}"
            raise ValueError(f"model: {given}: {error}") from error
        if not isinstance(predictions, Tensor):
            raise ValueError(f"model: it gives a {type(predictions).__name__}: must be a tensor")
        if predictions.shape != batch.targets.shape:
            wanted = f"must be {tuple(batch.targets.shape)}, that of the targets"
            raise ValueError(f"model: its output has shape {tuple(predictions.shape)}: {wanted}")
        return predictions.to(batch.targets)

    _check_predictor(predict, few_sequences(task))
    return predict


def few_sequences(task: PromptTask) -> Prompts:
    """Draw the sequences on which a model is tested first."""
    return task.sample(8, seed=0, step=0, split="validation")


def _described(tokens: Tensor) -> str:
    return f"tokens {tuple(tokens.shape)} of {str(tokens.dtype).removeprefix('torch.')}"


def _check_predictor(predict: Predictor, batch: Batch) -> None:
    """Refuse predictions that are not finite or depend on later tokens."""
    predictions = predict(batch)
    if not predictions.isfinite().all():
        raise ValueError("model: its output is not finite")
    half = batch.tokens.shape[1] // 2
    others = predict(replace(batch, tokens=swapped(batch.tokens, half)))
    check_causal(predictions, others, half, "model")


def swapped(x: Tensor, half: int) -> Tensor:
    """Copy a tensor, with what comes after its first positions taken from the sequence before.

    Unlike a flip of them, that changes every statistic.
    """
    half = max(half, 0)
    return torch.cat([x[:, :half], x[:, half:].roll(1, dims=0)], dim=1)


def check_causal(predictions: Tensor, others: Tensor, half: int, asked: str) -> None:
    """Refuse predictions whose first half is another where only later tokens are.

    Raises:
        ValueError: it is; the message begins with `asked`.
    """
    if half == 0:
        return  # a single token has no later ones
    change = (others - predictions)[:, :half].abs().max()
    if change > 1e-3 * predictions.abs().max():  # rounding changes float32 by 1e-6
        raise ValueError(f"{asked}: its predictions depend on later tokens: must be causal")
