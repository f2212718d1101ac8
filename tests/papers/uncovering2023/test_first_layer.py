"""Figures 3, 14, 15, 16, 22 and 23: layers that bind neighbours by hand pass, untrained ones fail."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laboratories import PLAN, Computed, compute, save_run
from torch import nn

from mesaopt import recipes
from mesaopt.analysis import Estimate, Sensitivity
from mesaopt.analysis.estimate import mean_and_error
from mesaopt.config import RunConfig
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, judge
from mesaopt.papers.uncovering2023.attention import fig3, fig14, fig15, first_maps
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.sensitivities import binding, fig16, fig22, fig23, spread
from mesaopt.papers.uncovering2023.weights import pattern_shares
from mesaopt.theory import proposition_1
from mesaopt.training import Run

FIGURES = (fig3, fig14, fig15, fig16, fig22, fig23)


def bound(config: RunConfig, tokens: int = 2) -> SequenceModel:
    """A model whose heads look at the token itself, the previous one and so on, in turn.

    Positions are pairs (sin w t, cos w t). A query turned back by w d, and a key as it stands, have the
    product sum_w cos w (t - d - s), largest at s = t - d.
    """
    model = SequenceModel(config.sequence_model)
    layer, width = model.mixers[0], config.sequence_model.width
    head_dim = layer.query.out_features // layer.num_heads
    pairs = torch.arange(head_dim // 2)
    angles = 10_000.0 ** (-2 * pairs / width)
    for weight in (layer.query.weight, layer.key.weight):
        weight.data.zero_()
    for head in range(layer.num_heads):
        rows, back = head * head_dim + 2 * pairs, head % tokens
        sines, cosines = width + 2 * pairs, width + 2 * pairs + 1  # behind the stream
        turn = (angles * back).cos(), (angles * back).sin()
        for row, column, value in (
            (rows, sines, turn[0]), (rows, cosines, -turn[1]),
            (rows + 1, sines, turn[1]), (rows + 1, cosines, turn[0]),
        ):  # fmt: skip
            layer.query.weight.data[row, column] = 50 * value
        layer.key.weight.data[rows, sines] = layer.key.weight.data[rows + 1, cosines] = 1.0
    for weight in (layer.value.weight, layer.output.weight):
        weight.data *= 6  # as large as trained ones
    return model


def save(path: Path, config: RunConfig, **models: nn.Module) -> Run:
    """A run with checkpoints `step_<number>`."""
    by_step = {int(name.removeprefix("step_")): model for name, model in models.items()}
    return save_run(path / config.recipe, config, by_step)


def trained(recipe: str) -> tuple[RunConfig, nn.Module]:
    """What stands for a trained model."""
    config = recipes.get(recipe)
    model = SequenceModel(config.sequence_model, seed=1)
    if recipe == "lsa-1":
        step = proposition_1(10, step_size=0.03, head_dim=20)
        model.load_state_dict(  # half of it in each of two heads
            {
                name: torch.cat([w, w], dim=1) / 2 if "output" in name else torch.cat([w, w])
                for name, w in step.items()
            }
        )
    elif recipe != "full-mesa-published":
        model = bound(config, 5 if "partial" in recipe else 2)
    return config, model


NAMES = tuple(dict.fromkeys(name for figure in FIGURES for name in figure.recipes))
FEWER = {"fig22": ("hybrid-mesa-partial", "hybrid-mesa"), "fig23": ("hybrid-mesa-nonlinear",)}
"""Models of figures that take long, without those that have the same first layer."""


@pytest.fixture(scope="module")
def laboratories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Laboratory]:
    """All models bound by hand, and all of them as they begin."""
    path = tmp_path_factory.mktemp("runs")
    by_hand, untrained = {}, {}
    for name in NAMES:
        config, model = trained(name)
        first = SequenceModel(config.sequence_model)
        by_hand[name] = [save(path / "bound", config, step_0=first, step_2900=model)]
        untrained[name] = [save(path / "untrained", config, step_0=first, step_100=first)]
    return {"bound": Laboratory(PLAN, by_hand), "untrained": Laboratory(PLAN, untrained)}


def some(figure: Figure, lab: Laboratory) -> Computed:
    """The figure, without models that take long and tell nothing new."""
    names = FEWER.get(figure.name, figure.recipes)
    return compute(figure, Laboratory(PLAN, {n: lab.runs[n] for n in names if n in lab.runs}))


@pytest.fixture(scope="module")
def results(laboratories: dict[str, Laboratory]) -> dict[str, Computed]:
    """All figures of the models bound by hand."""
    return {figure.name: some(figure, laboratories["bound"]) for figure in FIGURES}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_claims_pass_for_layers_that_bind_and_fail_for_untrained_ones(
    figure: Figure, results: dict[str, Computed], laboratories: dict[str, Laboratory]
) -> None:
    verdicts = {
        name: passed
        for name, passed in results[figure.name].verdicts.items()
        if not name.endswith(("-self", "-previous"))  # numbers of one published training
    }
    assert len(verdicts) >= 2
    assert all(verdicts.values()), verdicts
    assert not any(some(figure, laboratories["untrained"]).verdicts.values())


def test_names_are_unique_and_every_figure_has_rows(results: dict[str, Computed]) -> None:
    names = [name for result in results.values() for name in result.claims]
    assert len(names) == len(set(names)) > 20
    for result in results.values():
        assert result.rows
        assert len({tuple(row) for row in result.rows}) == 1, "all rows have the same keys"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_without_runs_there_is_nothing(figure: Figure) -> None:
    assert compute(figure, Laboratory(PLAN, {})) == Computed({}, {}, {})


@pytest.mark.parametrize("name", fig3.recipes)
def test_a_panel_is_left_out_where_there_is_no_run(
    name: str, laboratories: dict[str, Laboratory]
) -> None:
    lab = Laboratory(PLAN, {name: laboratories["bound"].runs[name]})
    assert set(compute(fig3, lab).panels) == {"A" if name == "tf-7" else "B"}


def test_runs_without_a_folder_are_drawn_as_they_are() -> None:
    config, model = trained("tf-7")
    run = Run(Path("nowhere"), config, model, [], 0.0)
    claims = compute(fig16, Laboratory(PLAN, {"tf-7": [run]})).claims
    assert claims["fig16-tf-7-onset"].value == pytest.approx(1), "nothing to compare with"
    assert claims["fig16-tf-7-binds"].passed


def test_nothing_is_said_about_the_onset_in_weights_without_a_beginning(tmp_path: Path) -> None:
    config, model = trained("tf-7")
    run = save(tmp_path / "run", config, step_10000=model)
    claims = compute(fig16, Laboratory(PLAN, {"tf-7": [run]})).claims
    assert "fig16-tf-7-onset" not in claims
    assert claims["fig16-tf-7-binds"].passed


def sensitivity_claims(path: Path, **changes) -> dict[str, Claim]:
    """Claims of figure 16 about a run with other settings."""
    config, model = trained("tf-7")
    config = replace(config, train=replace(config.train, **changes))
    run = save(path, config, step_0=SequenceModel(config.sequence_model), step_2900=model)
    return compute(fig16, Laboratory(PLAN, {"tf-7": [run]})).claims


def test_published_numbers_are_for_runs_as_published(tmp_path: Path) -> None:
    names = {"fig16-tf-7-self", "fig16-tf-7-previous"}
    claims = sensitivity_claims(tmp_path / "a", steps=3000)
    assert names <= set(claims)
    # A layer that looks by positions alone has the same derivatives for all sequences.
    assert claims["fig16-tf-7-self"].limits == (
        pytest.approx(0.7 * 1.229, rel=1e-3),
        pytest.approx(1.3 * 1.229, rel=1e-3),
    )
    assert not names & set(sensitivity_claims(tmp_path / "b", batch_size=32))
    assert not names & set(sensitivity_claims(tmp_path / "c", learning_rate=1e-3))


def test_how_a_layer_binds_is_measured_in_every_seed_by_itself() -> None:
    norms = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) + 0.5
    seeds = [Sensitivity(12, scale * norms, scale * norms) for scale in (1.0, 1000.0)]
    alike = binding(seeds)
    torch.testing.assert_close(alike[0], alike[1])
    seeds[1].norms[:, :6] /= 10  # older tokens: noise of the denominator is spread over seeds
    apart = binding(seeds)
    torch.testing.assert_close(apart[1], 10 * apart[0])


def test_the_published_onset_is_that_of_the_model(results: dict[str, Computed]) -> None:
    bases = {name: c.basis for result in results.values() for name, c in result.claims.items()}
    for name, published, times in (
        ("fig16-tf-7", 1.007, 2338),
        ("fig22-hybrid-mesa-partial", 0.163, 226),
        ("fig23-hybrid-mesa-nonlinear", 0.504, 984),
    ):
        match = re.match(r"([\d.]+) published, (\d+) times", bases[f"{name}-onset"])
        assert match is not None
        assert float(match[1]) == published
        assert int(match[2]) == pytest.approx(times, abs=2)  # 64 sequences, in float32
        assert ("2500" in bases[f"{name}-onset"]) == (name == "fig16-tf-7"), (
            "a number of tf-7 alone"
        )


def test_checkpoints_are_spread_with_more_of_them_early() -> None:
    chosen = spread(range(0, 20_001, 100), 16)
    assert chosen[0] == 0
    assert chosen[-1] == 20_000
    assert 2900 in chosen
    assert len(chosen) <= 16
    assert sum(step <= 5000 for step in chosen) >= 7
    assert spread([], 5) == []
    assert spread([0, 2], 2) == [0, 2]
    assert spread([7], 5) == [7]


def test_seeds_widen_what_noise_allows(laboratories: dict[str, Laboratory]) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    mean, error = mean_and_error(values)
    assert mean.item() == 2.5
    sequences, seeds = 1.0 / 3, 0.5 / 2
    assert error.item() == pytest.approx((sequences + seeds) ** 0.5)
    _, alone = mean_and_error(values[:1])
    assert alone.item() == pytest.approx(sequences**0.5)
    runs = laboratories["bound"].runs["tf-7"]
    both = Laboratory(PLAN, {"tf-7": runs + laboratories["untrained"].runs["tf-7"]})
    one = compute(fig3, Laboratory(PLAN, {"tf-7": runs})).claims
    for name, claim in compute(fig3, both).claims.items():
        low, before = claim.limits[0], one[name].limits[0]
        assert low is not None
        assert before is not None
        assert low < before - 0.1


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_seeds_share_the_noise_of_their_sequences(
    seeds: int, laboratories: dict[str, Laboratory]
) -> None:
    """Equal models on the same sequences know no more than one of them."""
    maps = first_maps(laboratories["untrained"], "tf-7")[:1]
    lab = Laboratory(PLAN, {"tf-7": laboratories["untrained"].runs["tf-7"][:1] * seeds})
    lab.remember(first_maps, "tf-7", value=maps * seeds)
    claims = {claim.name: claim for claim in judge(fig3, lab) if claim.recipes == ("tf-7",)}
    assert set(claims) == {"fig3-previous-head", "fig3-tf-7-every-head"}
    for name, (back, head) in {
        "fig3-previous-head": (slice(1, 2), torch.argmax),
        "fig3-tf-7-every-head": (slice(0, 2), torch.argmin),
    }.items():
        shares = maps[0].masses[..., back].sum(-1)
        one = Estimate.of(shares[:, head(shares.mean(0))])
        assert claims[name].value == pytest.approx(one.value, rel=1e-5)
        assert claims[name].error == pytest.approx(one.error, rel=1e-5)


def test_the_pattern_of_proposition_1_is_in_its_blocks_alone() -> None:
    _, model = trained("lsa-1")
    scores, values = pattern_shares(model)
    torch.testing.assert_close(scores, torch.ones(2))
    torch.testing.assert_close(values, torch.ones(2))
    swapped = model.state_dict()
    query, key = (f"blocks.0.mixer.{name}.weight" for name in ("query", "key"))
    swapped[query], swapped[key] = swapped[key], swapped[query]
    other = SequenceModel(recipes.get("lsa-1").sequence_model)
    other.load_state_dict(swapped)
    assert pattern_shares(other)[0].abs().max() == 0


@pytest.mark.parametrize(("steps", "compared"), [(2900, True), (3000, False), (10_000, False)])
def test_a_published_ratio_is_compared_at_its_own_step_only(
    steps: int, compared: bool, tmp_path: Path
) -> None:
    basis = sensitivity_claims(tmp_path, steps=steps)["fig16-tf-7-binds"].basis
    assert ("280 published" in basis) == compared
    assert "at least 37" in basis
