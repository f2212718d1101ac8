import importlib
import json
import pkgutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from mesaopt import recipes
from mesaopt.analysis import Evaluation, InContextLoss, in_context_loss
from mesaopt.models import SequenceModel
from mesaopt.papers import uncovering2023
from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import style
from mesaopt.papers.plan import Plan
from mesaopt.papers.reproduce import make_plan, reproduce
from mesaopt.papers.uncovering2023 import (
    fig4,
    fig6c,
    fig12,
    fig20,
    laboratory,
)
from mesaopt.papers.uncovering2023.curves import (
    _error_of_difference,
    label_of,
    published_means,
    ratio_claim,
)
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LEAST_SQUARES,
    RECIPES,
    Comparison,
    Laboratory,
)
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.papers.uncovering2023.uncovering import UNCOVERING
from mesaopt.tasks import LinearSystem
from mesaopt.theory import proposition_1
from mesaopt.training import Run

PLAN = Plan(what="uncovering2023", scale="smoke", num_sequences=256)


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


def run_of(recipe: str, model: SequenceModel | None = None, steps: int | None = None) -> Run:
    """A run that nobody trained, with a model set by hand."""
    config = recipes.get(recipe)
    train = config.train if steps is None else replace(config.train, steps=steps)
    model = SequenceModel(config.model) if model is None else model
    metrics = [{"step": 0, "test_loss": 1.7}, {"step": train.steps, "test_loss": 1.0}]
    return Run(Path("nowhere"), replace(config, train=train), model, metrics, 0.0)


def hand_built() -> SequenceModel:
    """The gradient step of Proposition 1 in a model that clips nothing."""
    config = replace(recipes.get("lsa-1").model, activation_clip=None)
    model = SequenceModel(config)
    model.load_state_dict(proposition_1(10, step_size=0.032, num_heads=2, head_dim=20))
    return model


def test_the_parts_are_the_figures_and_each_trains_what_it_reads() -> None:
    names = [part.name for part in UNCOVERING.parts]
    assert names == [
        *("fig2", "fig3", "fig4", "fig4e", "fig4f", "fig5", "fig6ab", "fig6c", "fig7", "fig8"),
        *("fig9", "fig10", "fig11", "fig12", "fig13", "fig14", "fig15", "fig16", "fig17", "fig18"),
        *("fig19", "fig20", "fig21", "fig22", "fig23", "fig24", "fig25"),
    ]
    only = make_plan("uncovering2023", scale="small", only=("fig6c",))
    assert {training.recipe for training in only.trainings} == {"tf-3", "tf-7"}
    assert make_plan("uncovering2023/fig20", scale="small").trainings == ()
    everything = make_plan("uncovering2023", scale="paper")
    assert {t.recipe for t in everything.trainings} == {
        recipe for part in UNCOVERING.parts for recipe in part.recipes or ()
    }


def test_paper_scale_is_as_published() -> None:
    for training in UNCOVERING.plans["paper"].trainings:
        for config in training.configs:
            published = recipes.get(training.recipe).train
            assert replace(config.train, evaluation_sequences=1) == replace(
                published, evaluation_sequences=1
            )
        assert training.seeds >= 3


def test_recipes_are_known_and_published_curves_belong_to_something() -> None:
    baselines = {name for task in CURVES.values() for name in task} - set(recipes.RECIPES)
    assert GRADIENT_STEP in baselines
    for task, names in RECIPES.items():
        assert set(names) <= set(recipes.RECIPES)
        assert set(CURVES[task]) - baselines <= set(names)


@pytest.fixture(scope="module")
def linear() -> Laboratory:
    """The hand-built gradient step in the place of a trained layer, and an untrained one."""
    laboratory = Laboratory(
        PLAN, {"lsa-1": [run_of("lsa-1", hand_built())], "lsa-2": [run_of("lsa-2", steps=3)]}
    )
    laboratory.comparison("linear", ignore)
    return laboratory


def test_a_gradient_step_in_place_of_the_layer_passes_and_an_untrained_layer_fails(
    linear: Laboratory,
) -> None:
    with style():
        results = fig4.compute(linear, ignore)
    verdicts = {claim.id.split("/")[1]: claim.passed for claim in results.claims}
    assert verdicts["fig4-lsa-1-is-one-step"]
    assert verdicts["linear-lsa-1-mean"]
    assert not verdicts["fig4-two-layers-beat-one"]
    assert "linear-lsa-2-mean" not in verdicts, "trained for 3 steps, judged as if for 5000"
    assert "fig4-depth-helps" not in verdicts, "there are no four layers"
    (figure,) = results.figures
    assert {row["predictor"] for row in figure.rows} >= {"lsa-1", "lsa-2", GRADIENT_STEP}


def test_figures_without_their_models_show_the_algorithms(linear: Laboratory) -> None:
    with style():
        results = fig6c.compute(linear, ignore)
    assert all(claim.passed for claim in results.claims)
    assert {c.id.split("/")[1] for c in results.claims} == {
        "linear-3-layer-steps-official-mean",
        "linear-7-layer-steps-official-mean",
        "fig6c-newest-pair",
    }


