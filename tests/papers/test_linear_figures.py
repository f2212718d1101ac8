from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mesaopt.papers.figures import style
from mesaopt.papers.uncovering2023.uncovering import UNCOVERING

from mesaopt import recipes
from mesaopt.analysis import Linearization, linearize
from mesaopt.layers import LinearSelfAttention
from mesaopt.models import SequenceModel
from mesaopt.papers.plan import Plan
from mesaopt.papers.uncovering2023 import fig5, fig19, fig20
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import LINEARISED
from mesaopt.tasks import make_task
from mesaopt.training import Run

PLAN = Plan(what="uncovering2023", scale="smoke", num_sequences=256)


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


def run_of(recipe: str, steps: int | None = None, seed: int = 0) -> Run:
    """A run that nobody trained."""
    config = recipes.get(recipe, seed=seed)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    return Run(Path("nowhere"), config, SequenceModel(config.model, seed=seed), [], 0.0)


def ratios(
    dim: int, *rows: tuple[float, ...], steps: int | None = None, loss: float = 0.2
) -> fig5.Ratios:
    """Ratios as measured, one row per seed, with errors of 1 %."""
    runs = [run_of(f"tf-7-dim-{dim}", steps, seed) for seed in range(len(rows))]
    found = [
        Linearization(
            layers=tuple(range(7)),
            distilled=(),
            ratios=torch.tensor(row, dtype=torch.float64),
            ratio_errors=torch.full((7,), 0.01, dtype=torch.float64),
            unexplained=torch.zeros(7),
            loss=loss,
        )
        for row in rows
    ]
    return fig5.ratios_of(dim, runs, found)


def verdicts(measured: fig5.Ratios) -> dict[str, bool]:
    return {c.id.split("/")[1]: c.passed for c in fig5.judge(Laboratory(PLAN, {}), measured)}


def test_published_ratios_pass_and_layers_that_are_all_alike_fail() -> None:
    for dim, row in LINEARISED.items():
        found = verdicts(ratios(dim, row))
        assert len(found) == 3 + 7
        assert all(found.values())
    alike = verdicts(ratios(10, (1.0,) * 7, steps=5))
    assert set(alike) == {
        f"fig5-dim-10-{what}" for what in ("first-layer", "later-layers", "second-layer")
    }
    assert not any(alike.values())
    bad = verdicts(ratios(10, (2.27, 1.44, 1.18, 1.09, 1.08, 1.05, 1.6)))
    assert [name for name, passed in bad.items() if not passed] == ["fig5-dim-10-layer-7"]


def test_models_that_learned_nothing_are_not_held_against_published_ratios() -> None:
    for dim in LINEARISED:
        zero = fig5.zero_loss(run_of(f"tf-7-dim-{dim}"))
        # First states are uniform on [-1, 1], rotations keep their variance of 1/3; 256 sequences, 5 %.
        assert zero == pytest.approx(dim / 6, rel=0.1)
        assert len(verdicts(ratios(dim, LINEARISED[dim], loss=0.45 * zero))) == 3 + 7
        stuck = verdicts(ratios(dim, (1.0,) * 7, loss=0.55 * zero))
        assert len(stuck) == 3
        assert not any(stuck.values())


def test_distillation_takes_hours_at_most_at_scale_paper() -> None:
    plan = UNCOVERING.plan("paper")
    assert fig5.STEPS["paper"] <= 2000
    one_seed = fig5.seconds(UNCOVERING.plan("paper", seeds=1))
    assert one_seed < fig5.seconds(plan) < 24 * 3600
    assert fig19.seconds(plan) < 3600


def test_errors_count_test_sequences_and_seeds() -> None:
    row = LINEARISED[4]
    alone = ratios(4, row)
    torch.testing.assert_close(alone.errors, torch.full((7,), 0.01, dtype=torch.float64))
    more = tuple(2 * x for x in row)
    both = ratios(4, row, more)
    wanted = (0.01**2 / 2 + torch.tensor([row, more]).double().var(0) / 2).sqrt()
    torch.testing.assert_close(both.errors, wanted)
    torch.testing.assert_close(both.mean, torch.tensor(row).double() * 1.5)


def test_figure_5_draws_what_runs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fig20.DIMENSIONS, "smoke", (4,))
    with style():
        nothing = fig5.compute(Laboratory(PLAN, {}), ignore)
        some = fig5.compute(Laboratory(PLAN, {"tf-7-dim-4": [run_of("tf-7-dim-4", 3)]}), ignore)
    assert nothing.claims == []
    assert {row["panel"] for row in nothing.figures[0].rows} == {"B, loss per dimension"}
    layers = [row["layer"] for row in some.figures[0].rows if row["panel"].startswith("A")]
    assert layers == list(range(1, 8))
    assert [claim.passed for claim in some.claims] == [False] * 3, "nobody trained this"
    settings = some.figures[0].settings
    assert settings["test sequences"] == 256
    assert float(settings["loss, dimension 4"]) > 0.5


