"""Losses and accuracies on tasks on tokens, for each of the settings that a task is tested with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.in_context import AnyPredictor, as_predictor
from mesaopt.tasks import (
    Batch,
    ContinuousMQARBatch,
    RegBenchBatch,
    SyntheticTask,
    TokenBatch,
    TokenTask,
)

LARGEST = 2**25
"""Logits that are computed at once."""


@dataclass(frozen=True)
class TokenScore:
    """The scores of a predictor on the sequences of one setting."""

    setting: str
    """How the setting differs from the others, such as "length 64, pairs 4"; empty: the only one."""
    num_sequences: int
    """Number of sequences."""
    loss: Estimate
    """Cross-entropy in nats: the mean of each sequence over its scored places, and the mean of these."""
    accuracy: Estimate
    """Share of right answers, averaged alike; in RegBench of letters that may come."""
    more: dict[str, float]
    """"total_variation" in RegBench."""
    curve: list[float] | None = None
    """Mean loss at each position, where all are scored."""


@torch.no_grad()
def token_scores(
    predictors: Mapping[str, AnyPredictor],
    task: TokenTask[Any],
    evaluation: Evaluation = Evaluation(),
) -> dict[str, list[TokenScore]]:
    """Score predictors on the same fresh sequences of every setting of a task.

    Args:
        predictors: by name; a model, a Run or its path, or a function from a batch to logits at the scored
            places [batch, scored, vocabulary].
        task: on tokens.
        evaluation: the sequences; batches are of the settings in turn.

    Returns:
        The scores of each predictor, one for each setting.

    Example:
        >>> from mesaopt.tasks import Parity
        >>> guess = lambda batch: torch.zeros(*batch.targets.shape, 3)
        >>> (score,) = token_scores({"guess": guess}, Parity(), Evaluation(num_sequences=1))["guess"]
        >>> round(score.loss.value, 3), score.num_sequences
        (1.099, 256)
    """
    functions = {name: as_predictor(given, name) for name, given in predictors.items()}
    labels = _labels(task, evaluation)

    def score(batch: Batch) -> dict[str, dict[str, Tensor]]:
        size = max(1, LARGEST // (batch.targets.shape[1] * task.config.dim))
        parts = list(batch.split(size))
        scored = {
            name: [_scores(part, predict(part)) for part in parts]
            for name, predict in functions.items()
        }
        return {name: _join(scores) for name, scores in scored.items()}

    found: dict[tuple[str, int], list[dict[str, Tensor]]] = {}
    for step, scored in enumerate(evaluation.map(task, score)):
        for name, scores in scored.items():
            found.setdefault((name, step % len(labels)), []).append(scores)
    return {
        name: [
            _together(label, found[name, number])
            for number, label in enumerate(labels)
            if (name, number) in found
        ]
        for name in functions
    }


def _labels(task: TokenTask[Any], evaluation: Evaluation) -> list[str]:
    """Name the settings of a task by what differs among them."""
    variants = task.variants(evaluation.split) if isinstance(task, SyntheticTask) else [task.config]
    names = [field.name for field in fields(variants[0]) if field.name != "examples"]
    differing = [name for name in names if len({getattr(v, name) for v in variants}) > 1]
    return [", ".join(f"{name} {getattr(v, name)}" for name in differing) for v in variants]


def _scores(batch: Batch, prediction: Tensor) -> dict[str, Tensor]:
    """Score a batch: one number for each sequence, or one for all."""
    assert isinstance(batch, TokenBatch | ContinuousMQARBatch)
    counted = batch.counted
    losses, right = batch.losses(prediction), batch.accuracy(prediction).float()
    weights = torch.ones_like(losses) if counted is None else counted.to(losses)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    scores = {"loss": (losses * weights).sum(1), "accuracy": (right * weights).sum(1)}
    if isinstance(batch, RegBenchBatch):
        scores["total_variation"] = (batch.total_variation(prediction) * weights).sum(1)
    if isinstance(batch, TokenBatch) and batch.at is None:
        scores["curve"] = losses
    return {name: values.float() for name, values in scores.items()}


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put scores of parts together."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _together(label: str, parts: list[dict[str, Tensor]]) -> TokenScore:
    """Put the scores of several batches together."""
    values = _join(parts)
    loss, accuracy = values.pop("loss"), values.pop("accuracy")
    curve = values.pop("curve", None)
    return TokenScore(
        setting=label,
        num_sequences=len(loss),
        loss=Estimate.of(loss),
        accuracy=Estimate.of(accuracy),
        more={name: scores.mean().item() for name, scores in values.items()},
        curve=None if curve is None else curve.mean(0).tolist(),
    )
