from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laboratories import compute

from mesaopt.analysis import InContextLoss
from mesaopt.papers.figure import judge
from mesaopt.papers.reproduce import get_study
from mesaopt.papers.uncovering2023 import core_ridge
from mesaopt.papers.uncovering2023.core import STUDY as CORE
from mesaopt.papers.uncovering2023.core_claims import construction_errors
from mesaopt.papers.uncovering2023.core_milestones import milestones
from mesaopt.papers.uncovering2023.core_ridge import RIDGE, ridges
from mesaopt.papers.uncovering2023.laboratory import (
    LATE,
    Comparison,
    Laboratory,
    compare,
    slot_coefficients,
)
from mesaopt.papers.uncovering2023.published import LEARNING, MILESTONES
from mesaopt.training import load_run
from mesaopt.zoo import load


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


def test_the_authors_least_squares_has_the_noise_of_five_sets_of_256(lab: Laboratory) -> None:
    claim = compute(CORE.figures[0], lab).claims["least-squares-official-loss"]
    ours = compare(lab, "core").losses["least squares, official"]
    published = ours.by_sequence.std().item() / 1280**0.5
    assert claim.value == pytest.approx(ours.mean)
    assert claim.error == pytest.approx((ours.mean_error**2 + published**2) ** 0.5, rel=1e-5)


def test_the_construction_is_exact_in_both_precisions() -> None:
    errors = construction_errors()
    assert 0 < errors["float32"] < 1e-6
    assert 0 < errors["float64"] < 1e-12


def test_a_model_is_averaged_over_its_seeds(lab: Laboratory) -> None:
    losses = compare(lab, "core")
    a, b = losses.seed_losses["lsa-1"]
    torch.testing.assert_close(losses.losses["lsa-1"].losses, (a.losses + b.losses) / 2)
    assert slot_coefficients(lab, "lsa-1").shape == (2, 2, 2, 2)


def test_a_ridge_of_its_own_is_judged_over_seeds(
    zoo_lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds whose ratios to their own ridges are 1 and 2."""
    losses = torch.rand(512, 50, generator=torch.Generator().manual_seed(0))
    seeds = [InContextLoss(losses), InContextLoss(2 * losses)]
    own = {"0": InContextLoss(losses), "1": InContextLoss(losses)}
    monkeypatch.setattr(core_ridge, "in_context_loss", lambda *_: own)
    compared = Comparison("core", {}, {"mesa-1": seeds}, {})
    lab = Laboratory(zoo_lab.plan, zoo_lab.runs)
    lab.remember(compare, "core", value=compared)
    lab.remember(milestones, value={("mesa-1", 4400): seeds})
    lab.remember(ridges, value=[{4500: core_ridge.Ridges(0.1, [0.7], [0.1])}] * 2)
    (claim,) = (claim for claim in judge(RIDGE, lab) if claim.name == "mesa-1-own-ridge")
    assert claim.value == pytest.approx(1.5)
    assert claim.error == pytest.approx(0.5)  # sqrt(0.5 / 2): no noise over sequences


def test_claims_and_circles_belong_to_the_same_published_curves() -> None:
    for recipe, steps in MILESTONES.items():
        for step, loss in steps.items():
            assert loss == pytest.approx(LEARNING[recipe][step], abs=6e-4), "printed to 3 digits"


@pytest.fixture(scope="module")
def zoo_lab() -> Laboratory:
    """The mesa layer of the zoo, trained as published, next to untrained others."""
    plan = replace(get_study("core").plans["small"], num_sequences=512)
    return Laboratory(plan, {name: [load(name)] for name in ("lsa-1", "lsa-2-notebook", "mesa-1")})


def test_the_mean_hides_that_the_mesa_layer_is_above_least_squares_late(
    zoo_lab: Laboratory,
) -> None:
    losses = compare(zoo_lab, "core").losses
    mesa, exact = losses["mesa-1"].curve, losses["least squares"].curve
    assert mesa[:10].sum() > 0.97 * mesa.sum()
    assert exact[:10].sum() > 0.99 * exact.sum()
    assert mesa.mean() < 1.05 * exact.mean(), "as the claim about means has it"
    torch.testing.assert_close(mesa[:6], exact[:6], rtol=0.01, atol=0)
    wanted = {11: 12.9, 20: 4.3, 50: 2.2}
    found = {position: (mesa / exact)[position - 1].item() for position in wanted}
    assert found == pytest.approx(wanted, rel=0.05)


def test_the_ridges_of_the_mesa_layer_are_bridged_and_fall(zoo_lab: Laboratory) -> None:
    computed = compute(RIDGE, zoo_lab)
    (by_step,) = ridges(zoo_lab)
    assert max(by_step) == 4500
    fitted = [one.fitted for one in by_step.values()]
    assert fitted == sorted(fitted, reverse=True)
    last = by_step[4500]
    assert last.fitted == pytest.approx(0.089, abs=0.002)
    assert all(0.10 < ridge < 0.14 for ridge in last.effective)
    assert all(0.65 < ridge < 0.70 for ridge in last.learned), "lambda near 1.5"
    assert set(computed.panels) == {"ridges", "ratios"}
    assert computed.verdicts == dict.fromkeys(
        ("mesa-1-late-positions", "mesa-1-own-ridge", "mesa-1-two-ridges", "mesa-1-ridge-falls"),
        True,
    )


def test_late_positions_are_not_judged_of_shorter_trainings(results: Path) -> None:
    plan, runs = get_study("core").plans["smoke"], {}
    for path in sorted((results / "runs").iterdir()):
        run = load_run(path, device="cpu")
        runs.setdefault(run.config.recipe, []).append(run)
    computed = compute(RIDGE, Laboratory(plan, runs))
    assert computed.claims == {}
    assert computed.panels["ridges"].rows


def test_early_positions_are_those_with_fewer_pairs_than_dimensions(zoo_lab: Laboratory) -> None:
    (run,) = zoo_lab.trained("mesa-1")
    assert run.config.task.dim == LATE.start
    a, b = (compare(zoo_lab, "core").losses[name] for name in ("mesa-1", "least squares"))
    ratio = compare(zoo_lab, "core").ratio("mesa-1", "least squares", LATE)
    assert ratio is not None
    assert ratio.value == pytest.approx((a.curve[10:].mean() / b.curve[10:].mean()).item())
