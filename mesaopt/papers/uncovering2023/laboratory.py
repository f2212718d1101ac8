"""The laboratory of von Oswald et al.: settings by scale, and the measurements that several files share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    effective_coefficients,
    in_context_loss,
    learn_inverse,
    line_search_step_size,
    model_predictor,
    tune_ridge,
)
from mesaopt.analysis.estimate import Estimate, variance_over_seeds
from mesaopt.config import RunConfig, TaskConfig, stacked
from mesaopt.errors import RunError
from mesaopt.models import SequenceModel
from mesaopt.papers import laboratory
from mesaopt.papers.claims import Claim
from mesaopt.papers.laboratory import Plan, measurement
from mesaopt.papers.uncovering2023.settings import SETTINGS, Settings
from mesaopt.recipes import RECIPES
from mesaopt.tasks import Batch, NonlinearSystem, Task, make_task, tokens_from_states
from mesaopt.theory import (
    PUBLISHED_INVERSES,
    PUBLISHED_SETTINGS,
    ApproximateInverse,
    Pairs,
    gradient_descent,
    neumann_inverse,
    preconditioned_descent,
    proposition_1,
    ridge_least_squares,
)
from mesaopt.training import Run

GRADIENT_STEP = "one gradient step"
LEAST_SQUARES = "least squares"
CONSTRUCTION = "Proposition 1 weights"
OFFICIAL = ", official"
"""Marks algorithms that leave out the newest pair, as the authors' code does."""

LATE = slice(10, None)
"""Positions from the eleventh on, of systems of dimension 10. Until then a context has fewer pairs than W
has columns, nobody can know W, and mean losses are almost these positions' alone."""

TASKS = {
    "linear": "linear",
    "partial": "partial",
    "nonlinear": "nonlinear",
    "contracting": "contracting-constructed",
    "fixed": "fixed-constructed",
    "core": "linear",
}
"""Names in `recipes.TASKS` of the tasks that models are compared on."""

