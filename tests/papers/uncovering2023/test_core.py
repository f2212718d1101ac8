from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laboratories import compute

from mesaopt.papers.reproduce import get_study
from mesaopt.papers.uncovering2023.core import STUDY as CORE
from mesaopt.papers.uncovering2023.core_claims import construction_errors, milestones
from mesaopt.papers.uncovering2023.laboratory import Laboratory, compare, slot_coefficients
from mesaopt.papers.uncovering2023.published import LEARNING, MILESTONES
from mesaopt.training import load_run


@pytest.fixture(scope="module")
def lab(results: Path) -> Laboratory:
    """The tiny runs, as if they were those of scale small and had made all its steps."""
    plan = replace(get_study("core").plans["smoke"], scale="small", num_sequences=256)
    runs: dict = {}
    for path in sorted((results / "runs").iterdir()):
        run = load_run(path, device="cpu")
        runs.setdefault(run.config.recipe, []).append(run)
    lab = Laboratory(plan, runs)
    reached = {
        (recipe, step): compare(lab, "core").seed_losses[recipe]
        for recipe, steps in MILESTONES.items()
        for step in {*steps, *({2400} if recipe == "lsa-2-notebook" else {})}
    }
    lab.remember(milestones, value=reached)
    return lab


def test_every_published_milestone_is_judged_at_full_length(lab: Laboratory) -> None:
    claims = compute(CORE.figures[0], lab).claims
    assert len(claims) == 27
    assert set(claims) >= {
        "lsa-1-loss-400",
        "lsa-1-loss-1000",
        "lsa-1-loss-3400",
        "lsa-1-step-size",
        "lsa-1-other-coefficients",
        "lsa-1-compressed",
        "gd-1-step-size",
        "gd-1-loss",
        "mesa-1-loss-200",
        "mesa-1-loss-500",
        "mesa-1-loss-1000",
        "mesa-1-loss-4400",
        "mesa-1-near-least-squares",
        "mesa-1-lambda",
        "lsa-2-loss-2400",
        "lsa-2-position-6",
    }
    for claim in claims.values():
        assert claim.limits != (None, None), "a check that cannot fail"


def test_untrained_models_fail_the_claims_about_training(lab: Laboratory) -> None:
    verdicts = compute(CORE.figures[0], lab).verdicts
    passed = {name for name in verdicts if name.startswith(("lsa", "mesa")) and verdicts[name]}
    assert passed == {"lsa-1-other-coefficients", "lsa-1-compressed"}


def test_the_construction_is_exact_in_both_precisions() -> None:
    errors = construction_errors()
    assert 0 < errors["float32"] < 1e-6
    assert 0 < errors["float64"] < 1e-12


def test_a_model_is_averaged_over_its_seeds(lab: Laboratory) -> None:
    losses = compare(lab, "core")
    a, b = losses.seed_losses["lsa-1"]
    torch.testing.assert_close(losses.losses["lsa-1"].losses, (a.losses + b.losses) / 2)
    assert slot_coefficients(lab, "lsa-1").shape == (2, 2, 2, 2)


def test_claims_and_circles_belong_to_the_same_published_curves() -> None:
    for recipe, steps in MILESTONES.items():
        for step, loss in steps.items():
            assert loss == pytest.approx(LEARNING[recipe][step], abs=6e-4), "printed to 3 digits"
