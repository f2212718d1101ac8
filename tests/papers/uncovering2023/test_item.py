"""The study as a whole: its figures, what it trains, and the kinds of its claims."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from laboratories import PLAN, run_of

from mesaopt import recipes
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import judge
from mesaopt.papers.reproduce import make_plan, measuring_seconds, reproduce
from mesaopt.papers.uncovering2023.item import STUDY as UNCOVERING
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.papers.uncovering2023.settings import SETTINGS


def test_the_figures_are_in_order_and_each_trains_what_it_reads() -> None:
    assert " ".join(figure.name for figure in UNCOVERING.figures) == (
        "fig2a fig2b fig3 fig4 fig4e fig4f fig5 fig6ab fig6c fig7 fig8 fig9 fig10 fig11 fig12 fig13 "
        "fig14 fig15 fig16 fig17 fig18 fig19 fig20 fig21 fig22 fig23 fig24 fig24c fig25 fig25-training"
    )
    only = make_plan("uncovering2023", scale="small", only=("fig6c",))
    assert {training.recipe for training in only.trainings} == {"tf-3", "tf-7"}
    assert make_plan("uncovering2023/fig20", scale="small").trainings == ()
    assert make_plan("uncovering2023/fig2", scale="small").figures == ("fig2a", "fig2b")
    assert make_plan("uncovering2023/fig25", scale="small").figures == ("fig25", "fig25-training")
    assert make_plan("uncovering2023/fig4", scale="small").figures == ("fig4",)
    everything = make_plan("uncovering2023", scale="paper")
    assert {t.recipe for t in everything.trainings} == {
        recipe for figure in UNCOVERING.figures for recipe in figure.recipes
    }


def test_paper_scale_is_as_published() -> None:
    for training in UNCOVERING.plans["paper"].trainings:
        for config in training.configs:
            published = recipes.get(training.recipe).train
            assert replace(config.train, evaluation_sequences=1) == replace(
                published, evaluation_sequences=1
            )
        assert training.seeds >= 3


def test_a_figure_of_small_models_alone_takes_little_time() -> None:
    plan = make_plan("uncovering2023/fig5", scale="paper")
    (figure,) = plan.figures
    whole = measuring_seconds(plan)[figure]
    runs = {one.recipe: [run_of("tf-7-dim-4")] * one.seeds for one in plan.trainings}
    assert measuring_seconds(plan, runs)[figure] == pytest.approx(whole)
    small = {f"tf-7-dim-{dim}": runs[f"tf-7-dim-{dim}"] for dim in (4, 6, 10)}
    assert measuring_seconds(plan, small)[figure] < 0.1 * whole


LARGE = {f"tf-7-dim-{dim}" for dim in (10, 20, 40, 60)}


@pytest.mark.slow
def test_claims_of_a_full_reproduction_have_names_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everything that is said at scale paper of models trained as published, by untrained ones that say they
    # were, with as few sequences and steps as at scale smoke. Dimensions are alike but for their number.
    monkeypatch.setitem(SETTINGS, "paper", SETTINGS["smoke"])
    read = {recipe for figure in UNCOVERING.figures for recipe in figure.recipes} - LARGE
    lab = Laboratory(replace(PLAN, scale="paper"), {recipe: [run_of(recipe)] for recipe in read})
    claims = {}
    for figure in UNCOVERING.figures:
        own = {claim.name: claim for claim in judge(figure, lab)}
        assert not set(own) & set(claims)
        claims |= own
    assert len(claims) > 170
    assert all(map(kind_of, claims))
    for name, claim in claims.items():
        if "-position-" not in name:  # probes of so few sequences are far too noisy
            assert_untrained(claim)


NEEDS_NO_TRAINING = (
    "*-step-mean",
    "*-steps*-mean",
    "*-least-squares*-mean",
    "*-layer-0",  # of the input
    "*-in-sample-is-too-good",  # of any representation
    "fig6c-newest-pair",
    "fig7-stacking-helps",
    "fig7-features-help",
    "fig8-least-squares-*",
    "fig8-zero-separator-*",
    "fig8-true-pairs-*",
    "fig8-best-ridge-*",
    "fig20-*",
)
"""Claims about algorithms and tasks, which hold whatever the models are."""

MODELS = ("lsa-*", "mesa-1", "tf-*", "hybrid-mesa*", "contracting-lsa-*", "contracting-mesa-1")
LEARNED = (
    "fig2*-previous-token",
    "fig2*-two-back",
    "fig2*-bound-tokens",
    "fig2*-teacher-*",
    "fig3-*",
    "fig4-lsa-1-is-one-step",
    "fig4-two-layers-beat-one",
    "fig4-mesa-is-least-squares",
    "fig4-mesa-late",
    "fig4-interpolated-*-start",
    "fig5-dim-*-first-layer*",
    "fig5-dim-*-second-layer",
    "fig5-dim-*-later-layers*",
    "fig8-ascent",
    "fig8-separator-*",
    "fig8-prefix-*",
    "fig8-pairs-*",
    "fig8-switch-*",
    "fig8-second-task",
    "fig9-early-*",
    "fig9-energy-*",
    "fig11-one-layer*",
    "fig11-two-layers*",
    "fig11-mesa-beyond-*",
    "fig12-*",
    "fig13-*",
    "fig16-*-binds-less",
    "fig18-*",
    "fig19-*",
    "fig21-*-wider-holds-more",
    "*-falls",
    "*-near",
    "*-every-head",
    "*-looks-further",
    "*-onset",
    "*-binds",
    "*-binds-more",
    "fig*-self",
    "fig16-*-previous",
    "fig2[23]-*-previous",
    "*-position-*-layer-[1-9]",
    *(f"{task}-{model}-{part}" for task in CURVES for model in MODELS for part in ("mean", "late")),
)
"""Claims about what models learn, which no untrained model may pass."""

BY_CHANCE = (
    # One model beats another: equal, up to noise.
    "fig4-mesa-beats-six*",
    "fig4-depth-helps*",
    "fig6c-depth-helps*",
    "fig7-hybrid-*",
    "fig11-mesa",
    "fig11-mesa-late",
    # A model is as good as what it was made into: both predict zero.
    "fig4-compressed-*",
    "fig4-interpolated-*-end",
    "fig5-dim-*-layer-[1-7]",
    # Something is not there.
    "fig2-*-old-tokens",
    "fig17-full-mesa-binds-nothing",
    "*-exact-inverse",
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
    name = claim.name
    expected = {"needs no training": (True,), "learned": (False,), "by chance": (True, False)}
    assert claim.passed in expected[kind_of(name)], f"{name}: {claim.value:g}, {claim.threshold}"


@pytest.mark.slow
def test_everything_runs_at_scale_smoke_and_only_trained_models_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mesaopt.papers.figure.FORMATS", {"svg": {}}
    )  # the others take most of the time
    out = tmp_path / "results"
    claims = reproduce("uncovering2023", scale="smoke", out=out, device="cpu")
    assert len({claim.id for claim in claims}) == len(claims) >= 90
    for claim in claims:
        assert_untrained(claim)
    parts = {path.stem: json.loads(path.read_text()) for path in (out / "parts").glob("*.json")}
    assert set(parts) == {figure.name for figure in UNCOVERING.figures}
    # Every figure is drawn, but that of a model which is not trained at this scale.
    assert {name for name, part in parts.items() if not part["figures"]} == {"fig25-training"}
    saved = {path.stem for path in (out / "figures").glob("*.svg")}
    assert saved == {figure for part in parts.values() for figure in part["figures"]}