COMPARED: dict[str, tuple[str, ...]] = {
    "linear": (
        "lsa-1",
        "lsa-2",
        "lsa-4",
        "lsa-6",
        "mesa-1",
        "tf-3",
        "tf-7",
        "tf-12",
        "hybrid-mesa",
    ),
    "partial": ("tf-7-partial", "hybrid-mesa-partial"),
    "nonlinear": ("tf-7-nonlinear", "hybrid-mesa-nonlinear"),
    "contracting": tuple(
        f"contracting-{m}" for m in ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1")
    ),
    "fixed": tuple(f"fixed-{m}" for m in ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1")),
    "core": ("lsa-1", "lsa-2-notebook", "mesa-1"),
}
"""Recipes whose models are compared on each task; the study `core` has a comparison of its own."""

_STACKED = 16  # observations in one token of the authors' baseline for partial observation
_TUNING = Evaluation(num_sequences=512, split="validation")
_PUBLISHED_SEQUENCES = 1280
"""Test sequences behind a published curve: five batches of 256."""

Inputs = Callable[[Tensor], Tensor]
Algorithms = tuple[dict[str, Predictor], dict[str, float]]
"""Predictors by name, and what was tuned for them."""


class Laboratory(laboratory.Laboratory):
    """The runs of the first paper and what is measured on them."""

    plan: Plan

    @property
    def settings(self) -> Settings:
        """The settings of the plan's scale."""
        return SETTINGS[self.plan.scale]

    def trained(self, recipe: str) -> list[Run]:
        """Give the runs of a recipe, one per seed; none if the plan has none."""
        return self.runs.get(recipe, [])

    def lacks(self, *recipes: str) -> bool:
        """Say whether one of these recipes has no runs: claims about it wait."""
        return not all(map(self.trained, recipes))

    def claim(self, *recipes: str, measure: Callable[[], Estimate], **fields: Any) -> Claim:
        """Make a claim about models; where one of them has no runs nothing is measured, and it waits."""
        measured = None if self.lacks(*recipes) else measure()
        return Claim(measured=measured, recipes=recipes, **fields)

    def as_published(self, recipe: str) -> bool:
        """Say whether all runs of a recipe were trained as published; runs that are missing will be."""
        return all(as_published(run.config) for run in self.trained(recipe))

    def test_sequences(self) -> dict[str, int]:
        """Give the number of test sequences, for the settings of a figure."""
        return {"test sequences": self.plan.num_sequences}


def network_note(lab: "Laboratory", recipe: str) -> str:
    """Say how the network of a recipe's runs differs from the published one; "" if it does not.

    The authors' code swaps the names of keys and values in its mesa layer. Their network of softmax and
    mesa layers for the nonlinear task therefore divides queries and values by their norms, where the text
    and our recipe divide queries and keys. Runs imported from their weights are of their network.
    """
    if recipe != "hybrid-mesa-nonlinear":
        return ""
    models = [run.config.sequence_model for run in lab.trained(recipe)]
    if models and all(model.unit_queries_values == "after_first" for model in models):
        return ""
    return (
        "of a network that divides queries and values by their norms; ours divides queries and keys"
    )


def as_published(config: RunConfig) -> bool:
    """Say whether a run's training is its recipe's, but for the test sequences."""
    published = RECIPES[config.recipe].config.train
    return config.train == replace(
        published, evaluation_sequences=config.train.evaluation_sequences
    )


@dataclass(frozen=True)
class Comparison:
    """The losses of all models and algorithms on one task, on the same test sequences."""

    task: str
    losses: dict[str, InContextLoss]
    """By predictor; a model's are the mean over its seeds, sequence by sequence."""
    seed_losses: dict[str, list[InContextLoss]]
    """By recipe, one per seed."""
    settings: dict[str, float]
    """Numbers tuned on validation sequences, by name."""

    def has(self, *names: str) -> bool:
        """Say whether all these predictors were compared."""
        return all(name in self.losses for name in names)

    def ratio(self, first: str, second: str, positions: slice = slice(None)) -> Estimate | None:
        """Give the ratio of two mean losses; None where one of them was not compared.

        Its variance is that over test sequences, and over the training seeds of both where there are
        several.
        """
        if not self.has(first, second):
            return None

        def mean_losses(loss: InContextLoss) -> Tensor:
            return loss.losses[:, positions].mean(1)

        a, b = (mean_losses(self.losses[name]) for name in (first, second))
        above, below = (
            torch.tensor([mean_losses(one).mean() for one in self.seed_losses.get(name, [])])
            for name in (first, second)
        )
        return Estimate.ratio_of_models(a, b, above_seeds=above, below_seeds=below)

    def claim(
        self, first: str, second: str, positions: slice = slice(None), **fields: Any
    ) -> Claim:
        """Make a claim about :meth:`ratio`, which waits for the models among the two."""
        return Claim(
            measured=self.ratio(first, second, positions),
            recipes=tuple(name for name in (first, second) if name in RECIPES),
            **fields,
        )

    def mean(self, name: str, positions: slice | list[int] = slice(None)) -> Estimate:
        """Give a mean loss with the error of its difference to a published one.

        The error is that of the test sequences of both, and of our training seeds. Theirs is one training.
        """
        losses = self.losses[name].losses[:, positions].mean(1)
        sequences = losses.var() * (1 / len(losses) + 1 / _PUBLISHED_SEQUENCES)
        seeds = self.seed_losses.get(name, [])
        means = torch.tensor([one.losses[:, positions].mean() for one in seeds])
        return Estimate.from_variances(losses.mean(), sequences, variance_over_seeds(means))


def average(losses: list[InContextLoss]) -> InContextLoss:
    """Average losses over seeds, sequence by sequence.

    Example:
        >>> a, b = InContextLoss(torch.zeros(3, 2)), InContextLoss(torch.ones(3, 2))
        >>> average([a, b]).mean
        0.5
    """
    return InContextLoss(torch.stack([loss.losses for loss in losses]).mean(0))


def predictor_of(run: Run) -> Predictor:
    """Make a predictor of a trained model."""
    return model_predictor(run.model.cpu(), run.config.task.token_slots)


@measurement
def compare(lab: Laboratory, task: str) -> Comparison:
    """Score the models and algorithms of a task on fresh test sequences.

    Args:
        lab: the runs.
        task: "linear", "partial", "nonlinear", "contracting", "fixed" or "core".

    Returns:
        The losses.
    """
    trained = {recipe: lab.trained(recipe) for recipe in COMPARED[task]}
    where = make_task(_with_matrices_of(sum(trained.values(), []), recipes.TASKS[TASKS[task]]))
    algorithms, settings = _ALGORITHMS[task](lab, where)
    predictors = algorithms | {
        f"{recipe}/{seed}": predictor_of(run)
        for recipe, runs in trained.items()
        for seed, run in enumerate(runs)
    }
    evaluation = Evaluation(num_sequences=lab.plan.num_sequences, progress=lab.on_progress)
    losses = in_context_loss(predictors, where, evaluation)
    seed_losses = {
        recipe: [losses[f"{recipe}/{seed}"] for seed in range(len(runs))]
        for recipe, runs in trained.items()
        if runs
    }
    drawn = {name: losses[name] for name in algorithms}
    drawn |= {recipe: average(by_seed) for recipe, by_seed in seed_losses.items()}
    return Comparison(task, drawn, seed_losses, settings)


def _with_matrices_of(runs: list[Run], config: TaskConfig) -> TaskConfig:
    """Give a task the fixed matrices that its runs were trained on, such as those of a released network."""
    names = ("teacher_seed", "matrix", "teacher_hidden", "teacher_output")
    names = [name for name in names if hasattr(config, name)]
    found = {tuple(getattr(run.config.task, name) for name in names) for run in runs}
    if len(found) > 1:
        who = ", ".join(sorted({run.config.recipe for run in runs}))
        raise RunError(f"runs of {who}: are of different matrices, and cannot be compared")
    return replace(config, **dict(zip(names, *found, strict=True))) if found else config


@measurement
def slot_coefficients(lab: Laboratory, recipe: str) -> Float[Tensor, "seed query key value"]:
    """Give the effective coefficients of runs of one layer, in the slots (current, previous)."""
    return torch.stack([_coefficients(run) for run in lab.trained(recipe)])


@torch.no_grad()
def _coefficients(run: Run) -> Float[Tensor, "query key value"]:
    slots = run.config.task.token_slots
    kept = [slots.index("current"), slots.index("previous")]
    full = effective_coefficients(run.sequence_model.mixers[0], run.config.task.dim)
    return full[kept][:, kept][:, :, kept]


def rounded(settings: dict[str, float]) -> dict[str, float]:
    """Round tuned numbers for the line under a figure.

    Example:
        >>> rounded({"ridge": 0.123456})
        {'ridge': 0.123}
    """
    return {name: float(f"{value:.3g}") for name, value in settings.items()}


def least_squares(ridge: float, pairs: Pairs = "all", inputs: Inputs | None = None) -> Predictor:
    """Make a predictor by ridge least squares on the context."""

    def predict(batch: Batch) -> Tensor:
        known = None if inputs is None else inputs(batch.observed)
        return ridge_least_squares(batch.observed, ridge=ridge, inputs=known, pairs=pairs)

    return predict


def gradient_step(step_size: float) -> Predictor:
    """Make a predictor by one step of gradient descent on the context."""
    return lambda batch: gradient_descent(batch.observed, step_size=step_size)


def _steps(
    inverse: ApproximateInverse, pairs: Pairs = "all", inputs: Inputs | None = None
) -> Predictor:
    def predict(batch: Batch) -> Tensor:
        known = None if inputs is None else inputs(batch.observed)
        return preconditioned_descent(batch.observed, inverse, inputs=known, pairs=pairs)

    return predict


def _both(name: str, make: Callable[[Pairs], Predictor]) -> dict[str, Predictor]:
    """Make an algorithm with all pairs, and one without the newest."""
    return {name: make("all"), name + OFFICIAL: make("official")}


def _tuned_step(task: Task) -> Algorithms:
    size = line_search_step_size(task)
    return {GRADIENT_STEP: gradient_step(size)}, {"step size of one gradient step": size}


def _tuned_ridge(task: Task, inputs: Inputs | None = None) -> float:
    return tune_ridge(task, inputs=inputs, tolerance=0.03, evaluation=_TUNING).value


def _linear(_: Laboratory, task: Task) -> Algorithms:
    algorithms, settings = _tuned_step(task)
    ridge = PUBLISHED_SETTINGS["fully-observed/ridge"].value
    algorithms |= _both(LEAST_SQUARES, lambda pairs: least_squares(ridge, pairs))
    published = {
        "6 steps and one": "constructed",
        "3-layer steps": "3-layer",
        "7-layer steps": "7-layer",
    }
    for name, key in published.items():
        inverse = PUBLISHED_INVERSES[key]
        algorithms |= _both(name, lambda pairs, inverse=inverse: _steps(inverse, pairs))
    return algorithms, settings


_STEP_SIZE_FOLDS = 8


@measurement
def step_sizes(lab: Laboratory) -> Float[Tensor, " fold"]:
    """Give the best step sizes of gradient descent on independent sets of validation sequences."""
    task = make_task(recipes.TASKS["linear"])
    count = lab.plan.num_sequences // _STEP_SIZE_FOLDS
    folds = [
        Evaluation(num_sequences=count, seed=seed, split="validation")
        for seed in range(_STEP_SIZE_FOLDS)
    ]
    return torch.tensor([line_search_step_size(task, evaluation=fold) for fold in folds])


def _core(lab: Laboratory, _: Task) -> Algorithms:
    """Make gradient descent, the weights of Proposition 1 for it, and least squares."""
    config = recipes.get("lsa-1")
    size, model = step_sizes(lab).mean().item(), SequenceModel(config.sequence_model)
    weights = proposition_1(config.task.dim, step_size=size, num_heads=2, head_dim=20)
    model.load_state_dict(weights)
    ridge = PUBLISHED_SETTINGS["fully-observed/ridge"].value
    algorithms = {
        GRADIENT_STEP: gradient_step(size),
        CONSTRUCTION: model_predictor(model, config.task.token_slots),
    }
    return algorithms | _both(LEAST_SQUARES, lambda pairs: least_squares(ridge, pairs)), {}


def _other_matrices(published: str) -> Callable[[Laboratory, Task], Algorithms]:
    def make(_: Laboratory, task: Task) -> Algorithms:
        algorithms, settings = _tuned_step(task)
        ridge = _tuned_ridge(task)
        algorithms[LEAST_SQUARES] = least_squares(ridge)
        inverse = PUBLISHED_INVERSES[published]
        algorithms |= _both("steps", lambda pairs: _steps(inverse, pairs))
        return algorithms, settings | {"ridge of least squares": ridge}

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


def _partial(_: Laboratory, task: Task) -> Algorithms:
    def stack(states: Tensor) -> Tensor:
        return tokens_from_states(states, stacked(_STACKED))

    published: dict[str, tuple[str, str, Inputs | None]] = {
        "steps on one observation": ("partially-observed", "loss-ridge", None),
        "steps on 16 observations": ("partially-observed", "loss-ridge", stack),
        "7-layer steps on 16 observations": ("7-layer", "ridge", stack),
    }
    algorithms: dict[str, Predictor] = {}
    for name, (steps, setting, inputs) in published.items():
        ridge = PUBLISHED_SETTINGS[f"partially-observed/{setting}"].value
        inverse = replace(PUBLISHED_INVERSES[steps], ridge=ridge)
        algorithms |= _both(name, lambda pairs, i=inverse, x=inputs: _steps(i, pairs, x))
    ridge = _tuned_ridge(task, stack)
    algorithms["least squares on 16 observations"] = least_squares(ridge, inputs=stack)
    return algorithms, {"ridge on 16 observations": ridge}


def _nonlinear(_: Laboratory, task: Task) -> Algorithms:
    features = cast(NonlinearSystem, task).features
    ridge = _tuned_ridge(task, features)
    algorithms = _learned_steps(task, "steps on states", None, 1e-3)
    algorithms |= _learned_steps(task, "steps on features", features, ridge)
    algorithms["least squares on features"] = least_squares(ridge, inputs=features)
    return algorithms, {"ridge on features": ridge}


_ALGORITHMS: dict[str, Callable[[Laboratory, Task], Algorithms]] = {
    "linear": _linear,
    "partial": _partial,
    "nonlinear": _nonlinear,
    "contracting": _other_matrices("contracting"),
    "fixed": _other_matrices("fixed-transition"),
    "core": _core,
}