def test_baselines_are_measured_once_for_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    measure = fig20.measure
    monkeypatch.setattr(fig20, "measure", lambda *a: calls.append(a) or measure(*a))
    fig20.measured.cache_clear()
    monkeypatch.setitem(fig20.DIMENSIONS, "smoke", (4,))
    with style():
        fig5.compute(Laboratory(PLAN, {}), ignore)
        assert calls == [(4, 0.01, 256)]
        fig20.compute(Laboratory(PLAN, {}), ignore)
    assert sorted(calls) == [(4, noise, 256) for noise in (0.01, 0.1, 0.25, 0.5)]


def test_figure_19_of_untrained_layers_shows_no_likeness() -> None:
    assert fig19.compute(Laboratory(PLAN, {}), ignore).figures == []
    with style():
        results = fig19.compute(Laboratory(PLAN, {"softmax-2": [run_of("softmax-2")]}), ignore)
    (figure,) = results.figures
    assert len(figure.rows) == 2 * 4 * 80
    assert [claim.passed for claim in results.claims] == [False, False]
    assert "test sequences" not in figure.settings, "weights have none"


def with_identities(model: SequenceModel, seed: int) -> None:
    """Give every layer multiples of the identity in each pair of slots that its 40 channels can hold."""
    random = torch.Generator().manual_seed(seed)
    half = torch.eye(20)
    for mixer in model.mixers:
        for weight in (mixer.query.weight, mixer.key.weight, mixer.value.weight):
            weight.data = torch.kron(torch.randn(2, 4, generator=random), half)
        mixer.output.weight.data = torch.kron(torch.randn(4, 2, generator=random), half)


def test_the_same_products_are_alike_whatever_their_factor_and_others_are_not() -> None:
    run = run_of("softmax-2")
    assert isinstance(run.model, SequenceModel)
    with_identities(run.model, 0)
    other = SequenceModel(run.config.model)
    with_identities(other, 1)

    def claims(model: SequenceModel) -> dict[str, bool]:
        twins = []
        for mixer in model.mixers:
            twin = LinearSelfAttention(80, 1, 40)
            twin.load_state_dict(mixer.state_dict())
            twin.query.weight.data *= -3
            twin.output.weight.data /= -3
            twins.append(twin)
        found = Linearization((0, 1), tuple(twins), *[torch.ones(2)] * 3, 1.0)
        twins = fig19.twins_of(run, found)
        judged = fig19.judge(Laboratory(PLAN, {}), [twins])
        if model is run.model:
            torch.testing.assert_close(
                fig19.cosines(twins.softmax, twins.linear), torch.ones(2, 2, dtype=torch.float64)
            )
        return {claim.id.split("/")[1]: claim.passed for claim in judged}

    assert all(claims(run.model).values())
    assert not claims(other)["fig19-weights-are-alike"]


def test_figure_19_judges_all_seeds() -> None:
    runs = [run_of("softmax-2", seed=seed) for seed in (0, 1)]
    with style():
        alone = fig19.compute(Laboratory(PLAN, {"softmax-2": runs[:1]}), ignore)
        both = fig19.compute(Laboratory(PLAN, {"softmax-2": runs}), ignore)
    assert len(both.figures[0].settings["cosine by seed"]) == 2
    for mine, one in zip(both.claims, alone.claims, strict=True):
        assert mine.value != one.value
    assert both.claims[1].low < alone.claims[1].low == 0.1, "widened by what seeds differ"


def test_the_first_layer_reads_no_more_directions_than_its_tokens_have() -> None:
    run = run_of("softmax-2")
    found = linearize(run.model, make_task(run.config.task), steps=1, num_sequences=1)
    roots = fig19.input_roots(run, found)
    # Tokens hold nothing, the current state twice, and the one before it: 40 of 80 directions.
    values = torch.linalg.eigvalsh(roots[0])
    # Rounding in single precision leaves variances of 1e-8 of the largest, or their roots of 1e-4.
    assert (values > 1e-3).sum() == 40
    torch.testing.assert_close(torch.linalg.eigvalsh(roots).amax(-1), torch.ones(2).double())
    assert roots[0, :20].abs().max() < 1e-3, "the empty slot"
