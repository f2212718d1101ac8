"""What the page `core` measures: every model and baseline on the same fresh test sequences."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    compress,
    effective_coefficients,
    in_context_loss,
    line_search_step_size,
    model_predictor,
)
from mesaopt.config import LinearSystemConfig, ModelConfig, RunConfig
from mesaopt.layers import SelfAttention
from mesaopt.models import SequenceModel
from mesaopt.papers.plan import Plan, Runs
from mesaopt.tasks import LinearSystem, generator, tokens_from_states
from mesaopt.theory import gradient_descent, proposition_1, ridge_least_squares
from mesaopt.training import Run, load_run

LSA_1, LSA_2, MESA = "lsa-1", "lsa-2-notebook", "mesa-1"
GD, CONSTRUCTION = "gradient descent", "proposition 1"
LEAST_SQUARES, LEAST_SQUARES_OFFICIAL = "least squares", "least squares, official"

MILESTONES = {LSA_1: (400, 1000, 3400), LSA_2: (400, 2400), MESA: (200, 500, 1000, 4400)}
"""Steps at which the paper's own loss is known; each is judged where a run gets that far."""

RIDGE = 1e-3
"""Ridge of the least-squares baselines, as in the authors' code."""

_STEP_SIZE_FOLDS = 8


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that the figures draw and the claims judge."""

    plan: Plan
    runs: Runs
    losses: dict[str, InContextLoss]
    """By predictor; a model's are the mean over its seeds, sequence by sequence."""
    seed_losses: dict[str, list[InContextLoss]]
    """By recipe, one per seed."""
    milestones: dict[tuple[str, int], list[InContextLoss]]
    """By recipe and step, one per seed."""
    compressed: list[InContextLoss]
    """LSA-1 reduced to its effective coefficients, one per seed."""
    coefficients: Float[Tensor, "seed query key value"]
    """Effective coefficients of LSA-1, [seed, 2, 2, 2], for the slots (current, previous)."""
    step_sizes: Float[Tensor, " fold"]
    """Best step size of gradient descent, on independent sets of validation sequences."""
    construction_errors: dict[str, float]
    """Proposition 1 against explicit gradient descent, by floating-point type."""
    seconds: float

    @property
    def step_size(self) -> float:
        """The step size that is drawn."""
        return self.step_sizes.mean().item()


def measure(plan: Plan, runs: Runs, report: Callable[[int], None] | None = None) -> Measurements:
    """Score every model and baseline on the same fresh test sequences.

    Args:
        plan: what was run.
        runs: by recipe.
        report: told how many batches of 256 test sequences are done.

    Returns:
        The measurements.
    """
    started = time.perf_counter()
    task = LinearSystem(_settings(recipes.get(LSA_1))[0])
    step_sizes = torch.tensor(
        [
            line_search_step_size(
                task,
                evaluation=Evaluation(
                    num_sequences=plan.num_sequences // _STEP_SIZE_FOLDS, seed=s, split="validation"
                ),
            )
            for s in range(_STEP_SIZE_FOLDS)
        ]
    )
    coefficients = torch.stack([slot_coefficients(run) for run in runs[LSA_1]])
    predictors = _baselines(step_sizes.mean().item())
    finals = {_key(recipe, seed): run for recipe in runs for seed, run in enumerate(runs[recipe])}
    predictors |= {name: _predictor(run) for name, run in finals.items()}
    reached = {
        (recipe, step): [load_run(run.path, step=step, device="cpu") for run in runs[recipe]]
        for recipe, steps in MILESTONES.items()
        for step in steps
        if step <= runs[recipe][0].config.train.steps
    }
    for (recipe, step), at_step in reached.items():
        for seed, run in enumerate(at_step):
            predictors[_key(recipe, seed, step)] = _predictor(run)
    for seed, run in enumerate(runs[LSA_1]):
        predictors[_key("compressed", seed)] = model_predictor(
            compress(run.model.cpu()).model, run.config.task.token_slots
        )

    on_progress = None if report is None else (lambda done, _: report(done))
    evaluation = Evaluation(num_sequences=plan.num_sequences, on_progress=on_progress)
    losses = in_context_loss(predictors, task, evaluation)
    seed_losses = {r: [losses[_key(r, s)] for s in range(len(runs[r]))] for r in runs}
    drawn = {name: losses[name] for name in _baselines(1.0)}
    drawn |= {recipe: average(by_seed) for recipe, by_seed in seed_losses.items()}
    return Measurements(
        plan=plan,
        runs=runs,
        losses=drawn,
        seed_losses=seed_losses,
        milestones={
            (recipe, step): [losses[_key(recipe, seed, step)] for seed in range(len(at_step))]
            for (recipe, step), at_step in reached.items()
        },
        compressed=[losses[_key("compressed", seed)] for seed in range(len(runs[LSA_1]))],
        coefficients=coefficients,
        step_sizes=step_sizes,
        construction_errors=construction_errors(),
        seconds=time.perf_counter() - started,
    )


