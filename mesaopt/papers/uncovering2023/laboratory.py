"""What the comparisons share: every model and algorithm, scored on the same test sequences."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    in_context_loss,
    learn_inverse,
    line_search_step_size,
    model_predictor,
    tune_ridge,
)
from mesaopt.config import stacked
from mesaopt.papers.plan import Measured, Report
from mesaopt.papers.uncovering2023.core_measure import average
from mesaopt.tasks import Batch, NonlinearSystem, Task, make_task, tokens_from_states
from mesaopt.theory import (
    PUBLISHED_INVERSES,
    PUBLISHED_SETTINGS,
    ApproximateInverse,
    Pairs,
    gradient_descent,
    neumann_inverse,
    preconditioned_descent,
    ridge_least_squares,
)
from mesaopt.training import Run

GRADIENT_STEP = "one gradient step"
LEAST_SQUARES = "least squares"
OFFICIAL = ", official"
"""Marks baselines that leave out the newest pair, as the authors' code does."""

RECIPES: dict[str, tuple[str, ...]] = {
    "linear": (
        *("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1"),
        *("tf-3", "tf-7", "tf-12", "hybrid-mesa"),
    ),
    "partial": ("tf-7-partial", "hybrid-mesa-partial"),
    "nonlinear": ("tf-7-nonlinear", "hybrid-mesa-nonlinear"),
    "contracting": tuple(
        f"contracting-{m}" for m in ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1")
    ),
    "fixed": tuple(f"fixed-{m}" for m in ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1")),
}
"""Recipes whose models are compared on each task."""

_TASKS = {
    "linear": "linear",
    "partial": "partial",
    "nonlinear": "nonlinear",
    "contracting": "contracting-constructed",
    "fixed": "fixed-constructed",
}
_STACKED = 16  # observations side by side in the authors' baseline for partial observation
_TUNING = Evaluation(num_sequences=512, split="validation")

Inputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Everything scored on one task."""

    task: str
    losses: dict[str, InContextLoss]
    """By predictor; a model's are the mean over its seeds, sequence by sequence."""
    seed_losses: dict[str, list[InContextLoss]]
    """By recipe, one per seed."""
    settings: dict[str, float]
    """What was tuned on validation sequences, by name."""


@dataclass(frozen=True)
class Laboratory(Measured):
    """Comparisons by task, each made for the first figure that asks."""

    _comparisons: dict[str, Comparison] = field(default_factory=dict)

    def comparison(self, task: str, report: Report) -> Comparison:
        """Score the models and baselines of a task on fresh test sequences.

        Args:
            task: "linear", "partial", "nonlinear", "contracting" or "fixed".
            report: told the batches of 256 test sequences done.

        Returns:
            The losses.
        """
        if task not in self._comparisons:
            self._comparisons[task] = self._compare(task, report)
        return self._comparisons[task]

    def _compare(self, name: str, report: Report) -> Comparison:
        task = make_task(recipes.TASKS[_TASKS[name]])
        trained = {recipe: self.runs.get(recipe, []) for recipe in RECIPES[name]}
        baselines, settings = _BASELINES[name](task)
        predictors = baselines | {
            f"{recipe}/{seed}": _predictor(run)
            for recipe, runs in trained.items()
            for seed, run in enumerate(runs)
        }
        losses = in_context_loss(
            predictors,
            task,
            Evaluation(num_sequences=self.plan.num_sequences, on_progress=report),
        )
        seed_losses = {
            recipe: [losses[f"{recipe}/{seed}"] for seed in range(len(runs))]
            for recipe, runs in trained.items()
            if runs
        }
        drawn = {baseline: losses[baseline] for baseline in baselines}
        drawn |= {recipe: average(by_seed) for recipe, by_seed in seed_losses.items()}
        return Comparison(name, drawn, seed_losses, settings)


def _predictor(run: Run) -> Predictor:
    return model_predictor(run.model.cpu(), run.config.task.token_slots)


Baselines = tuple[dict[str, Predictor], dict[str, float]]
"""Predictors by name, and what was tuned for them."""


def _least_squares(ridge: float, pairs: Pairs = "all", inputs: Inputs | None = None) -> Predictor:
    def predict(batch: Batch) -> Tensor:
        known = None if inputs is None else inputs(batch.observed)
        return ridge_least_squares(batch.observed, ridge=ridge, inputs=known, pairs=pairs)

    return predict


def _steps(
    inverse: ApproximateInverse, pairs: Pairs = "all", inputs: Inputs | None = None
) -> Predictor:
    def predict(batch: Batch) -> Tensor:
        known = None if inputs is None else inputs(batch.observed)
        return preconditioned_descent(batch.observed, inverse, inputs=known, pairs=pairs)

    return predict


def _both(name: str, make: Callable[[Pairs], Predictor]) -> dict[str, Predictor]:
    """Make a baseline of all pairs, and one without the newest."""
    return {name: make("all"), name + OFFICIAL: make("official")}


def _gradient_step(task: Task) -> Baselines:
    size = line_search_step_size(task)
    predict: Predictor = lambda batch: gradient_descent(batch.observed, step_size=size)  # noqa: E731
    return {GRADIENT_STEP: predict}, {"step size of one gradient step": size}


def _tuned_ridge(task: Task, inputs: Inputs | None = None) -> float:
    return tune_ridge(task, inputs=inputs, tolerance=0.03, evaluation=_TUNING).value


def _linear(task: Task) -> Baselines:
    baselines, settings = _gradient_step(task)
    ridge = PUBLISHED_SETTINGS["fully-observed/ridge"].value
    baselines |= _both(LEAST_SQUARES, lambda pairs: _least_squares(ridge, pairs))
    published = {
        "6 steps and one": "constructed",
        "3-layer steps": "3-layer",
        "7-layer steps": "7-layer",
    }
    for name, key in published.items():
        inverse = PUBLISHED_INVERSES[key]
        baselines |= _both(name, lambda pairs, inverse=inverse: _steps(inverse, pairs))
    return baselines, settings


def _control(published: str) -> Callable[[Task], Baselines]:
    def make(task: Task) -> Baselines:
        baselines, settings = _gradient_step(task)
        ridge = _tuned_ridge(task)
        baselines[LEAST_SQUARES] = _least_squares(ridge)
        inverse = PUBLISHED_INVERSES[published]
        baselines |= _both("steps", lambda pairs: _steps(inverse, pairs))
        return baselines, settings | {"ridge of least squares": ridge}

    return make


def _learned_steps(
    task: Task, name: str, inputs: Inputs | None, ridge: float
) -> dict[str, Predictor]:
    """Learn six steps on validation sequences, with all pairs and without the newest."""

    def make(pairs: Pairs) -> Predictor:
        start = neumann_inverse(6, ridge=ridge, scale="frobenius")
        learned = learn_inverse(task, start, inputs=inputs, pairs=pairs, evaluation=_TUNING)
        return _steps(learned, pairs, inputs)

    return _both(name, make)


def _partial(task: Task) -> Baselines:
    def side_by_side(states: Tensor) -> Tensor:
        return tokens_from_states(states, stacked(_STACKED))

    ridge = _tuned_ridge(task, side_by_side)
    baselines = _learned_steps(task, "steps on one observation", None, 1.0)
    baselines |= _learned_steps(task, "steps on 16 observations", side_by_side, ridge)
    baselines["least squares on 16 observations"] = _least_squares(ridge, inputs=side_by_side)
    return baselines, {"ridge on 16 observations": ridge}


def _nonlinear(task: Task) -> Baselines:
    features = cast(NonlinearSystem, task).features
    ridge = _tuned_ridge(task, features)
    baselines = _learned_steps(task, "steps on states", None, 1e-3)
    baselines |= _learned_steps(task, "steps on features", features, ridge)
    baselines["least squares on features"] = _least_squares(ridge, inputs=features)
    return baselines, {"ridge on features": ridge}


_BASELINES: dict[str, Callable[[Task], Baselines]] = {
    "linear": _linear,
    "partial": _partial,
    "nonlinear": _nonlinear,
    "contracting": _control("contracting"),
    "fixed": _control("fixed-transition"),
}
