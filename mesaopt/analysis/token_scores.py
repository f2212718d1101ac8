"""Losses and accuracies on tasks on tokens, for each of the settings that a task is tested with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.estimate import Estimate, estimates
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyTask, as_task
from mesaopt.analysis.in_context import AnyPredictor, as_predictor, times_shown
from mesaopt.display import Curve, Drawn, Row
from mesaopt.errors import wrong_type
from mesaopt.tasks import (
    Batch,
    ContinuousMQARBatch,
    RegBenchBatch,
    Text,
    TokenBatch,
    TokenTask,
)
from mesaopt.training.trainer import sequences_at_once

_HALF = 4
"""Half the number of positions whose losses are averaged for the in-context score."""


@dataclass(frozen=True, repr=False)
class TokenScore(Drawn):
    """The scores of a predictor on the sequences of one setting.

    Standard errors are those of different sequences: where a text is too short for so many, what is shown
    again adds nothing.
    """

    setting: str
    """How the setting differs from the others, such as "length 64, pairs 4"; empty: the only one."""
    num_sequences: int
    """Number of sequences."""
    loss: Estimate
    """Cross-entropy in nats, or half the squared error where the task asks for that: the mean of each
    sequence over its scored places, and the mean of these."""
    accuracy: Estimate
    """Share of right answers, averaged alike; in RegBench of letters that may come."""
    more: dict[str, Estimate]
    """In RegBench "total_variation", the distance to the distribution of the automaton; in text
    "perplexity", of a token, "bits_per_byte", and "in_context_score", see :func:`score_positions`."""
    curve: list[Estimate] | None = None
    """Mean loss at each position, where all are scored."""

    _axes = {"xlabel": "position in the sequence", "ylabel": "loss, in nats"}

    def _headline(self) -> str:
        setting = f" of {self.setting}" if self.setting else ""
        return (
            f"Loss {self.loss}, accuracy {self.accuracy}; {self.num_sequences:,} sequences{setting}"
        )

    def _rows(self) -> list[Row]:
        return [{"score": name, "value": score} for name, score in self._all.items()]

    def _curves(self) -> list[Curve]:
        if self.curve is None:
            return [Curve.of("score", list(self._all), list(self._all.values()))]
        return [Curve.of("loss", range(1, len(self.curve) + 1), self.curve)]

    def _draw(self, axes: Any) -> None:
        super()._draw(axes)
        if self.curve is None:
            axes.set(xlabel="", ylabel="")

    @property
    def _all(self) -> dict[str, Estimate]:
        return {"loss": self.loss, "accuracy": self.accuracy, **self.more}


def score_positions(length: int) -> tuple[int, int] | None:
    """Choose the positions of the in-context score: the loss at the second less that at the first.

    Both losses are means over the eight positions around, since single positions are noisy. The places are
    arbitrary, so look at the whole curve, too.

    Args:
        length: tokens of a text.

    Returns:
        50 and 500; in texts that are too short for them 50 and 250, or a fifth of the text and its end;
        None in those of fewer than 16 tokens.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", for 50 and 500.

    Example:
        >>> score_positions(512), score_positions(256), score_positions(100), score_positions(8)
        ((50, 500), (50, 250), (20, 96), None)
    """
    for late in (500, 250):
        if length >= late + _HALF:
            return 50, late
    return None if length < 4 * _HALF else (max(_HALF, length // 5), length - _HALF)


@torch.no_grad()
def token_scores(
    predictors: Mapping[str, AnyPredictor],
    task: AnyTask,
    evaluation: Evaluation = Evaluation(),
) -> dict[str, list[TokenScore]]:
    """Score predictors on the same fresh sequences of every setting of a task.

    Args:
        predictors: by name; a model, a Run or its path, or a function from a batch to logits at the scored
            places [batch, scored, vocabulary].
        task: on tokens, or its settings.
        evaluation: the sequences, rounded up so that all settings have equally many.

    Returns:
        The scores of each predictor, one for each setting.

    Raises:
        TypeError: there is no model or no task, or the task is not on tokens.

    Example:
        >>> from mesaopt.tasks import Parity
        >>> guess = lambda batch: torch.zeros(*batch.targets.shape, 3)
        >>> (score,) = token_scores({"guess": guess}, Parity(), Evaluation(num_sequences=1))["guess"]
        >>> round(score.loss.value, 3), score.num_sequences
        (1.099, 256)
    """
    task = as_task(task)
    if not isinstance(task, TokenTask):
        raise wrong_type("task", task, "a task on tokens, or its settings")
    functions = {name: as_predictor(given, name) for name, given in predictors.items()}
    labels = _labels(task, evaluation)
    evaluation = evaluation.even(task)
    again = times_shown(task, evaluation)

    def score(batch: Batch) -> dict[str, dict[str, Tensor]]:
        parts = list(batch.split(sequences_at_once(batch, task.config.dim)))
        scored = {
            name: [_scores(part, predict(part)) for part in parts]
            for name, predict in functions.items()
        }
        return {name: _join(scores) for name, scores in scored.items()}

    scores_of: dict[tuple[str, int], list[dict[str, Tensor]]] = {}
    with evaluation.reported("scores on tokens") as reported:
        for step, scored in enumerate(reported.map(task, score)):
            for name, scores in scored.items():
                scores_of.setdefault((name, step % len(labels)), []).append(scores)
    return {
        name: [
            _together(label, scores_of[name, number], task, again)
            for number, label in enumerate(labels)
        ]
        for name in functions
    }


def _labels(task: TokenTask[Any], evaluation: Evaluation) -> list[str]:
    """Name the settings of a task by what differs among them."""
    variants = task.variants(evaluation.split)
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


def _together(
    label: str, parts: list[dict[str, Tensor]], task: TokenTask[Any], again: float
) -> TokenScore:
    """Put scores of batches together, in which each sequence comes `again` times."""
    values = _join(parts)
    loss, accuracy = values.pop("loss"), values.pop("accuracy")
    curve = values.pop("curve", None)
    more = {name: Estimate.of(scores) for name, scores in values.items()}
    if isinstance(task, Text) and curve is not None:
        more |= _of_text(curve, task)
    return TokenScore(
        setting=label,
        num_sequences=len(loss),
        loss=Estimate.of(loss).repeated(again),
        accuracy=Estimate.of(accuracy).repeated(again),
        more={name: one.repeated(again) for name, one in more.items()},
        curve=None if curve is None else [one.repeated(again) for one in estimates(curve)],
    )


def _of_text(losses: Float[Tensor, "sequence position"], task: Text) -> dict[str, Estimate]:
    """Give what is usual to say of text."""
    loss = Estimate.of(losses.mean(1))
    perplexity = math.exp(min(loss.value, 700.0))
    scores = {
        "perplexity": Estimate(perplexity, perplexity * loss.error),
        "bits_per_byte": loss / (math.log(2) * task.bytes_per_token),
    }
    if (places := score_positions(losses.shape[1])) is not None:
        scores["in_context_score"] = Estimate.of(in_context_score(losses, places))
    return scores


def in_context_score(
    losses: Float[Tensor, "*shape position"], places: tuple[int, int]
) -> Float[Tensor, "*shape"]:
    """Subtract the loss around the first of two places from that around the second."""
    early, late = (losses[..., place - _HALF : place + _HALF].mean(-1) for place in places)
    return late - early
