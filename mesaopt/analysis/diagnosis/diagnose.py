"""Put the question to a model: laws, candidates, scores, evidence, verdict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from mesaopt.analysis.capture import evaluating
from mesaopt.analysis.diagnosis.candidates import NUM_CANDIDATES, Candidate, fit_candidates
from mesaopt.analysis.diagnosis.evidence import (
    PROBE_BATCHES,
    Inside,
    Learning,
    Memory,
    learning_in_context,
    look_inside,
    memory_of,
)
from mesaopt.analysis.diagnosis.laws import (
    Imitation,
    Law,
    other_laws,
    predictor_of,
    problem_of,
    taken,
)
from mesaopt.analysis.diagnosis.scores import Scores, nearest, score
from mesaopt.analysis.diagnosis.verdict import Agreement, Shift, Verdict, judge
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.in_context import Predictor
from mesaopt.progress import OnProgress
from mesaopt.tasks import Task


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "is there a mesa-optimizer in here?", and everything it rests on."""

    verdict: Verdict
    learning: Learning
    agreements: tuple[Agreement, ...]
    """Of all candidates, the nearest first by distance."""
    nearest: str
    """The simplest candidate that is as near as any, within noise."""
    optimizer: str
    """The same among the optimizers."""
    second: str
    """The nearest of the others."""
    lead: Estimate
    """By how much the nearest is nearer than the second, in shares of the model's squared predictions."""
    shifts: tuple[Shift, ...]
    """The nearest optimizer under other laws, its parameters kept."""
    skipped: tuple[str, ...]
    """Laws that the model cannot take, such as sequences longer than it has positions; none that count."""
    inside: Inside | None
    """What probes read; None where no layers are known."""
    memory: Memory | None
    """The negative control, of models trained on one fixed system."""
    num_sequences: int
    """Test sequences, under each law."""

    def agreement(self, candidate: str) -> Agreement:
        """Return what was found for one candidate.

        Raises:
            KeyError: there is none of this name.
        """
        for agreement in self.agreements:
            if agreement.candidate == candidate:
                return agreement
        raise KeyError(candidate)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain lists and dictionaries; numbers that are not finite become None."""
        return _plain(asdict(self))


def diagnose(
    model: nn.Module,
    task: Task,
    *,
    names: Sequence[str] | None = None,
    num_sequences: int = 1024,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Say whether a model predicts by optimizing on its context.

    Every algorithm listed is fitted to the *model* on validation sequences: its step size, ridge or
    coefficients are those with which it comes nearest to what the model predicts. On test sequences its
    distance is measured, as a share of what the model predicts and of what the model gets wrong,

        1 - sum |f - g|^2 / sum |f|^2    and    1 - sum |f - g|^2 / sum |f - y|^2,

    f being the model's predictions, g the algorithm's and y what came next. Then states are rescaled and
    damped, all parameters kept. Linear probes look inside.

    Sequences are of systems that are new in each of them, also for a model that was trained on one.

    Args:
        model: any module from tokens [batch, time, token] to predictions [batch, time, dim], on the CPU;
            position t may depend on tokens up to t only.
        task: what it was trained on: a :class:`mesaopt.tasks.LinearSystem`, or a
            :class:`mesaopt.tasks.PartiallyObserved`, where algorithms see five observations side by side.
        names: parts to be probed, first to last, as in :func:`mesaopt.analysis.capture`. The residual
            stream of a :class:`mesaopt.models.SequenceModel` if not given, and nothing of other modules.
        num_sequences: test sequences, rounded up to whole batches of 256.
        seed: of all sequences.
        on_progress: called with the finished and the total number of batches and fits.

    Returns:
        The diagnosis; `.verdict.answer` is "yes", "no" or "unclear".

    Raises:
        ValueError: the task is not covered; the model cannot take its tokens, gives something else than
            predictions, or looks at later tokens; there is no such layer; or there are no sequences.

    Source: von Oswald et al. compare losses and interpolate weights; distances in function space, on and
    off the training law, are those of von Oswald et al. 2023, "Transformers learn in-context by gradient
    descent" (arXiv 2212.07677). The share of errors is ours: good predictors agree in what they predict,
    whatever they do inside.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import gradient_descent
        >>> class Descent(nn.Module):
        ...     def forward(self, tokens):
        ...         return gradient_descent(tokens, step_size=0.05)
        >>> task = LinearSystem(LinearSystemConfig(dim=3, length=9, token_slots=("current",)))
        >>> found = diagnose(Descent(), task, num_sequences=256)
        >>> found.verdict.answer, found.nearest
        ('yes', '1 gradient step')
    """
    test = Evaluation(num_sequences=num_sequences, seed=seed)
    problem = problem_of(task)
    with evaluating(model):
        predict = predictor_of(model, problem.task)
        laws, skipped = taken(predict, other_laws(problem.task))
        progress = _Progress(on_progress, _amount(test, len(laws)))
        test = replace(test, on_progress=progress.advance)
        inside = look_inside(model, problem, names, seed=seed, on_progress=progress.advance)
        candidates = fit_candidates(
            Imitation(problem.task, predict),
            problem.inputs,
            seed=seed,
            on_progress=progress.advance,
        )
        scores = score(predict, candidates, problem.task, test)
        optimizers = [c for c in candidates if c.kind == "optimizer"]
        optimizer = nearest(scores, optimizers)
        shifts = tuple(_shift(predict, law, optimizer, candidates, test) for law in laws)
        silent = replace(test, on_progress=None)
        learning = learning_in_context(predict, optimizer.predict, problem, silent)
        memory = memory_of(predict, problem, silent) if problem.taught is not None else None
    agreements = _agreements(scores, candidates)
    first = nearest(scores, candidates)
    second = next(a.candidate for a in agreements if a.candidate != first.name)
    by_name = {agreement.candidate: agreement for agreement in agreements}
    verdict = judge(
        learning,
        by_name[first.name],
        by_name[optimizer.name],
        scores.nearer(optimizer.name, _rival(scores, candidates)),
        shifts,
    )
    return Diagnosis(
        verdict=verdict,
        learning=learning,
        agreements=agreements,
        nearest=first.name,
        optimizer=optimizer.name,
        second=second,
        lead=scores.nearer(first.name, second),
        shifts=shifts,
        skipped=skipped,
        inside=inside,
        memory=memory,
        num_sequences=len(scores.size),
    )


