"""The study of language models and recall: its figures and claims, on models that learned nothing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import Here
from laboratories import Computed, compute
from torch import Tensor

from mesaopt.analysis import Evaluation, token_scores
from mesaopt.config import OwnModelConfig, RunConfig, to_dict
from mesaopt.models import make_model
from mesaopt.papers.figure import Figure, judge
from mesaopt.papers.language import laboratory
from mesaopt.papers.language.faults import ALL, ALL_BUT, FAULTS, RATE, WORKING
from mesaopt.papers.language.item import STUDY
from mesaopt.papers.language.laboratory import (
    MIXERS,
    Laboratory,
    Outcome,
    Result,
    mixer_settings,
    mixers,
    result,
    right_answers,
)
from mesaopt.papers.language.settings import SETTINGS, next_rates
from mesaopt.papers.trainings import Trainer
from mesaopt.progress import OnProgress
from mesaopt.tasks import make_task
from mesaopt.training import Run, load_run

PLAN = STUDY.plans["smoke"]
VECTORS = SETTINGS["smoke"].comparisons["continuous"]
CONTINUOUS = mixer_settings(VECTORS, "own", "mesa")(1e-3, 0)
NEED_NO_TRAINING = {
    "mqar-mesa-beats-gated-delta",
    "regbench-mesa-as-softmax",
    "parity-mesa-unsolved",
    "text-mesa-falls-behind",
    "text-mesa-as-gated-delta",
    "fig26-mesa-score-as-softmax",
    "fig27-softmax-beats-mesa-2",
    "fig27-softmax-beats-mesa-4",
    "fig27-score-order-2",
    "fig27-score-order-4",
}
"""Claims of equality or of failure, which hold among models that know nothing, and differences smaller
than the noise of a few sequences."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A laboratory whose models make two steps, and those on text none."""
    configs = [training.configs[0] for training in PLAN.trainings]
    runs = {c.recipe: [Run(Path("nowhere"), c, make_model(c.model), [], 0.0)] for c in configs}
    lab = Laboratory(PLAN, runs)
    lab.folder, lab.device = tmp_path_factory.mktemp("runs"), "cpu"
    return lab


@pytest.fixture(scope="module")
def results(lab: Laboratory) -> dict[str, Computed]:
    """All figures."""
    return {figure.name: compute(figure, lab) for figure in STUDY.figures}


@pytest.mark.parametrize("figure", STUDY.figures, ids=lambda figure: figure.name)
def test_figures_of_no_recipes_say_that_they_train(figure: Figure) -> None:
    assert figure.trains == (not figure.recipes)


def test_every_figure_has_rows_and_settings(results: dict[str, Computed]) -> None:
    for one in results.values():
        assert len(one.rows) >= 8


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (
            "mqar",
            "A: 2 pairs in 16 tokens, 64 different tokens. B: 2 pairs in 16 tokens, 64 different",
        ),
        ("faults", "recall of 2 pairs in 16 tokens, 64 different tokens"),
        ("continuous", "Trained on 4 pairs, with keys of 8 dimensions"),
    ],
)
def test_captions_have_the_sizes_of_the_scale(lab: Laboratory, name: str, sizes: str) -> None:
    caption = next(figure for figure in STUDY.figures if figure.name == name).caption
    assert callable(caption)
    assert sizes in caption(lab)


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_recall_of_few_pairs_is_as_published(scale: Literal["small", "paper"]) -> None:
    caption = next(figure for figure in STUDY.figures if figure.name == "mqar").caption
    assert callable(caption)
    words = caption(Laboratory(STUDY.plans[scale], {}))
    assert "A: 4 pairs in 64 tokens, 8192 different tokens, as published" in words


def test_claims_about_trained_models_fail_for_models_that_learned_nothing(
    results: dict[str, Computed],
) -> None:
    claims = {name: claim for one in results.values() for name, claim in one.claims.items()}
    for name, claim in claims.items():
        assert claim.basis
        assert claim.limits != (None, None)
        assert name in NEED_NO_TRAINING or not claim.passed, name
    assert claims.keys() >= NEED_NO_TRAINING


def test_claims_about_text_wait_for_models() -> None:
    lab = Laboratory(PLAN, {})
    for name in ("fig26", "fig27", "fig28"):
        figure = next(figure for figure in STUDY.figures if figure.name == name)
        assert compute(figure, lab).claims == {}
        assert all(claim.recipes for claim in judge(figure, lab, waiting=True))


