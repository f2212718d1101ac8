"""The diagnosis from end to end: distribution shifts, candidates, scores, evidence, verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mesaopt.analysis.capture import evaluating
from mesaopt.analysis.diagnosis.algorithms import Algorithm, check_algorithms
from mesaopt.analysis.diagnosis.candidates import (
    LEAST_SQUARES,
    NUM_CANDIDATES,
    Candidate,
    fit_candidates,
)
from mesaopt.analysis.diagnosis.drawing import draw_agreement
from mesaopt.analysis.diagnosis.evidence import (
    PROBE_BATCHES,
    Learning,
    Memory,
    ProbeResults,
    learning_in_context,
    memory_of,
    probe_model,
)
from mesaopt.analysis.diagnosis.model_target import ModelAsTarget, checked_predictor
from mesaopt.analysis.diagnosis.rates import RATE_BATCHES, Rates, matched_steps
from mesaopt.analysis.diagnosis.regression import InContextRegression, regression_of
from mesaopt.analysis.diagnosis.scores import Scores, nearest, score
from mesaopt.analysis.diagnosis.shifts import (
    UNSUPPORTED,
    DistributionShift,
    distribution_shifts,
    supported,
)
from mesaopt.analysis.diagnosis.verdict import Agreement, ShiftResult, Verdict, judge
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, loaded, task_of
from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.prompts import PromptKind
from mesaopt.display import Drawn, Row
from mesaopt.progress import AnyProgress, Progress, Report, reporting
from mesaopt.tasks import Reading


@dataclass(frozen=True, repr=False)
class Diagnosis(Drawn):
    """The answer to "is there a mesa-optimizer in this model?", and the evidence for it."""

    verdict: Verdict
    """The answer and the reasons for it."""
    learning: Learning
    """Losses by position on new systems."""
    agreements: tuple[Agreement, ...]
    """Agreement of all candidates with the model, the nearest first."""
    nearest: str
    """The simplest candidate that is as near to the model as the best, within noise."""
    optimizer: str
    """The same among the optimizers."""
    second: str
    """The nearest of the other candidates."""
    lead: Estimate
    """Distance of the second less that of the nearest, in shares of the model's squared predictions."""
    shifts: tuple[ShiftResult, ...]
    """The nearest optimizer under distribution shifts, with the same parameters."""
    skipped: tuple[str, ...]
    """Shifts whose sequences the model cannot process, such as longer ones; none that count."""
    left_out: Mapping[str, str]
    """Parts that were not judged, with the reason."""
    prompts: PromptKind
    """Prompts are "states", each the answer to the one before it, or "pairs" of inputs and answers."""
    probes: ProbeResults | None
    """Probes of the layers; None where no layers are known."""
    rates: Rates | None
    """Steps of gradient descent and of Newton's method by layer; None where no layers are known."""
    memory: Memory | None
    """The negative control, for a model trained on a single system."""
    num_sequences: int
    """Number of test sequences of each distribution."""

    def agreement(self, candidate: str) -> Agreement:
        """Return the agreement of one candidate with the model.

        Args:
            candidate: name of the candidate.

        Returns:
            Its agreement.

        Raises:
            KeyError: there is none of this name.
        """
        for agreement in self.agreements:
            if agreement.candidate == candidate:
                return agreement
        raise KeyError(candidate)

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain values.

        Returns:
            Lists and dictionaries by the names of the fields. Numbers that are not finite are None.
        """
        return _plain(asdict(self))

    def _headline(self) -> str:
        return f"{self.verdict.answer.capitalize()}.\n{self.verdict.sentence}"

    def _rows(self) -> list[Row]:
        rows: list[Row] = [
            {
                "sequences": "as trained",
                "candidate": one.candidate,
                "kind": one.kind,
                "of_predictions": one.predictions,
                "of_errors": one.errors,
                "loss": one.loss,
            }
            for one in self.agreements
        ]
        rows += [
            {
                "sequences": one.name,
                "candidate": self.optimizer,
                "kind": "optimizer",
                "of_predictions": one.predictions,
                "of_errors": one.errors,
            }
            for one in self.shifts
        ]
        return rows

    def _table(self) -> list[Row]:
        return [
            {"condition": one.name, "met": one.met, "measured": one.measured}
            for one in self.verdict.conditions
        ]

    def _draw(self, axes: Any) -> None:
        draw_agreement(axes, self.agreement(self.optimizer), self.shifts)


def diagnose(
    model: AnyModel,
    task: AnyTask | None = None,
    *,
    regression: Reading | None = None,
    algorithms: Sequence[Algorithm] = (),
    shifts: Mapping[str, AnyTask] | None = None,
    names: Sequence[str] | None = None,
    num_sequences: int = 1024,
    seed: int = 0,
    progress: AnyProgress = True,
) -> Diagnosis:
    """Decide whether a model predicts by optimizing on its context.

    Each candidate algorithm is fitted to the *model* on validation sequences: its step size, ridge or
    coefficients are those with which it comes nearest to the model's predictions. On test sequences its
    distance is measured, as a share of the model's predictions and of the model's errors,

        1 - sum |f - g|^2 / sum |f|^2    and    1 - sum |f - g|^2 / sum |f - y|^2,

    with the model's predictions f, the algorithm's predictions g and the targets y: next states, or answers
    where prompts are pairs. This is repeated, with the same parameters, on prompts that are rescaled and
    damped. Linear probes show the content of
    layers, and linear readouts of them are matched with numbers of steps.

    Every sequence of a task of the library has a new system, also for a model that was trained on a single
    one. What cannot be judged is in `.left_out`, with the reason.

    Args:
        model: any module from tokens [batch, time, token] to predictions [batch, time, dim], on any device;
            position t may depend on tokens up to t only. Or a Run or its path.
        task: its training task, that of the run if not given. Of the library, or of your own where it is
            known how to read its prompts: see `regression`. Algorithms see five stacked observations of a
            :class:`mesaopt.tasks.PartiallyObserved`, and the features of the states of a
            :class:`mesaopt.tasks.NonlinearSystem`.
        regression: how prompts are read: a function from a batch to a :class:`mesaopt.tasks.Regression`. If
            not given, the method `regression` of the task; without one, a task with `states` asks for the
            next state.
        algorithms: of your own, compared with the model like the built-in ones: their parameters are fitted
            to it, and an optimizer among them can be the reason for a "yes".
        shifts: tasks of your own by name, with prompts unlike those of training, on which a "yes" has to
            hold too.
        names: layers to be probed and matched, first to last, as in :func:`mesaopt.analysis.capture`. The
            residual stream of a :class:`mesaopt.models.SequenceModel` if not given, and no layer of other
            modules.
        num_sequences: test sequences, rounded up to whole batches of 256.
        seed: of all sequences.
        progress: a bar, nothing, or a function of the number of finished batches and fits: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The diagnosis; `.verdict.answer` is "yes", "no" or "unclear".

    Raises:
        TypeError: there is no model or no task.
        ValueError: it is not known how to read the prompts, or they show an answer before it is asked for;
            the model fails on its tokens, returns something other than predictions, or depends on later
            tokens, or one of the algorithms does; two algorithms share a name; there is no such layer; or
            num_sequences is less than 1.

    Source: von Oswald et al. compare losses and interpolate weights; distances in function space, on and
    off the training distribution, are those of von Oswald et al. 2023, "Transformers learn in-context by
    gradient descent" (arXiv 2212.07677). The share of errors is ours: good predictors agree in their
    predictions, whatever they do inside.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import gradient_descent
        >>> from torch import nn
        >>> class Descent(nn.Module):
        ...     def forward(self, tokens):
        ...         return gradient_descent(tokens, step_size=0.05)
        >>> task = LinearSystem(LinearSystemConfig(dim=3, length=9, token_slots=("current",)))
        >>> diagnosis = diagnose(Descent(), task, num_sequences=256)
        >>> diagnosis.verdict.answer, diagnosis.nearest
        ('yes', '1 gradient step')
    """
    test = Evaluation(num_sequences=num_sequences, seed=seed)
    given = loaded(model)
    model, problem = as_model(given), regression_of(task_of(given, task), regression)
    with evaluating(model), reporting(progress, "diagnosis") as report:
        predict = checked_predictor(model, problem.task)
        check_algorithms(algorithms, problem.task)
        possible, left_out = distribution_shifts(problem, shifts or {})
        measured, skipped = supported(predict, possible)
        pieces = _Pieces(report, _amount(test, len(measured), len(algorithms)))
        test = replace(test, progress=pieces.advance)
        probes = probe_model(model, problem, names, seed=seed, progress=pieces.advance)
        target = ModelAsTarget(problem.task, predict)
        candidates = fit_candidates(target, algorithms, seed=seed, progress=pieces.advance)
        ridge = next(c for c in candidates if c.name == LEAST_SQUARES).parameters["ridge"]
        rates = matched_steps(
            model, problem, names, ridge=ridge, seed=seed, progress=pieces.advance
        )
        scores = score(predict, candidates, problem.task, test)
        optimizer = nearest(scores, [c for c in candidates if c.kind == "optimizer"])
        shifted = tuple(_shifted(predict, one, optimizer, candidates, test) for one in measured)
        silent = replace(test, progress=False)
        learning = learning_in_context(predict, optimizer.predict, problem, silent)
        memory = memory_of(predict, problem, silent) if problem.training_task is not None else None
    agreements = _agreements(scores, candidates)
    by_name = {agreement.candidate: agreement for agreement in agreements}
    first = nearest(scores, candidates).name
    second = next(name for name in by_name if name != first)
    margin = scores.margin(optimizer.name, _rival(scores, candidates))
    return Diagnosis(
        verdict=judge(learning, by_name[first], by_name[optimizer.name], margin, shifted),
        learning=learning,
        agreements=agreements,
        nearest=first,
        optimizer=optimizer.name,
        second=second,
        lead=scores.margin(first, second),
        shifts=shifted,
        skipped=skipped,
        left_out=left_out | _not_judged(problem, skipped, probes),
        prompts=problem.task.kind,
        probes=probes,
        rates=rates,
        memory=memory,
        num_sequences=len(scores.size),
    )


def _not_judged(
    problem: InContextRegression, skipped: Sequence[str], probes: ProbeResults | None
) -> dict[str, str]:
    """Give the reason for what a diagnosis lacks, besides shifts that cannot be made."""
    reasons = dict.fromkeys(skipped, UNSUPPORTED)
    if probes is None:
        reasons["probes and rates"] = "the layers of this model are not known: give names=[...]"
    if not (problem.is_new_in_every_sequence or problem.training_task is not None):
        reasons["memory"] = (
            "whether a task of your own has a new system in every sequence is not known"
        )
    return reasons


def _shifted(
    predict: Predictor,
    shift: DistributionShift,
    optimizer: Candidate,
    candidates: Sequence[Candidate],
    evaluation: Evaluation,
) -> ShiftResult:
    """Measure the agreement of the nearest optimizer with the model under a distribution shift."""
    others = [c for c in candidates if c.kind == "other"]
    scores = score(predict, [optimizer, *others], shift.task, evaluation)
    rival = _rival(scores, others)
    return ShiftResult(
        name=shift.name,
        counts=shift.counts,
        model_loss=scores.model_loss,
        predictions=scores.of_predictions(optimizer.name),
        errors=scores.of_errors(optimizer.name),
        rival=rival,
        rival_predictions=scores.of_predictions(rival),
        margin=scores.margin(optimizer.name, rival),
    )


def _rival(scores: Scores, candidates: Sequence[Candidate]) -> str:
    """Name the candidate nearest to the model that is no optimizer."""
    others = [c.name for c in candidates if c.kind == "other"]
    return min(others, key=lambda name: scores.distance[name].mean().item())


def _agreements(scores: Scores, candidates: Sequence[Candidate]) -> tuple[Agreement, ...]:
    """Give the agreement of all candidates, the nearest first."""
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


def _amount(evaluation: Evaluation, num_shifts: int, num_algorithms: int) -> int:
    """Count the pieces of work, which take about the same time each."""
    candidates = NUM_CANDIDATES + num_algorithms
    return candidates + RATE_BATCHES + PROBE_BATCHES + (1 + num_shifts) * evaluation.num_batches


class _Pieces:
    """Counts the pieces of work of all stages together."""

    def __init__(self, report: Report, total: int):
        self._report, self._total, self._done = report, total, 0

    def advance(self, _: Progress) -> None:
        self._done += 1
        self._report(min(self._done, self._total), self._total)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
