"""How far candidates are from a model, in shares of what it predicts and of what it gets wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.diagnosis.candidates import Candidate
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.in_context import Predictor
from mesaopt.tasks import Task

PerSequence = Float[Tensor, " sequence"]


@dataclass(frozen=True)
class Scores:
    """Squared errors under one law, summed over coordinates, averaged over positions, by sequence."""

    size: PerSequence
    """|f|^2 of the model's predictions f."""
    error: PerSequence
    """|f - y|^2, y being what came next."""
    distance: dict[str, PerSequence]
    """|f - g|^2 for the prediction g of every candidate, by name."""
    loss: dict[str, float]
    """Mean of |g - y|^2 / 2."""

    @property
    def model_loss(self) -> float:
        """Mean of |f - y|^2 / 2."""
        return self.error.mean().item() / 2

    def of_predictions(self, name: str) -> Estimate:
        """Share of what the model predicts that a candidate predicts too: 1 - |f - g|^2 / |f|^2."""
        return 1 - Estimate.ratio(self.distance[name], self.size)

    def of_errors(self, name: str) -> Estimate:
        """Share of what the model gets wrong that a candidate gets wrong too: 1 - |f - g|^2 / |f - y|^2.

        Since f - g is the difference of their errors. Two predictors that are both good agree in what they
        predict, whatever they do; in their mistakes they do not. The truth itself comes to 0.
        """
        return 1 - Estimate.ratio(self.distance[name], self.error)

    def nearer(self, first: str, second: str) -> Estimate:
        """By how much the first is nearer to the model than the second, in shares of |f|^2."""
        return Estimate.ratio(self.distance[second] - self.distance[first], self.size)


@torch.no_grad()
def score(
    predict: Predictor,
    candidates: Sequence[Candidate],
    task: Task,
    evaluation: Evaluation,
) -> Scores:
    """Hold candidates against a model on test sequences.

    Args:
        predict: the model.
        candidates: the algorithms.
        task: where the sequences come from.
        evaluation: the sequences.

    Returns:
        The scores.
    """
    size, error = [], []
    distance: dict[str, list[Tensor]] = {candidate.name: [] for candidate in candidates}
    loss: dict[str, list[Tensor]] = {candidate.name: [] for candidate in candidates}
    for batch in evaluation.batches(task):
        said = predict(batch)
        size.append(_square(said))
        error.append(_square(said - batch.targets))
        for candidate in candidates:
            other = candidate.predict(batch)
            distance[candidate.name].append(_square(said - other))
            loss[candidate.name].append(_square(other - batch.targets) / 2)
    return Scores(
        torch.cat(size),
        torch.cat(error),
        {name: torch.cat(parts) for name, parts in distance.items()},
        {name: torch.cat(parts).mean().item() for name, parts in loss.items()},
    )


def _square(x: Float[Tensor, "sequence time dim"]) -> PerSequence:
    return x.double().square().sum(-1).mean(-1)


def nearest(scores: Scores, candidates: Sequence[Candidate]) -> Candidate:
    """Choose the simplest of the candidates that are as near to the model as any, within noise.

    A polynomial of degree 2 can be three gradient steps: where the extra freedom brings nothing, the
    algorithm with fewer parameters, or fewer steps, is named. It has to be as near by the number too, not
    only for want of evidence: where an algorithm diverges on few sequences, its distance is large and so
    is the noise.

    Args:
        scores: on the sequences to choose by.
        candidates: the simplest first among equals, as :func:`fit_candidates` gives them.

    Returns:
        The first in order of parameters that is behind the best by no more than three standard errors of
        the difference, and by no more than a quarter of the best's own distance; or by rounding only.
    """
    best = min(candidates, key=lambda c: scores.distance[c.name].mean().item())
    by_simplicity = sorted(candidates, key=lambda c: c.num_parameters)  # stable
    limit = _LITTLE * Estimate.ratio(scores.distance[best.name], scores.size).value
    return next(c for c in by_simplicity if _as_near(scores.nearer(best.name, c.name), limit))


_ROUNDING = (
    1e-6  # of |f|^2: predictions that differ by a thousandth, more than float32 and searches leave
)
_LITTLE = 0.25


def _as_near(behind: Estimate, limit: float) -> bool:
    return behind.value <= _ROUNDING or (behind.low <= 0 and behind.value <= limit)
