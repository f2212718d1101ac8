"""Figures 6C, 7, 11 and 12, and the comparison that they share."""

from dataclasses import replace

import pytest
import torch
from laboratories import PLAN, compute, run_of
from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import Evaluation, InContextLoss, in_context_loss
from mesaopt.config import as_matrix
from mesaopt.errors import RunError
from mesaopt.papers.uncovering2023 import losses
from mesaopt.papers.uncovering2023.curves import label_of, published_means
from mesaopt.papers.uncovering2023.laboratory import (
    COMPARED,
    GRADIENT_STEP,
    LEAST_SQUARES,
    Comparison,
    Laboratory,
    compare,
)
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.tasks import LinearSystem
from mesaopt.training import Run


def test_recipes_are_known_and_published_curves_belong_to_something() -> None:
    algorithms = {name for task in CURVES.values() for name in task} - set(recipes.RECIPES)
    assert GRADIENT_STEP in algorithms
    for task, names in COMPARED.items():
        assert set(names) <= set(recipes.RECIPES)
        assert set(CURVES[task]) - algorithms <= set(names)


def test_figures_without_their_models_show_the_algorithms() -> None:
    lab = Laboratory(PLAN, {"tf-3": [run_of("tf-3", steps=3)]})
    fig6c = compute(losses.fig6c, lab)
    assert {name for name, passed in fig6c.verdicts.items() if passed} == {
        "linear-3-layer-steps-official-mean",
        "linear-7-layer-steps-official-mean",
        "fig6c-newest-pair",
    }
    assert "linear-tf-3-mean" not in fig6c.claims, "trained for 3 steps, judged as if for all"
    assert "fig6c-depth-helps" not in fig6c.claims, "there are no seven layers"
    assert not compute(losses.fig6c, Laboratory(PLAN, {})).panels, "no runs, no figure"


def test_a_model_that_holds_the_fixed_matrix_is_told_from_one_that_learns_in_context() -> None:
    task = LinearSystem(recipes.TASKS["fixed-constructed"])
    transition = task.sample(1, seed=0).transition[0]

    def verdicts(predict) -> dict[str, bool]:
        predictors = {
            "fixed-lsa-1": predict,
            GRADIENT_STEP: lambda batch: 0.3 * batch.observed @ transition.T,
            LEAST_SQUARES: lambda batch: torch.zeros_like(batch.targets),
        }
        measured = in_context_loss(predictors, task, Evaluation(num_sequences=256))
        lab = Laboratory(PLAN, {"fixed-lsa-1": [run_of("fixed-lsa-1")]})
        lab.remember(compare, "fixed", value=Comparison("fixed", measured, {}, {}))
        return compute(losses.fig12, lab).verdicts

    assert all(verdicts(lambda batch: batch.observed @ transition.T).values())
    assert not any(verdicts(lambda batch: torch.zeros_like(batch.targets)).values())


def given_matrix(run: Run, matrix: Tensor) -> Run:
    task = replace(run.config.task, matrix=as_matrix(matrix))
    return replace(run, config=replace(run.config, task=task))


def test_runs_of_a_matrix_of_their_own_are_compared_on_it() -> None:
    matrix = torch.diag(torch.tensor([-1.0] * 5 + [1.0] * 5))
    runs = {name: [given_matrix(run_of(name), matrix)] for name in ("fixed-lsa-1", "fixed-lsa-2")}
    measured = compare(Laboratory(PLAN, runs), "fixed")
    # One step of gradient descent learns another thing about a diagonal matrix than about a rotation.
    ours = compare(Laboratory(PLAN, {"fixed-lsa-1": [run_of("fixed-lsa-1")]}), "fixed")
    step, other = (one.losses[GRADIENT_STEP].losses for one in (measured, ours))
    assert not torch.equal(step, other)
    task = LinearSystem(replace(recipes.TASKS["fixed-constructed"], matrix=as_matrix(matrix)))
    zero = in_context_loss(
        {"zero": lambda batch: torch.zeros_like(batch.targets)},
        task,
        Evaluation(num_sequences=PLAN.num_sequences),
    )["zero"]
    # Runs that nobody trained predict next to nothing.
    torch.testing.assert_close(
        measured.losses["fixed-lsa-1"].losses, zero.losses, atol=1e-2, rtol=0
    )


def test_runs_of_different_matrices_are_not_compared() -> None:
    runs = {
        "fixed-lsa-1": [run_of("fixed-lsa-1")],
        "fixed-lsa-2": [given_matrix(run_of("fixed-lsa-2"), torch.eye(10))],
    }
    with pytest.raises(RunError, match="runs of fixed-lsa-1, fixed-lsa-2: are of different"):
        compare(Laboratory(PLAN, runs), "fixed")


def test_noise_counts_test_sequences_of_both_sides_and_training_seeds() -> None:
    random = torch.Generator().manual_seed(1)
    one = InContextLoss(1 + 0.1 * torch.randn(1280, 2, generator=random))
    seeds = [InContextLoss(one.losses + shift) for shift in (-0.1, 0.0, 0.1)]
    error = Comparison("linear", {"lsa-1": one}, {"lsa-1": [one]}, {}).mean("lsa-1").error
    assert error == pytest.approx(one.mean_error * 2**0.5)
    several = Comparison("linear", {"lsa-1": one}, {"lsa-1": seeds}, {})
    assert several.mean("lsa-1").error == pytest.approx((error**2 + 0.1**2 / 3) ** 0.5)


