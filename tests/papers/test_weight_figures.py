"""Compressed and interpolated models in figure 4, and the weights of figures 9, 10 and 13."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from mesaopt import recipes
from mesaopt.analysis import InContextLoss
from mesaopt.config import RunConfig
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import style
from mesaopt.papers.plan import Plan
from mesaopt.papers.uncovering2023 import compression, fig9, fig10, fig13
from mesaopt.papers.uncovering2023.compression import CompressedRun
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import Picture, Row, draw_matrices
from mesaopt.papers.uncovering2023.published import INTERPOLATED_BY_STEP, RELEASED_COMPRESSED
from mesaopt.theory import proposition_1
from mesaopt.training import Checkpoint, Run, RunFolder, load_run, train

PLAN = Plan(what="uncovering2023", scale="smoke", num_sequences=256)


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


def verdicts(claims: list[Claim]) -> dict[str, bool]:
    return {claim.id.split("/")[1]: claim.passed for claim in claims}


def run_of(recipe: str, model: SequenceModel | None = None, steps: int | None = None) -> Run:
    """A run that nobody trained, with a model set by hand."""
    config = recipes.get(recipe)
    length = config.train if steps is None else replace(config.train, steps=steps)
    model = SequenceModel(config.model) if model is None else model
    return Run(Path("nowhere"), replace(config, train=length), model, [], 0.0)


def gradient_step() -> SequenceModel:
    model = SequenceModel(recipes.get("lsa-1").model)
    model.load_state_dict(proposition_1(10, step_size=0.0334, num_heads=2, head_dim=20))
    return model


def folder_of(path: Path, models: dict[int, SequenceModel]) -> Run:
    """A run of lsa-1 whose checkpoints were set by hand."""
    config = recipes.get("lsa-1")
    config = replace(
        config, train=replace(config.train, steps=max(models), evaluation_sequences=256)
    )
    folder = RunFolder.open(path, config, resume=False)
    for step, model in models.items():
        folder.save(Checkpoint(step, 0.0, dict(model.state_dict()), {}))
    return load_run(path, device="cpu")


def test_the_network_is_scored_on_the_test_sequences_of_its_training(
    tmp_path: Path, short_config: RunConfig
) -> None:
    length = replace(short_config.train, evaluation_sequences=256)
    run = train(replace(short_config, train=length), tmp_path / "run")
    (measured,) = compression.measure(Laboratory(PLAN, {"lsa-1": [run]}), ignore)
    assert (measured.start, measured.extracted, measured.end) == (0, 8, 12)
    assert list(measured.interpolated) == [0, 4, 8, 12]
    logged = {line["step"]: line["test_loss"] for line in run.metrics}
    for step, loss in measured.network.items():
        assert loss.mean == pytest.approx(logged[step], rel=1e-5)


def test_a_gradient_step_meets_its_scalars_and_starts_as_low_as_published(tmp_path: Path) -> None:
    untrained = SequenceModel(recipes.get("lsa-1").model)
    run = folder_of(tmp_path / "run", {0: untrained, 700: gradient_step(), 1000: gradient_step()})
    lab = Laboratory(PLAN, {"lsa-1": [run]})
    (measured,) = compression.measure(lab, ignore)
    assert measured.extracted == 700
    torch.testing.assert_close(
        measured.compressed[700].losses, measured.network[1000].losses, rtol=1e-4, atol=1e-4
    )
    assert verdicts(compression.judge(lab, [measured])) == {
        "fig4-compressed-one": True,
        "fig4-interpolated-one-start": True,
        "fig4-interpolated-one-end": True,
    }
    # Halves of both products are a quarter of a gradient step, whatever the training was.
    ratio = measured.interpolated[0].mean / measured.network[0].mean
    assert ratio == pytest.approx(INTERPOLATED_BY_STEP["lsa-1"][0] / 1.6741, abs=0.01)


def test_runs_without_checkpoints_are_left_out_and_untrained_ones_fail(tmp_path: Path) -> None:
    assert compression.measure(Laboratory(PLAN, {"lsa-1": [run_of("lsa-1")]}), ignore) == []
    untrained = SequenceModel(recipes.get("lsa-1").model)
    lab = Laboratory(PLAN, {"lsa-1": [folder_of(tmp_path / "run", {0: untrained, 2: untrained})]})
    found = verdicts(compression.judge(lab, compression.measure(lab, ignore)))
    assert found == {"fig4-interpolated-one-start": False}


def test_networks_that_learned_nothing_lose_nothing_by_compression_and_are_not_judged_by_it() -> (
    None
):
    one = measured_as("lsa-1", network=1.3, scalars=1.3, start=1.6, halfway=1.3)
    six = measured_as("lsa-6-key-40", network=1.674, scalars=1.674, start=1.674, halfway=1.674)
    assert judged(one, six) == {
        "fig4-interpolated-one-start": False,
        "fig4-interpolated-six-start": False,
    }
    diverged = replace(
        measured_as("lsa-1", network=0.9, scalars=0.9, start=1.33, halfway=0.9),
        network={0: losses(1.674), 2500: losses(0.9), 3500: losses(1.6)},
        compressed={2500: losses(0.9), 3500: losses(1.6)},
        interpolated={0: losses(1.33), 3500: losses(1.6)},
        extracted=2500,
    )
    assert set(judged(diverged)) == {"fig4-interpolated-one-start"}


def losses(mean: float) -> InContextLoss:
    random = torch.Generator().manual_seed(0)
    return InContextLoss(mean * (1 + 0.1 * torch.rand(256, 50, generator=random) - 0.05))


def measured_as(
    recipe: str, *, seed: int = 0, network: float, scalars: float, start: float, halfway: float
) -> CompressedRun:
    end = recipes.get(recipe).train.steps
    return CompressedRun(
        recipe,
        seed,
        extracted=end - 1000,
        network={0: losses(1.674), end - 1000: losses(network), end: losses(network)},
        compressed={end - 1000: losses(scalars), end: losses(scalars)},
        interpolated={0: losses(start), end: losses(halfway)},
    )


def judged(*measured: CompressedRun) -> dict[str, bool]:
    runs = {m.recipe: [run_of(m.recipe)] for m in measured}
    return verdicts(compression.judge(Laboratory(replace(PLAN, scale="paper"), runs), measured))


def test_published_numbers_pass_and_numbers_far_from_them_fail() -> None:
    one = measured_as("lsa-1", network=0.8924, scalars=0.8944, start=1.330, halfway=0.8921)
    six = measured_as("lsa-6-key-40", network=0.26, scalars=0.25, start=0.38, halfway=0.26)
    assert all(judged(one, six).values())
    assert len(judged(one, six)) == 6
    one = measured_as("lsa-1", network=0.8924, scalars=0.90, start=1.4, halfway=0.8981)
    six = measured_as("lsa-6-key-40", network=0.26, scalars=0.29, start=1.3, halfway=0.29)
    assert not any(judged(one, six).values())


def test_long_training_is_judged_by_what_compression_loses() -> None:
    def deep(recipe: str, factor: float) -> CompressedRun:
        network, scalars = RELEASED_COMPRESSED[recipe]
        scalars = network + factor * (scalars - network)
        return measured_as(recipe, network=network, scalars=scalars, start=0.4, halfway=0.3)

    assert judged(deep("lsa-4", 1.0), deep("lsa-6", 1.0)) == {
        "fig4-compressed-lsa-4-long": True,
        "fig4-compressed-lsa-6-long": True,
    }
    assert not any(judged(deep("lsa-4", 0.1), deep("lsa-6", 0.1)).values())


def test_seeds_widen_a_ratio_only_as_far_as_their_ratios_differ() -> None:
    pairs = [(losses(0.9 * x), losses(x)) for x in (0.8, 1.0, 1.2)]
    assert compression._Ratio.of(pairs).error == pytest.approx(0, abs=1e-6)
    pairs = [(losses(x), losses(1.0)) for x in (0.8, 1.0, 1.2)]
    assert compression._Ratio.of(pairs).error == pytest.approx(0.2 / 3**0.5, rel=0.01)


def test_compressed_and_interpolated_models_are_drawn_with_their_numbers() -> None:
    one = measured_as("lsa-1", network=0.89, scalars=0.89, start=1.33, halfway=0.89)
    two = replace(one, seed=1)
    deep = measured_as("lsa-4", network=0.2, scalars=0.3, start=0.4, halfway=0.3)
    axes = Figure().subplots()
    rows = compression.draw(axes, [one, two, deep], ("lsa-1", "lsa-2", "lsa-4"))
    names = {row["predictor"] for row in rows}
    assert {"lsa-1 interpolated, seed 1", "lsa-1 compressed, seed 0"} < names
    assert "lsa-4 compressed at the end, seed 0" in names
    assert "lsa-4 interpolated, seed 0" not in names, "the authors mix one and six layers"
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["1 linear layer, interpolated", "1 linear layer, compressed"]


def test_fig13_tells_a_gradient_step_from_an_untrained_layer() -> None:
    for model, passes in ((gradient_step(), True), (None, False)):
        with style():
            found = fig13.compute(Laboratory(PLAN, {"lsa-1": [run_of("lsa-1", model)]}), ignore)
        assert set(verdicts(found.claims).values()) == {passes}
        (figure,) = found.figures
        assert len(figure.rows) == 2 * 2 * 40
    assert figure.rows[0]["matrix"] == "W_k^T W_q"
    assert len(figure.rows[0]["weights"].split()) == 40


def scalars_but_for_the_last_layer() -> SequenceModel:
    model = SequenceModel(recipes.get("lsa-6").model)
    for mixer in model.mixers[:5]:
        for weight in mixer.parameters():
            small = torch.randn(weight.shape[0] // 10, weight.shape[1] // 10)
            weight.data = torch.kron(small, torch.eye(10))
    return model


def test_fig9_tells_scalars_from_weights_of_all_kinds() -> None:
    torch.manual_seed(0)
    with style():
        made = run_of("lsa-6", scalars_but_for_the_last_layer(), steps=10)
        found = fig9.compute(Laboratory(PLAN, {"lsa-6": [made]}), ignore)
        untrained = fig9.compute(Laboratory(PLAN, {"lsa-6": [run_of("lsa-6")]}), ignore)
    assert all(verdicts(found.claims).values())
    assert len(found.claims) == 2, "published shares are judged after the published training only"
    (figure,) = found.figures
    assert figure.settings["share of W_k^T W_q"]["layer 1"] == "1.00"
    assert len(figure.rows) == 3 * 2 * 4 * 40
    failed = {name for name, passed in verdicts(untrained.claims).items() if not passed}
    assert failed >= {
        *("fig9-early-layers-are-scalars", "fig9-last-layer-is-not", "fig9-energy-layer-1-4"),
    }
    assert len(untrained.claims) == 5
    assert "test sequences" not in figure.settings, "weights have none"


def test_fig9_does_not_judge_the_last_layer_beside_layers_that_are_no_scalars() -> None:
    energy = torch.tensor([[0.04, 0.04, 0.04, 0.04, 0.04, 0.01]])
    claims = fig9._judge(Laboratory(PLAN, {}), [run_of("lsa-6", steps=10)], energy)
    assert [(claim.value, claim.passed) for claim in claims[1:]] == [(1.0, False)]
    claims = fig9._judge(Laboratory(PLAN, {}), [run_of("lsa-6", steps=10)], 20 * energy)
    assert claims[1].passed
    assert claims[1].value == pytest.approx(0.25)


def test_fig10_has_positions_in_the_first_layer_only() -> None:
    with style():
        found = fig10.compute(Laboratory(PLAN, {"tf-7": [run_of("tf-7")]}), ignore)
    (figure,) = found.figures
    lines = [row for row in figure.rows if row["panel"] == "head 1"]
    widths = {row["matrix"]: len(row["weights"].split()) for row in lines}
    assert list(widths.values()) == [80, 40, 40, 40]
    assert len(lines) == 80 + 3 * 40


@pytest.mark.parametrize("part", [fig9, fig10, fig13], ids=["fig9", "fig10", "fig13"])
def test_pictures_without_their_runs_are_left_out(part) -> None:
    found = part.compute(Laboratory(PLAN, {}), ignore)
    assert (found.figures, found.claims) == ([], [])


def test_colours_are_centred_at_zero_and_shared_within_a_row() -> None:
    def row(*largest: float) -> Row:
        return Row("x", [Picture(x * torch.eye(4), f"{x}") for x in largest], ("a", "b"))

    for scale, wanted in (("row", [2.0, 2.0, 5.0, 5.0]), ("picture", [1.0, 2.0, 0.5, 5.0])):
        with style():
            figure, lines = draw_matrices([row(1.0, -2.0), row(0.5, 5.0)], scale=scale)
        limits = [image.get_clim() for axes in figure.axes for image in axes.images]
        assert limits == [(-x, x) for x in wanted]
        assert len(lines) == 16
        assert lines[4]["weights"] == "-2 -0 -0 -0"


def test_colours_may_leave_out_the_largest_entries() -> None:
    matrix = torch.arange(100.0).reshape(10, 10)
    with style():
        figure, _ = draw_matrices([Row("x", [Picture(-matrix, "y")], ("a",), share=0.9)])
    (limits,) = {image.get_clim() for image in figure.axes[0].images}
    assert limits == pytest.approx((-89.1, 89.1))  # 0.9 of the way from 0 to 99