def test_the_rate_with_the_least_validation_loss_is_taken(results: dict[str, Computed]) -> None:
    rows = results["mqar"].panels["mixers"].rows
    assert {row["method"] for row in rows} == set(MIXERS)
    assert {row["learning_rate"] for row in rows} <= set(
        SETTINGS["smoke"].comparisons["mqar"].rates
    )


@pytest.mark.parametrize("best", range(7))
def test_rates_are_tried_until_the_best_one_lies_between_two_that_are_worse(
    best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, trained = tuple(10.0**i for i in range(7)), list[tuple[float, int]]()
    lab = Laboratory(PLAN.with_seeds(3), {})

    def train(config: RunConfig, _: OnProgress) -> RunConfig:
        trained.append((config.train.learning_rate, config.seed))
        return config

    def score(config: RunConfig, *_: object) -> Outcome:
        far = abs(math.log10(config.train.learning_rate) - best)
        return Outcome(validation=far, scores=torch.zeros(1, 2), parameters=1, seconds=0.0)

    monkeypatch.setattr(lab, "train", train)
    monkeypatch.setattr(laboratory, "scored", score)
    prepare = mixer_settings(VECTORS, "x", "mesa")
    (found,) = lab.compare(VECTORS, {"x": prepare}, right_answers, rates).values()
    assert found.rate == rates[best]
    assert [seed for rate, seed in trained if rate == found.rate] == [0, 1, 2]
    assert {*rates[max(best - 1, 0) : best + 2]} <= found.validation.keys()
    assert sorted(found.validation) == sorted(rate for rate, seed in trained if seed == 0)
    assert len(found.validation) <= 5
    assert all(rate == found.rate for rate, seed in trained if seed)


def test_a_training_that_diverges_sends_the_search_to_smaller_rates() -> None:
    assert next_rates((0.1, 1.0, 10.0, 100.0), {1.0: math.inf, 10.0: math.inf}) == [0.1]
    assert next_rates((0.1, 1.0), {0.1: math.inf, 1.0: math.inf}) == []


def test_regbench_has_the_share_of_letters_and_the_distance_of_the_same_runs(
    lab: Laboratory, results: dict[str, Computed]
) -> None:
    panels = results["regbench"].panels
    assert list(panels) == ["regbench", "distance"]
    letters, distances = panels["regbench"].rows, panels["distance"].rows
    comparison, evaluation = lab.settings.comparisons["regbench"], Evaluation(num_sequences=256)
    for letter, distance in zip(letters, distances, strict=True):
        rate = letter["learning_rate"]
        assert (letter["method"], rate) == (distance["method"], distance["learning_rate"])
        if letter["method"] not in ("softmax", "mesanet"):
            continue
        run = load_run(lab.folder / f"regbench-{letter['method']}-{rate:g}-seed{letter['seed']}")
        assert comparison.sequences <= 256
        (score,) = token_scores({"": run.model}, make_task(comparison.task), evaluation)[""]
        assert score.accuracy.value == pytest.approx(letter["accuracy"], abs=0.1)
        measured = score.more["total_variation"].value
        assert measured == pytest.approx(distance["total_variation"], abs=0.05)
        assert 0.5 < distance["total_variation"] < 1  # it has learned nothing
    for rows, what, better in ((letters, "accuracy", 1), (distances, "total_variation", -1)):
        untrained = {row["method"]: row[what] for row in rows if row["learning_rate"] is None}
        assert list(untrained) == ["3-gram", "Baum-Welch"]
        trained = max(better * row[what] for row in rows if row["learning_rate"] is not None)
        assert all(better * value > trained for value in untrained.values())


def test_signed_gates_are_for_mixers_that_forget(results: dict[str, Computed]) -> None:
    panels = results["parity"].panels
    assert {row["method"] for row in panels["parity"].rows} == set(MIXERS)
    signed = {row["method"] for row in panels["parity-signed"].rows}
    assert signed == {"gated-linear", "gated-delta", "mesanet"}


def test_compression_has_an_auto_encoder_with_the_layers_of_the_other_tasks() -> None:
    comparisons = SETTINGS["small"].comparisons
    recall, compression = comparisons["mad-recall"].model, comparisons["mad-compression"].model
    mine, theirs = to_dict(compression), to_dict(recall)
    assert {name for name in mine if mine[name] != theirs[name]} == {"kind", "initial_std"}


def test_faults_are_all_there_and_have_a_claim_each(results: dict[str, Computed]) -> None:
    panels, claims = results["faults"].panels, results["faults"].claims
    rows, without = panels["faults"].rows, panels["all-but-one"].rows
    assert [row["method"] for row in rows] == [WORKING, *FAULTS, RATE, ALL]
    assert [row["method"] for row in without] == [ALL, *ALL_BUT]
    assert len(claims) == len(rows) + len(ALL_BUT)
    assert len({row["parameters"] for row in (*rows, *without)}) == 1
    together = next(row for row in rows if row["method"] == ALL)
    assert without[0] == together


def test_the_rate_of_a_training_that_diverged_is_not_taken() -> None:
    def outcome(validation: float, scores: Tensor | None) -> Outcome:
        return Outcome(validation=validation, scores=scores, parameters=1, seconds=0.0)

    good, lost = outcome(1.0, torch.ones(1, 4)), outcome(math.inf, None)
    found = Result(rate=0.1, validation={0.1: 1.0, 1.0: math.inf}, outcomes=[good, lost])
    assert found.score().value == 0.5
    assert math.isnan(replace(found, missing=math.nan).score().value)


def test_methods_are_compared_where_every_training_of_one_diverged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab, given = Laboratory(PLAN.with_seeds(2), {}), torch.rand(5, 8)

    def score(config: RunConfig, *_: object) -> Outcome:
        scores = None if config.recipe.startswith("lost") else given + config.seed
        return Outcome(validation=1.0, scores=scores, parameters=1, seconds=0.0)

    monkeypatch.setattr(lab, "train", lambda config, _: config)
    monkeypatch.setattr(laboratory, "scored", score)
    methods = {name: mixer_settings(VECTORS, name, "mesa") for name in ("lost", "found")}
    found, lost = (lab.compare(VECTORS, methods, right_answers)[name] for name in ("found", "lost"))
    assert lost.scores.shape == (2, 5, 8)
    for difficulty in range(5):
        expected = found.score(difficulty)
        for other in (lost, replace(lost, shape=(5, 2))):
            less = found.less(other, difficulty)
            assert less.value == pytest.approx(expected.value, rel=1e-6)
            assert less.error == pytest.approx(expected.error, rel=1e-6)


def test_runs_are_loaded_and_not_trained_again(
    lab: Laboratory, results: dict[str, Computed]
) -> None:
    assert lab.folder is not None
    before = {path: path.stat().st_mtime_ns for path in Path(lab.folder).rglob("DONE")}
    again = Laboratory(PLAN, {})
    again.folder, again.device = lab.folder, "cpu"
    figure = next(figure for figure in STUDY.figures if figure.name == "continuous")
    assert compute(figure, again).rows == results["continuous"].rows
    assert before == {path: path.stat().st_mtime_ns for path in Path(lab.folder).rglob("DONE")}


@pytest.mark.parametrize(("name", "more"), [("mqar", 0.01), ("continuous", 0.1)])
def test_mixers_have_equal_parameters_up_to_gates_and_convolutions(name: str, more: float) -> None:
    comparison = SETTINGS["small"].comparisons[name]
    counts = [
        sum(p.numel() for p in make_model(comparison.with_mixer(mixer)).parameters())
        for mixer in MIXERS.values()
    ]
    assert max(counts) <= (1 + more) * min(counts)


def test_an_engine_trains_the_runs_of_a_comparison_at_once(tmp_path: Path) -> None:
    engine, rounds = Here(), list[int]()
    lab, trainer = Laboratory(PLAN.with_seeds(2), {}), Trainer(tmp_path, "cpu", engine)
    own = replace(CONTINUOUS, model=OwnModelConfig(name="Net", weights={"w": "float32 [1]"}))

    def train_ahead(configs: Sequence[RunConfig]) -> None:
        rounds.append(len(configs))
        trainer.train_ahead([*configs, own], lambda _: None)

    lab.folder, lab.device, lab.train_ahead = trainer.folder, "cpu", train_ahead
    found = mixers(lab, "continuous")
    # A learning rate of the first seed, and then the second seed.
    assert rounds == [len(MIXERS)] * 2
    assert len(engine.given) == 2 * len(MIXERS)
    assert result(lab, "continuous", "mesa") is found["mesa"]
    alone = Laboratory(lab.plan, {})
    alone.folder, alone.device = tmp_path / "alone", "cpu"
    assert torch.equal(result(alone, "continuous", "mesa").scores, found["mesa"].scores)