def test_the_noise_of_a_ratio_is_that_of_paired_losses() -> None:
    base = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) + 1
    measured = {"a": InContextLoss(2 * base), "b": InContextLoss(base)}
    comparison = Comparison("linear", measured, {}, {})
    exact = comparison.ratio("a", "b")
    assert exact is not None
    assert exact.value == pytest.approx(2)
    assert exact.error == pytest.approx(0, abs=3e-7), "a ratio without noise"
    measured["a"] = InContextLoss(2 * base.flip(0))
    noisy = comparison.ratio("a", "b")
    assert noisy is not None
    assert 0.01 / 3 < noisy.error < 0.2 / 3
    assert comparison.ratio("a", "c") is None


def test_published_means_pass_at_the_number_and_fail_far_from_it() -> None:
    for loss, passes in ((0.8942, True), (0.95, False), (0.84, False)):
        lab = Laboratory(PLAN, {"lsa-1": [run_of("lsa-1")]})
        measured = {"lsa-1": InContextLoss(torch.full((256, 50), loss))}
        lab.remember(compare, "linear", value=Comparison("linear", measured, {}, {}))
        claim, *waiting = published_means(lab, "linear", "Fig. 4", ("lsa-1", "lsa-2"))
        assert [(one.name, one.measured) for one in waiting] == [
            ("linear-lsa-2-mean", None),
            ("linear-lsa-2-late", None),
        ]
        assert claim.passed is passes


def test_labels_say_what_a_model_is_whatever_its_task() -> None:
    assert label_of("fixed-mesa-1") == label_of("mesa-1") == "1 mesa layer"
    assert label_of("tf-7-partial") == "7 softmax layers"


def test_published_baselines_of_partial_observation_are_made_from_published_settings() -> None:
    lab = Laboratory(replace(PLAN, num_sequences=1280), {})
    measured = compare(lab, "partial")
    for name, curve in CURVES["partial"].items():
        if name not in recipes.RECIPES:
            assert measured.losses[name].mean == pytest.approx(curve.mean, rel=0.03)
            at = {
                position: measured.losses[name].curve[position - 1].item() for position in curve.at
            }
            assert at == pytest.approx(curve.at, rel=0.08), name


@pytest.mark.parametrize(
    ("recipe", "values", "differs"),
    [
        ("hybrid-mesa-nonlinear", "none", True),
        ("hybrid-mesa-nonlinear", "after_first", False),
        ("tf-7-nonlinear", "none", False),
        ("hybrid-mesa", "none", False),
    ],
)
def test_claims_say_where_the_published_network_is_another(
    recipe: str, values: str, differs: bool
) -> None:
    run = run_of(recipe)
    keys = "after_first" if values == "none" and "nonlinear" in recipe else "none"
    model = replace(run.config.sequence_model, unit_queries_values=values, unit_queries_keys=keys)
    lab = Laboratory(PLAN, {recipe: [replace(run, config=replace(run.config, model=model))]})
    task = "nonlinear" if "nonlinear" in recipe else "linear"
    one = InContextLoss(torch.ones(4, 50))
    lab.remember(compare, task, value=Comparison(task, {recipe: one}, {recipe: [one]}, {}))
    claims = published_means(lab, task, "Fig. 7", (recipe,))
    assert len(claims) == 2
    for claim in claims:
        assert ("queries and values" in claim.why) == differs


def hybrid_claims(late: float) -> dict[str, bool]:
    """Verdicts about losses of hybrid-mesa that are as published early, and late ones times a factor."""
    curve = CURVES["linear"]["hybrid-mesa"]
    at = dict.fromkeys(range(21, 51), late * 0.0031)
    early = (50 * curve.mean - 30 * 0.0031) / 20
    losses = torch.tensor([at.get(position, early) for position in range(1, 51)])
    one = InContextLoss(losses + 1e-3 * losses * torch.randn(256, 50))
    lab = Laboratory(PLAN, {"hybrid-mesa": [run_of("hybrid-mesa")]})
    seeds = {"hybrid-mesa": [one]}
    lab.remember(compare, "linear", value=Comparison("linear", {"hybrid-mesa": one}, seeds, {}))
    claims = published_means(lab, "linear", "Fig. 7", ("hybrid-mesa",))
    return {claim.name: claim.passed for claim in claims}


@pytest.mark.parametrize(
    ("late", "passes"), [(1.0, True), (2.0, False), (0.5, False), (4.0, False)]
)
def test_a_mean_as_published_does_not_hide_other_losses_late_in_a_sequence(
    late: float, passes: bool
) -> None:
    names = ("linear-hybrid-mesa-mean", "linear-hybrid-mesa-late")
    assert hybrid_claims(late) == dict(zip(names, (True, passes), strict=True))


def test_late_losses_are_judged_where_early_ones_make_up_the_mean() -> None:
    judged = set()
    for task, curves in CURVES.items():
        for name in set(curves) & set(recipes.RECIPES):
            one = InContextLoss(torch.rand(16, 50))
            lab = Laboratory(PLAN, {name: [run_of(name)]})
            lab.remember(compare, task, value=Comparison(task, {name: one}, {name: [one]}, {}))
            claims = published_means(lab, task, "Fig. 7", (name,))
            judged |= {name for claim in claims if claim.name.endswith("-late")}
    assert judged == {
        *("lsa-2", "lsa-4", "lsa-6", "tf-3", "tf-7", "tf-12", "hybrid-mesa"),
        *COMPARED["partial"],
        *COMPARED["nonlinear"],
    }  # not one linear layer, whose losses are large late as well
