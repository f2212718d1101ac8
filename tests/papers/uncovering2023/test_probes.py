"""Figures 2, 4E, 4F, 6A, 6B, 17, 21, 24 and 25: models that bind tokens pass, untrained ones fail."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laboratories import PLAN, Computed, compute, run_of
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import official_probe_error, preconditioned_token
from mesaopt.config import stacked
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, draw, judge
from mesaopt.papers.uncovering2023.laboratory import COMPARED, Laboratory
from mesaopt.papers.uncovering2023.probe_depth import (
    fig4e,
    fig4f,
    fig6ab,
    fig24,
    fig25,
    fig25_training,
    published_claims,
)
from mesaopt.papers.uncovering2023.probe_drawing import draw_curve
from mesaopt.papers.uncovering2023.probe_tokens import fig2a, fig2b, fig17, fig21
from mesaopt.papers.uncovering2023.probes import (
    LAST,
    NEXT,
    STEPS,
    TOKENS,
    depth_targets,
    probe_depth,
    probe_tokens,
)
from mesaopt.papers.uncovering2023.published import (
    NEXT_TOKEN_PROBES,
    PRECONDITIONING_PROBES,
    TEACHER_PROBES,
    TOKEN_PROBES,
)
from mesaopt.tasks import make_task, tokens_from_states
from mesaopt.theory import PUBLISHED_INVERSES
from mesaopt.training import Run, train

FIGURES = (fig2a, fig2b, fig4e, fig4f, fig17, fig21, fig24, fig25)


def untrained_run(recipe: str, model: SequenceModel | None = None) -> Run:
    """A run that nobody trained, said to be of 2 steps."""
    model = model or SequenceModel(recipes.get(recipe).sequence_model)
    return run_of(recipe, model, steps=2)


def laboratory_of(*runs: Run) -> Laboratory:
    return Laboratory(PLAN, {run.config.recipe: [run] for run in runs})


def turned_back(width: int, steps: int) -> Tensor:
    """The matrix that turns the sines and cosines of a position into those of one before it."""
    angles = steps * 10_000.0 ** -(torch.arange(0, width, 2) / width)
    pairs = zip(angles.cos(), angles.sin(), strict=True)
    return torch.block_diag(*(torch.tensor([[c, -s], [s, c]]) for c, s in pairs))


def binding(recipe: str) -> SequenceModel:
    """A model whose first layer lays past tokens side by side in the stream, and does nothing else.

    Each of its softmax heads looks at one offset, which it finds by the positions.
    """
    config = recipes.get(recipe).sequence_model
    model = SequenceModel(replace(config, activation_clip=None))
    for name, parameter in model.named_parameters():
        if "ridge" not in name:
            parameter.data.zero_()
    dim, width, layer = config.output_dim, config.width, model.mixers[0]
    head_dim = config.head_dim or 0
    model.embedding.weight.data[:dim] = torch.eye(dim)
    for head in range(min(config.num_heads, width // dim - 1)):
        start, place = head * head_dim, (head + 1) * dim
        rows = slice(start, start + head_dim)
        seen = 10 * torch.eye(width)[:head_dim]
        layer.key.weight.data[rows, width:] = seen
        layer.query.weight.data[rows, width:] = seen @ turned_back(width, head + 1)
        layer.value.weight.data[start : start + dim, :dim] = torch.eye(dim)
        layer.output.weight.data[place : place + dim, start : start + dim] = torch.eye(dim)
    return model


@pytest.mark.parametrize(("recipe", "decodable"), [("hybrid-mesa", 4), ("hybrid-mesa-partial", 8)])
def test_a_layer_that_binds_tokens_passes(recipe: str, decodable: int) -> None:
    lab = laboratory_of(untrained_run(recipe, binding(recipe)))
    probed = probe_tokens(lab, recipe)
    # Width 40 holds four tokens of ten coordinates; eight of five are asked for at most.
    assert probed.decodable_tokens(1).value == pytest.approx(decodable, abs=0.05)
    assert probed.decodable_tokens(0).value == pytest.approx(1, abs=0.05)
    assert list(compute(fig2a, lab).verdicts.values()) == [True, True]


@pytest.fixture(scope="module")
def untrained() -> Laboratory:
    names = ("lsa-6", "hybrid-mesa", "hybrid-mesa-partial", "hybrid-mesa-nonlinear")
    return laboratory_of(*map(untrained_run, names))


@pytest.fixture(scope="module")
def results(untrained: Laboratory) -> dict[str, Computed]:
    """All figures of the untrained models."""
    return {figure.name: compute(figure, untrained) for figure in FIGURES}


@pytest.mark.parametrize("name", [figure.name for figure in FIGURES])
def test_figures_draw_what_there_is_and_untrained_models_fail(
    name: str, results: dict[str, Computed]
) -> None:
    result = results[name]
    assert result.rows
    assert all(row.keys() == result.rows[0].keys() for row in result.rows)
    assert result.settings == {"test sequences": 512}
    learned = ("falls", "previous-token", "old-tokens", "two-back", "teacher-49", "teacher-50")
    verdicts = result.verdicts
    assert not any(passed for claim, passed in verdicts.items() if claim.endswith(learned))
    # What untrained models pass says nothing of training: the input, and the optimism of the method.
    passed = [claim for claim, passed in verdicts.items() if passed]
    assert all("layer-0" in claim or claim.endswith("too-good") for claim in passed)
    assert verdicts or name in ("fig17", "fig21")


@pytest.mark.parametrize("figure", [*FIGURES, fig6ab, fig25_training], ids=lambda f: f.name)
def test_figures_without_their_models_are_left_out(figure: Figure) -> None:
    assert compute(figure, Laboratory(PLAN, {})) == Computed({}, {}, {})


def test_a_figure_without_checkpoints_is_left_out() -> None:
    lab = laboratory_of(untrained_run("tf-7-nonlinear"))
    assert compute(fig25_training, lab) == Computed({}, {}, {})


def test_a_layer_without_softmax_is_compared_with_one_that_has_it() -> None:
    linear = untrained_run("full-mesa-published")
    bound = untrained_run("hybrid-mesa", binding("hybrid-mesa"))
    for other, passes in ((bound, True), (untrained_run("hybrid-mesa"), False)):
        result = compute(fig17, laboratory_of(linear, other))
        assert list(result.verdicts.values()) == [passes]
    assert compute(fig17, laboratory_of(linear)).claims == {}


def test_claims_cite_their_own_figures(results: dict[str, Computed]) -> None:
    for name, figure in (("fig4e", "Fig. 4E"), ("fig4f", "Fig. 4F"), ("fig24", "Fig. 24")):
        claims = results[name].claims.values()
        assert {claim.figure for claim in claims} - {"beyond the paper"} == {figure}
        falls = [claim.basis for claim in claims if claim.name.endswith("falls")]
        assert all(("published" in basis) == (name != "fig24") for basis in falls)


def test_targets_chosen_by_published_numbers_say_so(results: dict[str, Computed]) -> None:
    chosen = {
        name: "was chosen by these numbers" in claim.basis
        for name, claim in results["fig4f"].claims.items()
    }
    assert chosen.pop("fig4f-lsa-6-preconditioned-falls") is False
    assert set(chosen.values()) == {True}


def test_zeros_are_no_circles_on_a_logarithmic_axis(results: dict[str, Computed]) -> None:
    published = {48: 0.1, 49: 0.02, 50: 0.0}
    first_layer = [row for row in results["fig17"].rows if row["layer"] == 1]
    rows = [
        row | {"published": published.get(t), "seeds": []}
        for t, row in zip(TOKENS, first_layer, strict=True)
    ]
    axes = Drawing().subplots()
    draw_curve(axes, TOKENS, rows, color="k", controls=False)
    (circles,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(circles.get_xdata()) == [48, 49]
    assert 0.0 in TOKEN_PROBES["hybrid-mesa"].values()
    assert [row["published"] for row in first_layer] == list(TOKEN_PROBES["hybrid-mesa"].values())


def test_legends_name_published_numbers_only_where_there_are_some(
    results: dict[str, Computed],
) -> None:
    for figure, there in ((fig24, False), (fig25, False), (fig4e, True), (fig2a, True)):
        drawing = draw(figure, results[figure.name].panels)
        labels = {text.get_text() for text in drawing.legends[0].get_texts()}
        assert ("as published" in labels) == there


def test_decodable_tokens_have_an_error_over_sequences(untrained: Laboratory) -> None:
    probed = probe_tokens(untrained, "hybrid-mesa")
    shares = [probed.score((f"token {t}", 1, LAST)) for t in TOKENS]
    rest = torch.stack(
        [
            (s.losses - s.unexplained.value * s.baseline) / s.uninformative
            for s in shares
            if s.r2 > 0
        ]
    ).sum(0)
    wanted = (rest.std() / len(rest) ** 0.5).item()
    assert probed.decodable_tokens(1).error == pytest.approx(wanted)
    assert wanted > 0


def test_the_input_tells_as_much_as_published_without_any_training(untrained: Laboratory) -> None:
    claims: dict[str, Claim] = {
        claim.name: claim
        for target, name in ((NEXT, "next"), (STEPS, "steps"))
        for claim in published_claims(untrained, "lsa-6", target, name=name, figure="Fig. 4")
    }
    assert len(claims) == 6, "the layers were not trained, so nothing is said of them"
    # Published numbers are of one batch of 256, whose spread is 4 %; ours of two.
    for position, value in {6: 2.75, 21: 0.0465, 41: 0.0084}.items():
        ours = claims[f"steps-position-{position}-layer-0"].value
        assert ours == pytest.approx(value, rel=0.2)


def test_models_said_to_be_trained_as_published_are_compared_with_its_numbers() -> None:
    """Untrained ones fail, and only behind their layers."""
    lab = laboratory_of(*map(run_of, ("lsa-6", "hybrid-mesa", "hybrid-mesa-nonlinear")))
    claims = [claim for figure in (fig4e, fig4f, fig2a, fig2b) for claim in judge(figure, lab)]
    verdicts = {claim.name: claim.passed for claim in claims}
    last = [name for name in verdicts if name.endswith("layer-6")]
    assert len(last) == 6
    assert not any(verdicts[name] for name in last)
    assert not verdicts["fig2-hybrid-mesa-bound-tokens"]
    teacher = [name for name in verdicts if name.startswith("fig2b")]
    assert len(teacher) == 2
    assert not any(verdicts[name] for name in teacher), "no better than the weights it started from"


def test_a_run_is_probed_once_for_all_figures(untrained: Laboratory) -> None:
    assert probe_depth(untrained, "lsa-6") is probe_depth(untrained, "lsa-6")
    calls: list[int] = []
    untrained.on_progress = lambda progress: calls.append(progress.done)
    assert compute(fig17, untrained).rows
    lab = laboratory_of(*(run for runs in untrained.runs.values() for run in runs))
    lab.on_progress = untrained.on_progress
    probe_tokens(lab, "hybrid-mesa")
    assert calls == [1, 2, 1, 2], "the second laboratory alone measures"


def test_seeds_are_averaged_sequence_by_sequence() -> None:
    models = (SequenceModel(recipes.get("lsa-6").sequence_model, seed=seed) for seed in (1, 2))
    lab = Laboratory(PLAN, {"lsa-6": [untrained_run("lsa-6", model) for model in models]})
    probed = probe_tokens(lab, "lsa-6")
    key = ("token 45", 3, LAST)
    one, two = probed.seed_scores(key)
    torch.testing.assert_close(probed.score(key).losses, (one.losses + two.losses) / 2)
    assert probed.score(key).mean == pytest.approx((one.mean + two.mean) / 2)
    assert probed.in_sample(key).value < probed.score(key).mean


def test_every_seed_is_a_thin_line() -> None:
    models = (SequenceModel(recipes.get("hybrid-mesa").sequence_model, seed=s) for s in (1, 2))
    lab = Laboratory(PLAN, {"hybrid-mesa": [untrained_run("hybrid-mesa", m) for m in models]})
    drawing = draw(fig17, compute(fig17, lab).panels)
    thin = [line for line in drawing.axes[0].lines if line.get_linewidth() == 0.5]
    assert len(thin) == 2 * 2, "a line per seed and layer"


def test_checkpoints_are_probed_and_two_steps_teach_nothing(tmp_path: Path) -> None:
    config = recipes.get("tf-7-nonlinear")
    few = replace(config.sequence_model, mixers=config.sequence_model.mixers[:2])
    short = {"steps": 2, "batch_size": 4, "evaluate_every": 1, "evaluation_sequences": 256}
    config = replace(config, model=few, train=replace(config.train, **short))
    run = train(config, tmp_path / "run")
    growth = compute(fig25_training, Laboratory(PLAN, {"tf-7-nonlinear": [run]}))
    assert {row["step"] for row in growth.rows} == {0, 1, 2}
    assert growth.settings == {"test sequences": 256}
    (claim,) = growth.claims.values()
    assert not claim.passed
    assert claim.value == pytest.approx(1, abs=0.1)
    other = train(replace(config, seed=1), tmp_path / "other")
    both = compute(fig25_training, Laboratory(PLAN, {"tf-7-nonlinear": [run, other]}))
    assert both.claims[claim.name].value != claim.value
    assert len(both.rows) == len(growth.rows)
    drawing = draw(fig25_training, both.panels)
    thin = [line for line in drawing.axes[0].lines if line.get_linewidth() == 0.5]
    assert len(thin) == 2 * 3, "a line per seed and part of the stream"


def test_published_probes_are_of_recipes_and_as_deep_as_these() -> None:
    for table in (NEXT_TOKEN_PROBES, PRECONDITIONING_PROBES, TEACHER_PROBES):
        for recipe, errors in table.items():
            depth = len(recipes.RECIPES[recipe].mixers)
            assert all(len(values) == depth + 1 for values in errors.values())
    for recipe in TOKEN_PROBES:
        assert recipe in recipes.RECIPES
    for figure in (*FIGURES, fig6ab, fig25_training):
        assert set(figure.recipes) <= set(recipes.RECIPES)
    assert set(COMPARED["partial"]) <= set(fig21.recipes)
    assert [recipes.RECIPES[name].width for name in fig21.recipes] == 2 * [10, 20, 30, 50, 80]


@pytest.mark.parametrize("position", [6, 21, 50])
@pytest.mark.parametrize("recipe", ["lsa-6", "tf-7"])
def test_preconditioned_inputs_are_as_hard_to_decode_from_tokens_as_published(
    recipe: str, position: int
) -> None:
    published = PRECONDITIONING_PROBES[recipe].get(position)
    if published is None:
        pytest.skip("not published")
    task = make_task(recipes.RECIPES[recipe].config.task)
    batch = task.sample(5120, seed=0, split="test")
    target = depth_targets(task)[STEPS](batch, [position])[:, 0]
    slots = 2 if recipe == "lsa-6" else 1  # the current state, and the previous one
    features = torch.cat([batch.observed[:, position - 1 - k] for k in range(slots)], 1).double()
    errors = [
        official_probe_error(x, y, outlier_score=2.0)
        for x, y in zip(features.split(256), target.split(256), strict=True)
    ]
    # One published batch of 256 has an error of 3 %. With the other steps tf-7 is 10 % low at 6.
    assert torch.tensor(errors).mean().item() == pytest.approx(published[0], rel=0.05)


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("linear", "7-layer"),
        ("linear-constructed", "constructed"),
        ("partial", "partially-observed"),
        ("nonlinear", "nonlinear"),
    ],
)
def test_the_steps_of_the_target_are_those_of_the_tokens(task: str, steps: str) -> None:
    made = make_task(recipes.TASKS[task])
    batch = made.sample(4, seed=0)
    inverse = PUBLISHED_INVERSES[steps]
    inputs = {"partial": stacked_five, "nonlinear": getattr(made, "features", None)}.get(task)
    wanted = preconditioned_token(inverse, inputs=inputs)(batch, [6, 50])
    torch.testing.assert_close(depth_targets(made)[STEPS](batch, [6, 50]), wanted)


def stacked_five(states: Tensor) -> Tensor:
    return tokens_from_states(states, stacked(5))
