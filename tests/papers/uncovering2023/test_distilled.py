"""Softmax layers made linear in figure 5, and the weights of both in figure 19."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from laboratories import PLAN, a_linearization, compute, run_of

from mesaopt.analysis import Linearization, linearize
from mesaopt.layers import LinearSelfAttention
from mesaopt.models import SequenceModel
from mesaopt.papers.figure import judge
from mesaopt.papers.uncovering2023 import distilled
from mesaopt.papers.uncovering2023.distilled import fig5, fig19, mean_cosine
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import LINEARISED
from mesaopt.papers.uncovering2023.settings import SETTINGS
from mesaopt.recipes.models import DIMENSIONS
from mesaopt.tasks import make_task


def verdicts(
    dim: int, *rows: Sequence[float], steps: int | None = None, loss: float = 0.2
) -> dict[str, bool]:
    """Judge figure 5 by ratios of one dimension."""
    recipe = f"tf-7-dim-{dim}"
    runs = [run_of(recipe, steps=steps, seed=seed) for seed in range(len(rows))]
    lab = Laboratory(PLAN, {recipe: runs})
    value = [a_linearization(row, loss=loss) for row in rows]
    lab.remember(distilled.linearised, recipe, value=value)
    return {claim.name: claim.passed for claim in judge(fig5, lab)}


def test_published_ratios_pass_and_layers_that_are_all_alike_fail() -> None:
    for dim, row in LINEARISED.items():
        claims = verdicts(dim, row)
        assert len(claims) == 5 + 7
        assert all(claims.values())
    alike = verdicts(10, (1.0,) * 7, steps=5)
    assert set(alike) == {
        f"fig5-dim-10-{layers}"
        for layers in (
            "first-layer",
            "first-layer-late",
            "later-layers",
            "later-layers-late",
            "second-layer",
        )
    }
    assert not any(alike.values())
    bad = verdicts(10, (2.27, 1.44, 1.18, 1.09, 1.08, 1.05, 1.6))
    assert [name for name, passed in bad.items() if not passed] == ["fig5-dim-10-layer-7"]


def test_models_that_learned_nothing_are_not_judged_by_published_ratios() -> None:
    for dim in LINEARISED:
        zero = distilled.zero_loss(run_of(f"tf-7-dim-{dim}"))
        # First states are uniform on [-1, 1], rotations keep their variance of 1/3; 256 sequences, 5 %.
        assert zero == pytest.approx(dim / 6, rel=0.1)
        assert len(verdicts(dim, LINEARISED[dim], loss=0.45 * zero)) == 5 + 7
        stuck = verdicts(dim, (1.0,) * 7, loss=0.55 * zero)
        assert len(stuck) == 5
        assert not any(stuck.values())


def test_distillation_takes_hours_at_most_at_scale_paper() -> None:
    assert SETTINGS["paper"].distillation_steps <= 2000
    assert fig5.seconds["small"] < fig5.seconds["paper"] < 24 * 3600
    assert fig19.seconds["paper"] < 3600


def test_errors_count_test_sequences_and_seeds() -> None:
    row = LINEARISED[4]
    alone = distilled.loss_ratios([a_linearization(row)])
    assert [ratio.error for ratio in alone] == pytest.approx([0.01] * 7)
    more = tuple(2 * x for x in row)
    both = distilled.loss_ratios(list(map(a_linearization, (row, more))))
    wanted = (0.01**2 / 2 + torch.tensor([row, more]).double().var(0) / 2).sqrt()
    assert [ratio.error for ratio in both] == pytest.approx(wanted.tolist())
    assert [ratio.value for ratio in both] == pytest.approx([1.5 * x for x in row])


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_late_positions_are_compared_by_themselves(dim: int) -> None:
    """A loss that most of a mean is of, and that nobody can lower, hides what later positions lose."""
    recipe = f"tf-7-dim-{dim}"
    run = run_of(recipe)
    length = run.config.task.length
    found = a_linearization((3.0, 1.0, 1.0))
    early = torch.arange(length) < dim  # fewer pairs than the matrix has columns
    losses = found.losses[:, :, :1].expand(-1, -1, length)
    hidden = replace(
        found,
        losses=torch.where(early, 1000.0, losses),
        model_losses=torch.where(early, 1000.0, 1.0).expand(4, -1),
    )
    lab = Laboratory(PLAN, {recipe: [run]})
    lab.remember(distilled.linearised, recipe, value=[hidden])
    claims = {claim.name.removeprefix(f"fig5-dim-{dim}-"): claim for claim in judge(fig5, lab)}
    assert claims["first-layer-late"].value == pytest.approx(3.0)
    assert (
        f"Dimension {dim}, positions {dim + 1} to {length}:" in claims["first-layer-late"].statement
    )
    assert claims["first-layer"].value < 1.1


@pytest.fixture
def one_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS["smoke"], regression_dimensions=(4,))
    monkeypatch.setitem(SETTINGS, "smoke", settings)


@pytest.mark.usefixtures("one_dimension")
def test_figure_5_shows_regression_without_runs() -> None:
    nothing = compute(fig5, Laboratory(PLAN, {}))
    assert nothing.claims == {}
    assert {row["panel"] for row in nothing.rows} == {"B, loss per dimension"}


@pytest.mark.usefixtures("one_dimension")
def test_figure_5_draws_what_runs_there_are() -> None:
    some = compute(fig5, Laboratory(PLAN, {"tf-7-dim-4": [run_of("tf-7-dim-4", steps=3)]}))
    layers = [row["layer"] for row in some.rows if row["panel"].startswith("A")]
    assert layers == list(range(1, 8))
    assert list(some.verdicts.values()) == [False] * 5, "nobody trained this"
    assert some.settings["test sequences"] == 256
    assert float(some.settings["loss, dimension 4"]) > 0.5


def test_figure_19_of_untrained_layers_shows_no_similarity() -> None:
    assert compute(fig19, Laboratory(PLAN, {})).panels == {}
    untrained = compute(fig19, Laboratory(PLAN, {"softmax-2": [run_of("softmax-2")]}))
    assert len(untrained.rows) == 2 * 4 * 80
    assert list(untrained.verdicts.values()) == [False, False]
    assert "test sequences" not in untrained.settings, "weights have none"


def with_identities(model: SequenceModel, seed: int) -> None:
    """Give every layer multiples of the identity in each pair of slots that its 40 channels can hold."""
    random = torch.Generator().manual_seed(seed)
    half = torch.eye(20)
    for mixer in model.mixers:
        for weight in (mixer.query.weight, mixer.key.weight, mixer.value.weight):
            weight.data = torch.kron(torch.randn(2, 4, generator=random), half)
        mixer.output.weight.data = torch.kron(torch.randn(4, 2, generator=random), half)


def distilled_as(model: SequenceModel) -> Linearization:
    """Linear layers with the weights of a model's, but for factors that leave their products alike."""
    layers = []
    for mixer in model.mixers:
        layer = LinearSelfAttention(80, 1, 40)
        layer.load_state_dict(mixer.state_dict())
        layer.query.weight.data *= -3
        layer.output.weight.data /= -3
        layers.append(layer)
    return a_linearization((1.0, 1.0), distilled=layers, unexplained=(1.0, 1.0))


