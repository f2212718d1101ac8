"""Measure how far training seeds spread, for the thresholds of the claims of `core`.

    python benchmarks/seed_noise.py runs/seed-noise

trains seeds that no reproduction uses (about 40 minutes on two cores; stop it and start it again as you
like) and prints the constants of core_milestones.py and core_claims.py in mesaopt/papers/uncovering2023.
"""

import sys
from pathlib import Path

import torch

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    Predictor,
    effective_coefficients,
    in_context_loss,
    model_predictor,
)
from mesaopt.papers.uncovering2023.core_milestones import LSA_1, LSA_2, MESA, SEED_STD
from mesaopt.tasks import LinearSystem
from mesaopt.training import Run, load_run, train

SEEDS = {LSA_1: range(100, 108), LSA_2: range(100, 104), MESA: range(100, 104)}
POSITIONS = (5, 10, 20, 30)


def spread(values: list[float]) -> str:
    """Write the standard deviation of some values, with their mean and number."""
    x = torch.tensor(values)
    return f"{x.std().item():.2g} (mean {x.mean().item():.5g}, {len(values)} seeds)"


def trained(folder: Path, recipe: str) -> list[Run]:
    """Train all seeds of a recipe, or load those that are there."""
    runs = []
    for seed in SEEDS[recipe]:
        runs.append(train(recipes.get(recipe, seed=seed), folder / f"{recipe}-{seed}", resume=True))
        print(f"{recipe}, seed {seed}: {runs[-1].metrics[-1]['test_loss']:.4f}", flush=True)
    return runs


def main(folder: Path) -> None:
    """Train, score and print."""
    runs = {recipe: trained(folder, recipe) for recipe in SEEDS}
    predictors: dict[str, Predictor] = {}
    groups: dict[str, list[str]] = {}
    for recipe, of_recipe in runs.items():
        milestones = [step for name, step in SEED_STD if name == recipe]
        for step in (*milestones, of_recipe[0].config.train.steps):
            for run in of_recipe:
                model = load_run(run.path, step=step, device="cpu").model
                name = f"{run.path.name}@{step}"
                predictors[name] = model_predictor(model, run.config.task.token_slots)
                groups.setdefault(f"{recipe} after {step}", []).append(name)
    task = LinearSystem(recipes.get(LSA_1).task)
    evaluation = Evaluation(num_sequences=10_240, seed=1, split="validation")
    losses = in_context_loss(predictors, task, evaluation)
    for group, names in groups.items():
        print(f"{group}: {spread([losses[name].mean for name in names])}")
        if group == f"{LSA_2} after 2500":
            for position in POSITIONS:
                at = [losses[name].curve[position].item() for name in names]
                print(f"  at position {position}, from 0: {spread(at)}")
    main_coefficients, others = [], []
    for run in runs[LSA_1]:
        coefficients = effective_coefficients(run.sequence_model.mixers[0], run.config.task.dim)
        main_coefficients.append(coefficients[2, 3, 2].item())
        coefficients[2, 3, 2] = 0
        others.append(coefficients.abs().max().item())
    print(f"coefficient of gradient descent: {spread(main_coefficients)}")
    print(f"largest other coefficient: {spread(others)}")
    ridges = [run.sequence_model.mixers[0].inverse_ridge.mean().item() for run in runs[MESA]]
    print(f"inverse ridge: {spread(ridges)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
