"""Distances of candidates from a model, in shares of its squared predictions and of its squared errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.diagnosis.candidates import Candidate
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.prompts import Prompts, PromptTask

PerSequence = Float[Tensor, " sequence"]


@dataclass(frozen=True)
class Scores:
    """Squared distances by sequence: summed over coordinates, averaged over scored positions."""

    size: PerSequence
    """|f|^2 of the model's predictions f."""
    error: PerSequence
    """|f - y|^2 for the targets y."""
    distance: dict[str, PerSequence]
    """|f - g|^2 for the prediction g of every candidate, by name."""
    loss: dict[str, float]
    """Mean of |g - y|^2 / 2."""

    @property
    def model_loss(self) -> float:
        """Mean of |f - y|^2 / 2."""
        return self.error.mean().item() / 2

    def of_predictions(self, name: str) -> Estimate:
        """Share of the model's predictions that a candidate explains: 1 - |f - g|^2 / |f|^2."""
        return 1 - Estimate.ratio(self.distance[name], self.size)

    def of_errors(self, name: str) -> Estimate:
        """Share of the model's errors that a candidate explains: 1 - |f - g|^2 / |f - y|^2.

        f - g is the difference of their errors. Two good predictors agree in their predictions, whatever
        they do inside; in their errors they do not. The truth itself explains 0.
        """
        return 1 - Estimate.ratio(self.distance[name], self.error)

    def margin(self, first: str, second: str) -> Estimate:
        """Distance of the second candidate from the model less that of the first, in shares of |f|^2."""
        return Estimate.ratio(self.distance[second] - self.distance[first], self.size)


@torch.no_grad()
def score(
    predict: Predictor,
    candidates: Sequence[Candidate],
    task: PromptTask,
    evaluation: Evaluation,
) -> Scores:
    """Measure the distances of candidates from a model.

    Args:
        predict: the model.
        candidates: the algorithms.
        task: source of the sequences.
        evaluation: the sequences.

    Returns:
        The scores.
    """

    def measure(batch: Prompts) -> tuple[PerSequence, PerSequence, list[tuple[Tensor, Tensor]]]:
        predictions, targets = predict(batch)[:, batch.scored], batch.scored_targets
        others = [candidate.predict(batch)[:, batch.scored] for candidate in candidates]
        scored = [(_square(predictions - x), _square(x - targets) / 2) for x in others]
        return _square(predictions), _square(predictions - targets), scored

    sizes, errors, scored = zip(*evaluation.map(task, measure), strict=True)
    distance, loss = {}, {}
    for candidate, parts in zip(candidates, zip(*scored, strict=True), strict=True):
        distances, losses = zip(*parts, strict=True)
        distance[candidate.name] = torch.cat(distances)
        loss[candidate.name] = torch.cat(losses).mean().item()
    return Scores(torch.cat(sizes), torch.cat(errors), distance, loss)


def _square(x: Float[Tensor, "sequence time dim"]) -> PerSequence:
    return x.double().square().sum(-1).mean(-1)


def nearest(scores: Scores, candidates: Sequence[Candidate]) -> Candidate:
    """Choose the simplest of the candidates that are as near to the model as the best, within noise.

    A polynomial of degree 2 can equal three gradient steps. Where more parameters bring nothing, the
    algorithm with fewer parameters, or fewer steps, is chosen. Its distance has to be small as well: an
    algorithm that diverges on a few sequences has a large distance and a large noise.

    Args:
        scores: on the sequences to choose by.
        candidates: the simplest first among equals, as :func:`fit_candidates` gives them.

    Returns:
        The first in order of parameters whose distance exceeds that of the best by no more than three
        standard errors of the difference, and by no more than a quarter; or by rounding only.
    """
    best = min(candidates, key=lambda c: scores.distance[c.name].mean().item())
    by_simplicity = sorted(candidates, key=lambda c: c.num_parameters)  # stable
    limit = _SMALL_EXCESS * Estimate.ratio(scores.distance[best.name], scores.size).value
    return next(c for c in by_simplicity if _as_near(scores.margin(best.name, c.name), limit))


# In shares of |f|^2: predictions that differ by a thousandth, more than by float32 and by line searches.
_ROUNDING = 1e-6
_SMALL_EXCESS = 0.25


def _as_near(excess: Estimate, limit: float) -> bool:
    return excess.value <= _ROUNDING or (excess.low <= 0 and excess.value <= limit)
