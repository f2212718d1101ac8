"""The runs of the study `core`, and their losses at the steps whose losses are published."""

from typing import Any

from mesaopt import recipes
from mesaopt.analysis import Evaluation, InContextLoss, in_context_loss
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.uncovering2023.laboratory import Laboratory, predictor_of
from mesaopt.tasks import make_task
from mesaopt.training import load_run

LSA_1, LSA_2, MESA = "lsa-1", "lsa-2-notebook", "mesa-1"

# Standard deviations over training seeds, from benchmarks/seed_noise.py: eight seeds of LSA-1, four of the
# others, none of which a reproduction uses, on 10,240 validation sequences that all of them share.
SEED_STD = {
    (LSA_1, 400): 0.0033,
    (LSA_1, 1000): 0.00042,
    (LSA_1, 3400): 0.00049,
    (LSA_2, 400): 0.0028,
    (LSA_2, 2400): 0.0021,
    (MESA, 200): 0.021,
    (MESA, 500): 0.0006,
    (MESA, 1000): 0.00036,
    (MESA, 4400): 0.000081,
}
"""By recipe and step; these are the steps at which a published loss is judged."""


@measurement
def milestones(lab: Laboratory) -> dict[tuple[str, int], list[InContextLoss]]:
    """Score the checkpoints at steps with a published loss, by recipe and step, one loss per seed."""
    models = {
        (recipe, step): [load_run(run.path, step=step, device="cpu") for run in lab.trained(recipe)]
        for recipe, step in SEED_STD
        if step <= lab.trained(recipe)[0].config.train.steps
    }
    predictors = {
        f"{recipe}@{step}/{seed}": predictor_of(run)
        for (recipe, step), runs in models.items()
        for seed, run in enumerate(runs)
    }
    losses = in_context_loss(predictors, *test_set(lab))
    return {
        (recipe, step): [losses[f"{recipe}@{step}/{seed}"] for seed in range(len(runs))]
        for (recipe, step), runs in models.items()
    }


def test_set(lab: Laboratory) -> tuple[Any, Evaluation]:
    """Give the task and the test sequences of all losses on this page."""
    count = lab.plan.num_sequences
    return make_task(recipes.TASKS["linear"]), Evaluation(
        num_sequences=count, progress=lab.on_progress
    )