def first_layer(run: Run) -> SelfAttention:
    """Return the first layer of a run's model, on the CPU."""
    return run.sequence_model.cpu().mixers[0]


@torch.no_grad()
def slot_coefficients(run: Run) -> Float[Tensor, "query key value"]:
    """Give the effective coefficients of a run of one layer, in the slots (current, previous)."""
    slots = run.config.task.token_slots
    kept = [slots.index("current"), slots.index("previous")]
    full = effective_coefficients(first_layer(run), run.config.task.dim)
    return full[kept][:, kept][:, :, kept]


def average(losses: list[InContextLoss]) -> InContextLoss:
    """Average over seeds, sequence by sequence.

    Example:
        >>> a, b = InContextLoss(torch.zeros(3, 2)), InContextLoss(torch.ones(3, 2))
        >>> average([a, b]).mean
        0.5
    """
    return InContextLoss(torch.stack([loss.losses for loss in losses]).mean(0))


def construction_errors(num_sequences: int = 64) -> dict[str, float]:
    """Compare the weights of Proposition 1 with explicit gradient descent from a random Phi_0.

    Args:
        num_sequences: sequences to compare on.

    Returns:
        The largest difference, relative to the largest prediction, in float32 and float64.

    Example:
        >>> construction_errors(4)["float64"] < 1e-12
        True
    """
    task_config, model_config = _settings(recipes.get(LSA_1))
    dim, heads = task_config.dim, model_config.num_heads
    task, model_config = LinearSystem(task_config), replace(model_config, activation_clip=None)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        batch = task.sample(num_sequences, seed=0, split="validation", dtype=dtype)
        phi = torch.from_numpy(generator(0, "phi_0").standard_normal((dim, dim)) / dim**0.5).to(
            dtype
        )
        weights = proposition_1(
            dim, step_size=0.03, initial_map=phi, num_heads=heads, head_dim=20, dtype=dtype
        )
        model = SequenceModel(model_config).to(dtype)
        model.load_state_dict(weights)
        tokens = tokens_from_states(batch.observed, task_config.token_slots)
        tokens[..., :dim] = batch.observed @ phi.T  # slot 0 holds the prediction to start from
        explicit = gradient_descent(batch.observed, step_size=0.03, initial_map=phi)
        with torch.no_grad():
            worst = (model(tokens) - explicit).abs().max() / explicit.abs().max()
        errors[str(dtype).removeprefix("torch.")] = worst.item()
    return errors


def _settings(config: RunConfig) -> tuple[LinearSystemConfig, ModelConfig]:
    """Task and model of a recipe of this page, which are all of one kind."""
    return cast(LinearSystemConfig, config.task), config.sequence_model


def _key(name: str, seed: int, step: int | None = None) -> str:
    return f"{name}/{seed}" if step is None else f"{name}/{seed}@{step}"


def _baselines(step_size: float) -> dict[str, Predictor]:
    task_config, model_config = _settings(recipes.get(LSA_1))
    model = SequenceModel(model_config)
    weights = proposition_1(
        task_config.dim, step_size=step_size, num_heads=model_config.num_heads, head_dim=20
    )
    model.load_state_dict(weights)
    return {
        GD: lambda batch: gradient_descent(batch.observed, step_size=step_size),
        CONSTRUCTION: model_predictor(model, task_config.token_slots),
        LEAST_SQUARES: lambda batch: ridge_least_squares(batch.observed, ridge=RIDGE),
        LEAST_SQUARES_OFFICIAL: lambda batch: ridge_least_squares(
            batch.observed, ridge=RIDGE, pairs="official"
        ),
    }


def _predictor(run: Run) -> Predictor:
    return model_predictor(run.model.cpu(), run.config.task.token_slots)
