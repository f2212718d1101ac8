"""Figure 4: losses of linear layers, compressed and interpolated models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laboratories import PLAN, Computed, compute, run_of, save_run

from mesaopt import recipes
from mesaopt.analysis import InContextLoss
from mesaopt.config import RunConfig
from mesaopt.models import SequenceModel
from mesaopt.papers.uncovering2023.compression import (
    CompressedRun,
    compressed_runs,
    loss_ratio,
)
from mesaopt.papers.uncovering2023.laboratory import GRADIENT_STEP, Laboratory, compare
from mesaopt.papers.uncovering2023.linear_layers import fig4
from mesaopt.papers.uncovering2023.published import INTERPOLATED_BY_STEP, RELEASED_COMPRESSED
from mesaopt.theory import proposition_1
from mesaopt.training import Run, train


def gradient_step(step_size: float = 0.0334, *, clip: bool = True) -> SequenceModel:
    """The gradient step of Proposition 1, in a model that clips its activations or not."""
    config = recipes.get("lsa-1").sequence_model
    model = SequenceModel(config if clip else replace(config, activation_clip=None))
    model.load_state_dict(proposition_1(10, step_size=step_size, num_heads=2, head_dim=20))
    return model


def folder_of(path: Path, models: dict[int, SequenceModel]) -> Run:
    """A run of lsa-1 whose checkpoints were set by hand."""
    config = recipes.get("lsa-1")
    config = replace(
        config, train=replace(config.train, steps=max(models), evaluation_sequences=256)
    )
    return save_run(path, config, models)


@pytest.fixture(scope="module")
def linear() -> Laboratory:
    """The hand-built gradient step in the place of a trained layer, and an untrained one."""
    step = run_of("lsa-1", gradient_step(0.032, clip=False))
    return Laboratory(PLAN, {"lsa-1": [step], "lsa-2": [run_of("lsa-2", steps=3)]})


def of_compression(computed: Computed) -> dict[str, bool]:
    names = ("fig4-compressed", "fig4-interpolated")
    return {n: passed for n, passed in computed.verdicts.items() if n.startswith(names)}


def test_a_gradient_step_in_place_of_the_layer_passes_and_an_untrained_layer_fails(
    linear: Laboratory,
) -> None:
    figure = compute(fig4, linear)
    assert figure.verdicts["fig4-lsa-1-is-one-step"]
    assert figure.verdicts["linear-lsa-1-mean"]
    assert not figure.verdicts["fig4-two-layers-beat-one"]
    assert "linear-lsa-2-mean" not in figure.claims, "trained for 3 steps, judged as if for 5000"
    assert "fig4-depth-helps" not in figure.claims, "there are no four layers"
    assert {row["predictor"] for row in figure.rows} >= {"lsa-1", "lsa-2", GRADIENT_STEP}


def test_losses_are_averaged_over_seeds_sequence_by_sequence() -> None:
    runs = {"lsa-1": [run_of("lsa-1", gradient_step(0.032, clip=False)), run_of("lsa-1")]}
    comparison = compare(Laboratory(PLAN, runs), "linear")
    a, b = comparison.seed_losses["lsa-1"]
    torch.testing.assert_close(comparison.losses["lsa-1"].losses, (a.losses + b.losses) / 2)
    assert a.mean < b.mean


def test_the_network_is_scored_on_the_test_sequences_of_its_training(
    tmp_path: Path, short_config: RunConfig
) -> None:
    length = replace(short_config.train, evaluation_sequences=256)
    run = train(replace(short_config, train=length), tmp_path / "run")
    (measured,) = compressed_runs(Laboratory(PLAN, {"lsa-1": [run]}), "lsa-1")
    assert (measured.start, measured.extracted, measured.end) == (0, 8, 12)
    assert list(measured.interpolated) == [0, 4, 8, 12]
    logged = {line["step"]: line["test_loss"] for line in run.metrics}
    for step, loss in measured.network.items():
        assert loss.mean == pytest.approx(logged[step], rel=1e-5)


def test_a_gradient_step_meets_its_scalars_and_starts_as_low_as_published(tmp_path: Path) -> None:
    untrained = SequenceModel(recipes.get("lsa-1").sequence_model)
    run = folder_of(tmp_path / "run", {0: untrained, 700: gradient_step(), 1000: gradient_step()})
    lab = Laboratory(PLAN, {"lsa-1": [run]})
    (measured,) = compressed_runs(lab, "lsa-1")
    assert measured.extracted == 700
    torch.testing.assert_close(
        measured.compressed[700].losses, measured.network[1000].losses, rtol=1e-4, atol=1e-4
    )
    assert of_compression(compute(fig4, lab)) == {
        "fig4-compressed-one": True,
        "fig4-interpolated-one-start": True,
        "fig4-interpolated-one-end": True,
    }
    # Halves of both products are a quarter of a gradient step, whatever the training was.
    ratio = measured.interpolated[0].mean / measured.network[0].mean
    assert ratio == pytest.approx(INTERPOLATED_BY_STEP["lsa-1"][0] / 1.6741, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "mixed"),
    [
        ((0, 1700, 2900, 4600, 15000), {0, 1700, 2900, 4600, 15000}),  # as the zoo keeps them
        (range(0, 3001, 100), {*range(0, 1001, 100), 1500, 2000, 2500, 3000}),
        (range(0, 3031, 101), {*range(0, 1001, 101), 3030}),
    ],
)
def test_all_checkpoints_are_mixed_where_there_are_few(
    tmp_path: Path, steps: Sequence[int], mixed: set[int]
) -> None:
    run = folder_of(tmp_path / "run", dict.fromkeys(steps, gradient_step()))
    (measured,) = compressed_runs(Laboratory(PLAN, {"lsa-1": [run]}), "lsa-1")
    assert {*measured.interpolated} == mixed


def test_runs_without_checkpoints_are_left_out_and_untrained_ones_fail(tmp_path: Path) -> None:
    assert compressed_runs(Laboratory(PLAN, {"lsa-1": [run_of("lsa-1")]}), "lsa-1") == []
    untrained = SequenceModel(recipes.get("lsa-1").sequence_model)
    lab = Laboratory(PLAN, {"lsa-1": [folder_of(tmp_path / "run", {0: untrained, 2: untrained})]})
    assert of_compression(compute(fig4, lab)) == {"fig4-interpolated-one-start": False}
    late = folder_of(tmp_path / "late", {2: untrained})
    assert of_compression(compute(fig4, Laboratory(PLAN, {"lsa-1": [late]}))) == {}, "no beginning"


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


def computed(linear: Laboratory, *measured: CompressedRun) -> Computed:
    """Figure 4 with these numbers, of runs that say that they were trained as published."""
    runs = {m.recipe: [run_of(m.recipe)] for m in measured}
    lab = Laboratory(replace(PLAN, scale="paper"), runs)
    lab.remember(compare, "linear", value=compare(linear, "linear"))
    for recipe in fig4.recipes:
        lab.remember(compressed_runs, recipe, value=[m for m in measured if m.recipe == recipe])
    return compute(fig4, lab)


def judged(linear: Laboratory, *measured: CompressedRun) -> dict[str, bool]:
    return of_compression(computed(linear, *measured))


def test_networks_that_learned_nothing_are_not_judged_by_what_compression_loses(
    linear: Laboratory,
) -> None:
    one = measured_as("lsa-1", network=1.3, scalars=1.3, start=1.6, halfway=1.3)
    six = measured_as("lsa-6-key-40", network=1.674, scalars=1.674, start=1.674, halfway=1.674)
    assert judged(linear, one, six) == {
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
    assert set(judged(linear, diverged)) == {"fig4-interpolated-one-start"}


def test_published_numbers_pass_and_numbers_far_from_them_fail(linear: Laboratory) -> None:
    one = measured_as("lsa-1", network=0.8924, scalars=0.8944, start=1.330, halfway=0.8921)
    six = measured_as("lsa-6-key-40", network=0.26, scalars=0.25, start=0.38, halfway=0.26)
    assert all(judged(linear, one, six).values())
    assert len(judged(linear, one, six)) == 7
    one = measured_as("lsa-1", network=0.8924, scalars=0.90, start=1.4, halfway=0.8981)
    six = measured_as("lsa-6-key-40", network=0.26, scalars=0.29, start=1.3, halfway=0.29)
    assert not any(judged(linear, one, six).values())


def test_what_compression_loses_late_in_the_context_counts_by_itself(linear: Laboratory) -> None:
    six = measured_as("lsa-6-key-40", network=0.26, scalars=0.26, start=0.38, halfway=0.26)
    worse = losses(0.26).losses.clone()
    worse[:, :10] -= 0.1
    worse[:, 10:] *= 1.1
    hidden = replace(six, compressed={one: InContextLoss(worse) for one in six.compressed})
    verdicts = judged(linear, hidden)
    assert verdicts["fig4-compressed-six"]
    assert not verdicts["fig4-compressed-six-late"]


def test_long_training_is_judged_by_what_compression_loses(linear: Laboratory) -> None:
    def deep(recipe: str, factor: float) -> CompressedRun:
        network, scalars = RELEASED_COMPRESSED[recipe]
        scalars = network + factor * (scalars - network)
        return measured_as(recipe, network=network, scalars=scalars, start=0.4, halfway=0.3)

    assert judged(linear, deep("lsa-4", 1.0), deep("lsa-6", 1.0)) == {
        "fig4-compressed-lsa-4-long": True,
        "fig4-compressed-lsa-6-long": True,
    }
    assert not any(judged(linear, deep("lsa-4", 0.1), deep("lsa-6", 0.1)).values())


def test_seeds_widen_a_ratio_only_as_far_as_their_ratios_differ() -> None:
    pairs = [(losses(0.9 * x), losses(x)) for x in (0.8, 1.0, 1.2)]
    assert loss_ratio(pairs).error == pytest.approx(0, abs=1e-6)
    pairs = [(losses(x), losses(1.0)) for x in (0.8, 1.0, 1.2)]
    assert loss_ratio(pairs).error == pytest.approx(0.2 / 3**0.5, rel=0.01)


def test_compressed_and_interpolated_models_are_in_the_table(linear: Laboratory) -> None:
    one = measured_as("lsa-1", network=0.89, scalars=0.89, start=1.33, halfway=0.89)
    deep = measured_as("lsa-4", network=0.2, scalars=0.3, start=0.4, halfway=0.3)
    names = {row["predictor"] for row in computed(linear, one, replace(one, seed=1), deep).rows}
    assert {"lsa-1 interpolated, seed 1", "lsa-1 compressed, seed 0"} < names
    assert "lsa-4 compressed at the end, seed 0" in names
    assert "lsa-4 interpolated, seed 0" not in names, "the authors mix one and six layers"