def test_a_model_that_holds_the_fixed_matrix_is_told_from_one_that_learns_in_context() -> None:
    task = LinearSystem(recipes.TASKS["fixed-constructed"])
    transition = task.sample(1, seed=0).transition[0]

    def judge(predict) -> dict[str, bool]:
        losses = in_context_loss(
            {
                "fixed-lsa-1": predict,
                GRADIENT_STEP: lambda batch: 0.3 * batch.observed @ transition.T,
                LEAST_SQUARES: lambda batch: torch.zeros_like(batch.targets),
            },
            task,
            Evaluation(num_sequences=256),
        )
        lab = Laboratory(PLAN, {})
        lab._comparisons["fixed"] = Comparison("fixed", losses, {}, {})
        with style():
            return {c.id.split("/")[1]: c.passed for c in fig12.compute(lab, ignore).claims}

    assert all(judge(lambda batch: batch.observed @ transition.T).values())
    assert not any(judge(lambda batch: torch.zeros_like(batch.targets)).values())


SCALES = {"smoke", "small", "paper"}
LARGE = {f"tf-7-dim-{dim}" for dim in (10, 20, 40, 60)}


@pytest.mark.slow
def test_claims_of_a_full_reproduction_have_names_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everything that is said at scale paper of models trained as published, by untrained ones that say they
    # were, with as few sequences and steps as at scale smoke. Dimensions are alike but for their number.
    for module in pkgutil.iter_modules(uncovering2023.__path__, f"{uncovering2023.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, dict) and set(value) == SCALES and value is not UNCOVERING.plans:
                monkeypatch.setitem(value, "paper", value["smoke"])
    recipes_read = {recipe for part in UNCOVERING.parts for recipe in part.recipes or ()} - LARGE
    lab = Laboratory(
        replace(PLAN, scale="paper"), {recipe: [run_of(recipe)] for recipe in recipes_read}
    )
    with style():
        claims = [claim for part in UNCOVERING.parts for claim in part.compute(lab, ignore).claims]
    ids = [claim.id.split("/")[1] for claim in claims]
    assert len(ids) == len(set(ids)) > 170
    assert all(map(kind_of, ids))
    for claim in claims:
        if "-position-" not in claim.id:  # probes of so few sequences are far too noisy
            assert_untrained(claim)


def test_noise_counts_test_sequences_of_both_sides_and_training_seeds() -> None:
    random = torch.Generator().manual_seed(1)
    one = InContextLoss(1 + 0.1 * torch.randn(1280, 2, generator=random))
    seeds = [InContextLoss(one.losses + shift) for shift in (-0.1, 0.0, 0.1)]
    alone = Comparison("linear", {"lsa-1": one}, {"lsa-1": [one]}, {})
    several = Comparison("linear", {"lsa-1": one}, {"lsa-1": seeds}, {})
    error = _error_of_difference(alone, "lsa-1")
    assert error == pytest.approx(one.mean_error * 2**0.5)
    assert _error_of_difference(several, "lsa-1") == pytest.approx((error**2 + 0.1**2 / 3) ** 0.5)


def test_losses_are_averaged_over_seeds_sequence_by_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(laboratory._BASELINES, "linear", lambda task: ({}, {}))
    runs = {"lsa-1": [run_of("lsa-1", hand_built()), run_of("lsa-1")]}
    comparison = Laboratory(PLAN, runs).comparison("linear", ignore)
    a, b = comparison.seed_losses["lsa-1"]
    torch.testing.assert_close(comparison.losses["lsa-1"].losses, (a.losses + b.losses) / 2)
    assert a.mean < b.mean


def test_ratio_claims_are_widened_by_the_noise_of_the_ratio() -> None:
    base = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) + 1
    losses = {"a": InContextLoss(2 * base), "b": InContextLoss(base)}
    comparison = Comparison("linear", losses, {}, {})
    lab = Laboratory(PLAN, {})
    settings = {"high": 1.5, "basis": "made up"}
    (exact,) = ratio_claim(lab, comparison, "x", "Fig. 0", "twice", "a", "b", **settings)
    assert exact.value == pytest.approx(2)
    assert exact.high == pytest.approx(1.5, abs=1e-6), "a ratio without noise"
    losses["a"] = InContextLoss(2 * base.flip(0))
    (noisy,) = ratio_claim(lab, comparison, "x", "Fig. 0", "twice", "a", "b", **settings)
    assert noisy.high is not None
    assert 1.51 < noisy.high < 1.7
    assert ratio_claim(lab, comparison, "x", "Fig. 0", "none", "a", "c", **settings) == []


def test_published_means_pass_at_the_number_and_fail_far_from_it() -> None:
    lab = Laboratory(PLAN, {"lsa-1": [run_of("lsa-1")]})
    for loss, passes in ((0.8942, True), (0.95, False), (0.84, False)):
        losses = {"lsa-1": InContextLoss(torch.full((256, 50), loss))}
        comparison = Comparison("linear", losses, {}, {})
        (claim,) = published_means(lab, comparison, "Fig. 4", ("lsa-1", "lsa-2"))
        assert claim.passed is passes