def test_a_sign_is_free_for_both_products_and_not_for_one() -> None:
    softmax = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    for signs, wanted in (((1, 1), 1.0), ((-1, -1), 1.0), ((1, -1), 0.0), ((-1, 1), 0.0)):
        linear = softmax * torch.tensor(signs, dtype=torch.float64)[:, None, None]
        assert mean_cosine(softmax, linear).item() == pytest.approx(wanted, abs=1e-12)


def test_the_same_products_are_similar_whatever_their_factor_and_others_are_not() -> None:
    run = run_of("softmax-2")
    with_identities(run.sequence_model, 0)
    other = SequenceModel(run.sequence_model.config)
    with_identities(other, 1)

    def judged(linear: Linearization) -> dict[str, bool]:
        lab = Laboratory(PLAN, {"softmax-2": [run]})
        lab.remember(distilled.linearised, "softmax-2", value=[linear])
        return compute(fig19, lab).verdicts

    same = distilled_as(run.sequence_model)
    assert all(judged(same).values())
    pairs = distilled.pair_weights(run, same)
    torch.testing.assert_close(
        distilled.cosines(pairs.softmax, pairs.linear), torch.ones(2, 2, dtype=torch.float64)
    )
    assert not judged(distilled_as(other))["fig19-weights-are-alike"]


def test_figure_19_judges_all_seeds() -> None:
    runs = [run_of("softmax-2", seed=seed) for seed in (0, 1)]
    alone = compute(fig19, Laboratory(PLAN, {"softmax-2": runs[:1]}))
    both = compute(fig19, Laboratory(PLAN, {"softmax-2": runs}))
    assert len(both.settings["cosine by seed"]) == 2
    for name, claim in both.claims.items():
        assert claim.value != alone.claims[name].value
    (low, _), (low_of_one, _) = (one.claims["fig19-own-layer"].limits for one in (both, alone))
    assert low < low_of_one == 0.1, "widened by what seeds differ"


def test_the_first_layer_reads_no_more_directions_than_its_tokens_have() -> None:
    run = run_of("softmax-2")
    layers = linearize(
        run.sequence_model, make_task(run.config.task), steps=1, num_sequences=1
    ).layers
    roots = distilled.input_roots(run, layers)
    # Tokens hold nothing, the current state twice, and the one before it: 40 of 80 directions.
    values = torch.linalg.eigvalsh(roots[0])
    # Rounding in single precision leaves variances of 1e-8 of the largest, or their roots of 1e-4.
    assert (values > 1e-3).sum() == 40
    torch.testing.assert_close(torch.linalg.eigvalsh(roots).amax(-1), torch.ones(2).double())
    assert roots[0, :20].abs().max() < 1e-3, "the empty slot"


def test_a_layer_that_could_not_be_distilled_is_named_next_to_its_ratio() -> None:
    missed = [0.3, 0.2, 0.2, 0.2, 0.2, 0.4, 2.85]
    lab = Laboratory(PLAN, {"tf-7-dim-10": [run_of("tf-7-dim-10")]})
    value = [a_linearization(LINEARISED[10], unexplained=missed, loss=0.2)]
    lab.remember(distilled.linearised, "tf-7-dim-10", value=value)
    bases = {claim.name: claim.basis for claim in judge(fig5, lab)}
    flagged = [name for name, basis in bases.items() if "could not be distilled" in basis]
    assert flagged == ["fig5-dim-10-layer-7"]
    empty = {f"tf-7-dim-{dim}" for dim in (4, 6, 20, 40, 60)}
    for recipe in empty:
        lab.remember(distilled.linearised, recipe, value=[])
    assert fig5.settings(lab)["not distilled, dimension 10"] == "layer 7"
