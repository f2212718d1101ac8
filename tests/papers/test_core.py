from pathlib import Path

import torch

from mesaopt.papers.reproduce import get_item
from mesaopt.papers.uncovering2023.core_claims import judge
from mesaopt.papers.uncovering2023.core_measure import (
    MILESTONES,
    Measurements,
    construction_errors,
    measure,
)
from mesaopt.training import load_run


def measured_at(results: Path, scale: str) -> Measurements:
    """Measurements of the tiny runs, as if they were those of another scale and all its steps."""
    from dataclasses import replace

    plan = replace(get_item("core").plans[scale], num_sequences=256)
    runs: dict = {}
    for path in sorted((results / "runs").iterdir()):
        run = load_run(path, device="cpu")
        runs.setdefault(run.config.recipe, []).append(run)
    measured = measure(plan, runs)
    reached = {
        (recipe, step): measured.seed_losses[recipe]
        for recipe, steps in MILESTONES.items()
        for step in steps
    }
    return replace(measured, milestones=reached)


def test_every_published_milestone_is_judged_at_full_length(results: Path) -> None:
    claims = judge(measured_at(results, "small"))
    ids = [claim.id for claim in claims]
    assert len(ids) == len(set(ids)) == 27
    for name in (
        *("lsa-1-loss-400", "lsa-1-loss-1000", "lsa-1-loss-3400", "lsa-1-step-size"),
        *("lsa-1-other-coefficients", "lsa-1-compressed", "gd-1-step-size", "gd-1-loss"),
        *("mesa-1-loss-200", "mesa-1-loss-500", "mesa-1-loss-1000", "mesa-1-loss-4400"),
        *("mesa-1-near-least-squares", "mesa-1-lambda", "lsa-2-loss-2400", "lsa-2-position-6"),
    ):
        assert f"core/{name}" in ids
    for claim in claims:
        assert claim.paper == "uncovering2023"
        assert claim.scale == "small"
        assert claim.low is not None or claim.high is not None, "a check that cannot fail"


def test_untrained_models_fail_the_claims_about_training(results: Path) -> None:
    claims = judge(measured_at(results, "small"))
    trained = [c for c in claims if c.id.startswith(("core/lsa", "core/mesa"))]
    lenient = {"core/lsa-1-other-coefficients", "core/lsa-1-compressed"}
    assert {c.id for c in trained if c.passed} == lenient


def test_the_construction_is_exact_in_both_precisions() -> None:
    errors = construction_errors()
    assert 0 < errors["float32"] < 1e-6
    assert 0 < errors["float64"] < 1e-12


def test_a_model_is_averaged_over_its_seeds(results: Path) -> None:
    measured = measured_at(results, "smoke")
    a, b = measured.seed_losses["lsa-1"]
    torch.testing.assert_close(measured.losses["lsa-1"].losses, (a.losses + b.losses) / 2)
    assert measured.coefficients.shape == (2, 2, 2, 2)