def test_least_squares_and_kernel_regression_by_dimension() -> None:
    points = {p.predictor: p for p in fig20.measure(4, 0.01, 256)}
    assert points["least squares"].loss < points["least squares, official"].loss
    assert points["least squares, official"].loss == pytest.approx(0.0329, abs=0.004)
    assert points["kernel regression"].loss == pytest.approx(0.0798, abs=0.012)


def test_labels_say_what_a_model_is_whatever_its_task() -> None:
    assert label_of("fixed-mesa-1") == label_of("mesa-1") == "1 mesa layer"
    assert label_of("tf-7-partial") == "7 softmax layers"


NEEDS_NO_TRAINING = (
    *("*-step-mean", "*-steps*-mean", "*-least-squares*-mean"),
    *("*-layer-0", "*-in-sample-is-too-good"),  # of the input; of any representation
    *("fig6c-newest-pair", "fig7-stacking-helps", "fig7-features-help"),
    *("fig8-least-squares-*", "fig8-zero-separator-*", "fig8-true-pairs-*", "fig8-best-ridge-*"),
    "fig20-*",
)
"""Claims about algorithms and tasks, which hold whatever the models are."""

MODELS = ("lsa-*", "mesa-1", "tf-*", "hybrid-mesa*", "contracting-lsa-*", "contracting-mesa-1")
LEARNED = (
    *("fig2*-previous-token", "fig2*-two-back", "fig2*-bound-tokens", "fig2*-teacher-*", "fig3-*"),
    *("fig4-lsa-1-is-one-step", "fig4-two-layers-beat-one", "fig4-mesa-is-least-squares"),
    *("fig4-interpolated-*-start", "fig5-dim-*-first-layer", "fig5-dim-*-second-layer"),
    *("fig5-dim-*-later-layers", "fig8-ascent", "fig8-separator-*", "fig8-prefix-*"),
    *("fig8-pairs-*", "fig8-switch-*", "fig8-second-task", "fig9-early-*", "fig9-energy-*"),
    *("fig11-one-layer", "fig11-two-layers", "fig11-mesa-beyond-*", "fig12-*", "fig13-*"),
    *("fig16-*-binds-less", "fig18-*", "fig19-*", "fig21-*-wider-holds-more"),
    *("*-falls", "*-near", "*-every-head", "*-looks-further", "*-onset", "*-binds", "*-binds-more"),
    *("fig*-self", "fig16-*-previous", "fig2[23]-*-previous"),
    "*-position-*-layer-[1-9]",
    *(f"{task}-{model}-mean" for task in CURVES for model in MODELS),
)
"""Claims about what models learn, which no untrained model may pass."""

BY_CHANCE = (
    # One model beats another: equal, up to noise.
    *(
        "fig4-mesa-beats-six",
        "fig4-depth-helps",
        "fig6c-depth-helps",
        "fig7-hybrid-*",
        "fig11-mesa",
    ),
    # A model is as good as what it was made into: both predict zero.
    *("fig4-compressed-*", "fig4-interpolated-*-end", "fig5-dim-*-layer-[1-7]"),
    # Something is not there.
    *("fig2-*-old-tokens", "fig17-full-mesa-binds-nothing", "*-exact-inverse"),
    "fig9-last-layer-is-not",
)
"""Claims that untrained models may pass."""


def kind_of(claim: str) -> str:
    """The one kind of claims that a name belongs to."""
    kinds = {"needs no training": NEEDS_NO_TRAINING, "learned": LEARNED, "by chance": BY_CHANCE}
    (kind,) = (
        kind
        for kind, patterns in kinds.items()
        if any(fnmatchcase(claim, pattern) for pattern in patterns)
    )
    return kind


def assert_untrained(claim: Claim) -> None:
    """Fail unless the claim's verdict is one for models that have learned nothing."""
    name = claim.id.split("/")[1]
    expected = {"needs no training": (True,), "learned": (False,), "by chance": (True, False)}
    assert claim.passed in expected[kind_of(name)], f"{name}: {claim.value:g}, {claim.threshold}"


@pytest.mark.slow
def test_everything_runs_at_scale_smoke_and_only_trained_models_fail(tmp_path: Path) -> None:
    out = tmp_path / "results"
    claims = reproduce("uncovering2023", scale="smoke", out=out, device="cpu")
    assert len({claim.id for claim in claims}) == len(claims) >= 90
    for claim in claims:
        assert_untrained(claim)
    parts = {path.stem: json.loads(path.read_text()) for path in (out / "parts").glob("*.json")}
    assert set(parts) == {part.name for part in UNCOVERING.parts}
    assert all(part["figures"] for part in parts.values()), "every part draws something"
    saved = {path.stem for path in (out / "figures").glob("*.png")}
    assert saved == {figure for part in parts.values() for figure in part["figures"]}