def _shift(
    predict: Predictor,
    law: Law,
    optimizer: Candidate,
    candidates: Sequence[Candidate],
    evaluation: Evaluation,
) -> Shift:
    others = [c for c in candidates if c.kind == "other"]
    scores = score(predict, [optimizer, *others], law.task, evaluation)
    rival = _rival(scores, others)
    return Shift(
        law=law.name,
        counts=law.counts,
        model_loss=scores.model_loss,
        predictions=scores.of_predictions(optimizer.name),
        errors=scores.of_errors(optimizer.name),
        rival=rival,
        rival_predictions=scores.of_predictions(rival),
        margin=scores.nearer(optimizer.name, rival),
    )


def _rival(scores: Scores, candidates: Sequence[Candidate]) -> str:
    """Name the nearest candidate that is no optimizer."""
    others = [c.name for c in candidates if c.kind == "other"]
    return min(others, key=lambda name: scores.distance[name].mean().item())


def _agreements(scores: Scores, candidates: Sequence[Candidate]) -> tuple[Agreement, ...]:
    by_distance = sorted(candidates, key=lambda c: scores.distance[c.name].mean().item())
    return tuple(
        Agreement(
            candidate=c.name,
            kind=c.kind,
            parameters=c.parameters,
            num_parameters=c.num_parameters,
            predictions=scores.of_predictions(c.name),
            errors=scores.of_errors(c.name),
            loss=scores.loss[c.name],
        )
        for c in by_distance
    )


def _amount(evaluation: Evaluation, num_laws: int) -> int:
    """Count the pieces of work, which take about the same time each."""
    return NUM_CANDIDATES + PROBE_BATCHES + (1 + num_laws) * evaluation.num_batches


class _Progress:
    """Counts the pieces of work of all stages together."""

    def __init__(self, on_progress: OnProgress | None, total: int):
        self._on_progress, self._total, self._done = on_progress, total, 0

    def advance(self, *_: int) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
