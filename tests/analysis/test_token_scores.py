"""Losses and accuracies of predictors on tasks on tokens."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mesaopt import cli, recipes
from mesaopt.analysis import (
    Estimate,
    Evaluation,
    InContextLoss,
    TokenScore,
    in_context_loss,
    score_positions,
    token_scores,
)
from mesaopt.commands.evaluation import BASELINES
from mesaopt.commands.tokens import score_rows
from mesaopt.config import LanguageModelConfig, ModelConfig, RunConfig, TextConfig, TrainConfig
from mesaopt.progress import Progress
from mesaopt.report.page import save_figure
from mesaopt.report.token_curves import Panel, draw
from mesaopt.tasks import (
    MAD,
    MQAR,
    Batch,
    ContinuousMQAR,
    Parity,
    RegBench,
    Text,
)
from mesaopt.theory import least_squares_recall, text_n_gram
from mesaopt.training import train


def test_scores_are_means_of_sequences_for_each_setting() -> None:
    task = MQAR(vocabulary=16, length=16, pairs=2, test_on=((16, 2), (24, 4)), examples=None)

    def half_right(batch: Batch) -> torch.Tensor:
        logits = torch.zeros(*batch.targets.shape, 16)
        logits[:, ::2] += 50 * torch.nn.functional.one_hot(batch.targets[:, ::2], 16)
        return logits

    scores = token_scores({"half": half_right}, task, Evaluation(num_sequences=700))["half"]
    assert [score.setting for score in scores] == ["length 16, pairs 2", "length 24, pairs 4"]
    assert [score.num_sequences for score in scores] == [512, 512]
    for score in scores:
        assert score.loss.value == pytest.approx(np.log(16) / 2, rel=1e-5)
        # Of equal logits the first is taken, which is no value.
        assert score.accuracy.value == pytest.approx(0.5)


def test_batches_of_other_widths_are_scored_together() -> None:
    task = MAD(recipes.TASKS["mad-fuzzy-recall"], examples=None)
    evaluation = Evaluation(num_sequences=512)
    widths = {batch.targets.shape[1] for batch in evaluation.batches(task)}
    assert len(widths) == 2
    uniform = {"uniform": lambda batch: torch.zeros(*batch.targets.shape, 16)}
    losses = in_context_loss(uniform, task, evaluation)["uniform"]
    assert losses.losses.shape == (512, max(widths))
    assert losses.mean == pytest.approx(np.log(16))
    (score,) = token_scores(uniform, task, evaluation)["uniform"]
    assert score.loss.value == pytest.approx(np.log(16))


def test_settings_stand_for_their_task() -> None:
    uniform = {"uniform": lambda batch: torch.zeros(*batch.targets.shape, 3)}
    few = Evaluation(num_sequences=1)
    assert token_scores(uniform, Parity().config, few) == token_scores(uniform, Parity(), few)


def test_progress_names_what_is_computed() -> None:
    seen: list[Progress] = []
    uniform = {"uniform": lambda batch: torch.zeros(*batch.targets.shape, 3)}
    token_scores(uniform, Parity(), Evaluation(num_sequences=512, progress=seen.append))
    assert seen == [Progress(1, 2, "scores on tokens"), Progress(2, 2, "scores on tokens")]


def test_regbench_is_scored_by_letters_that_may_come() -> None:
    task = RegBench(length=64, examples=None)

    def truth(batch: Batch) -> torch.Tensor:
        return batch.legal(20).float().clamp(min=1e-20).log()

    (score,) = token_scores({"truth": truth}, task, Evaluation(num_sequences=1))["truth"]
    assert score.accuracy.value == pytest.approx(1)
    assert score.more["total_variation"].value == pytest.approx(0, abs=1e-6)
    assert 0.3 < score.loss.value < 0.8  # 1 to 3 letters may come


def test_continuous_recall_is_scored_by_the_nearest_value() -> None:
    task = ContinuousMQAR(dim=16, pairs=8, codes=64, test_on=(4, 32))
    predict = {"least squares": lambda batch: least_squares_recall(batch.tokens)}
    few, many = token_scores(predict, task, Evaluation(num_sequences=512))["least squares"]
    assert (few.setting, many.setting) == ("pairs 4", "pairs 32")
    assert few.accuracy.value == 1
    assert many.accuracy.value < 1


def test_squared_errors_are_not_called_nats() -> None:
    task = ContinuousMQAR(dim=16, pairs=8, codes=64, test_on=(4,), loss="squared_error")
    zero = {"zero": lambda batch: torch.zeros_like(batch.targets)}
    scores = token_scores(zero, task, Evaluation(num_sequences=1))
    assert scores["zero"][0].loss.value == pytest.approx(0.5)  # values have norm 1
    for shown in (str(scores["zero"][0]), *score_rows(scores)[0]):
        assert "nats" not in shown


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of two letters: b follows a, and a follows b or a with probability a half each."""
    random = np.random.default_rng(0)
    words = ["ab" if random.random() < 0.5 else "aab" for _ in range(20_000)]
    (tmp_path / "text.txt").write_text("".join(words))
    return tmp_path / "text.txt"


def test_n_grams_of_text_are_frequencies(text: Path) -> None:
    task = Text(corpus=str(text), length=64)
    batch = task.sample(8, seed=0, split="test")
    a, b = ord("a"), ord("b")
    one, two, three = (text_n_gram(task, order=n)(batch).exp() for n in (1, 2, 3))
    # Three a and two b in five letters; b behind a in two of three; after "ab" a, after "aa" b.
    torch.testing.assert_close(one[0, 0, [a, b]], torch.tensor([0.6, 0.4]), atol=0.01, rtol=0)
    behind_a, behind_b = batch.tokens[0].tolist().index(a), batch.tokens[0].tolist().index(b)
    for place, wanted in ((behind_a, [1 / 3, 2 / 3]), (behind_b, [1.0, 0.0])):
        found = two[0, place, [a, b]]
        torch.testing.assert_close(found, torch.tensor(wanted), atol=0.01, rtol=0)
    tokens = bytes(batch.tokens[0].tolist())
    place = tokens.index(b"aa") + 1
    torch.testing.assert_close(three[0, place, b], torch.tensor(1.0), atol=0.01, rtol=0)
    place = tokens.index(b"ba") + 1
    torch.testing.assert_close(three[0, place, a], torch.tensor(0.5), atol=0.02, rtol=0)
    for table in (one, two, three):
        torch.testing.assert_close(table.sum(-1), torch.ones(8, 64))
    with pytest.raises(ValueError, match="order=4: must be 1 or greater"):
        text_n_gram(task, order=4)
    for strength in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"strength={strength}: must be greater than 0"):
            text_n_gram(task, strength=strength)


TINY = LanguageModelConfig(width=8, mixers=("linear_attention",), num_heads=1)


@pytest.mark.parametrize("name", ["text-stdlib", "mqar-64-4", "regbench-small", "mqar-continuous"])
def test_a_run_is_trained_and_evaluated_by_the_commands(
    name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(
        embed_dim=8, token_dim=128, output_dim=64, readout="linear", mixers=("linear_attention",)
    )
    config = recipes.TASKS[name]
    if name == "mqar-continuous":
        config = replace(config, examples=100, train_also=(), test_on=())
    elif isinstance(config, TextConfig):
        config = replace(config, corpus=str(text), length=32)
    elif name == "mqar-64-4":
        config = replace(config, examples=100, vocabulary=32)
    else:
        config = replace(config, examples=20, length=64)
    if name != "mqar-continuous":
        model = replace(TINY, vocabulary=config.vocabulary)
    training = TrainConfig(steps=4, batch_size=8, evaluate_every=2, evaluation_sequences=8)
    run = train(
        RunConfig(recipe="tiny", task=config, model=model, train=training), tmp_path / "run"
    )
    assert run.metrics[-1]["step"] == 4
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(tmp_path / "run"), "--sequences", "1", "--json"])
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    (score,) = printed["tiny"]
    assert 0 <= score["accuracy"] < 0.6
    assert score["sequences"] == 256
    baselines = {
        "text-stdlib": {"1-gram", "2-gram", "3-gram"},
        "mqar-64-4": set(),
        "regbench-small": {"2-gram in context", "3-gram in context"},
        "mqar-continuous": {"least squares"},
    }
    assert printed.keys() == {"tiny", "guess"} | baselines[name]
    assert {"guess"} | baselines[name] < {*BASELINES}
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(tmp_path / "run"), "--sequences", "1"])
    assert end.value.code == 0
    assert "accuracy" in capsys.readouterr().out
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["evaluate", str(tmp_path / "run"), "--sequences", "1", "--csv", "--out", str(page)]
        )
    assert end.value.code == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {line["predictor"] for line in lines} == {"tiny"} | baselines[name]
    own = {(line["quantity"], line["position"]): line for line in lines if line["kind"] == "run"}
    assert float(own["accuracy", ""]["value"]) == score["accuracy"]
    assert float(own["loss", ""]["standard_error"]) == score["loss_error"]
    positions = len([position for _, position in own if position])
    assert positions == (32 if name == "text-stdlib" else 0)
    if positions:
        assert float(own["loss", "32"]["value"]) == score["by_position"][-1]
        assert float(own["loss", "32"]["standard_error"]) == score["by_position_error"][-1]
    html = page.read_text()
    assert html.count("<svg") == 1
    assert ("position in the text" in html) == bool(positions)
    assert "bits a byte" in html or name != "text-stdlib"


def test_text_has_perplexity_bits_a_byte_and_an_in_context_score(text: Path) -> None:
    task = Text(corpus=str(text), length=64)

    def learns(batch: Batch) -> torch.Tensor:
        """Give the right byte a logit that grows with the position."""
        right = torch.nn.functional.one_hot(batch.targets, 256).float()
        return right * torch.arange(64.0).unsqueeze(-1) / 8

    evaluation = Evaluation(num_sequences=256)
    (score,) = token_scores({"learns": learns}, task, evaluation)["learns"]
    assert score_positions(64) == (12, 60)
    losses = in_context_loss(learns, task, evaluation)
    assert score.more["perplexity"].value == pytest.approx(np.exp(losses.mean), rel=1e-5)
    assert score.more["bits_per_byte"].value == pytest.approx(losses.mean / np.log(2), rel=1e-5)
    wanted = losses.losses[:, 56:64].mean() - losses.losses[:, 8:16].mean()
    assert score.more["in_context_score"].value == pytest.approx(wanted.item(), rel=1e-5)
    assert score.curve is not None
    assert [one.value for one in score.curve] == pytest.approx(losses.curve.tolist())
    noisy = {"guess": text_n_gram(task, order=1)}
    (score,) = token_scores(noisy, task, evaluation)["guess"]
    relative = score.more["perplexity"].error / score.more["perplexity"].value
    assert relative == pytest.approx(score.loss.error, rel=1e-6)


def test_runs_of_several_tasks_on_tokens_are_drawn_together(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)

    def score(setting: str, curve: bool) -> TokenScore:
        values = Estimate.of(torch.rand(8, generator=random))
        return TokenScore(setting, 8, values, values, {}, [values] * 5 if curve else None)

    panels = [
        Panel("text", {"a $ run": [score("", True)], "1-gram": [score("", True)]}),
        Panel("mqar", {"_b": [score("pairs 4", False), score("pairs 8", False)]}, guess=0.25),
    ]
    save_figure(draw(panels), tmp_path / "all.svg")
    drawn = (tmp_path / "all.svg").read_text()
    for word in ("a $ run", "_b, pairs 8", "loss in nats", "accuracy", "mqar"):
        assert word in drawn


@pytest.mark.parametrize("count", [1, 256, 600])
def test_every_setting_is_scored(count: int) -> None:
    task = ContinuousMQAR(dim=4, pairs=3, test_on=(2, 3, 4))
    zero = {"zero": lambda batch: torch.zeros_like(batch.targets)}
    scores = token_scores(zero, task, Evaluation(num_sequences=count))["zero"]
    assert [score.setting for score in scores] == ["pairs 2", "pairs 3", "pairs 4"]


def test_text_that_is_shown_again_does_not_shrink_the_errors(text: Path) -> None:
    task = Text(corpus=str(text), length=64)
    predictors = {"guess": text_n_gram(task, order=1)}
    few, many = (
        token_scores(predictors, task, Evaluation(num_sequences=count))["guess"][0]
        for count in (256, 2560)
    )
    assert task.stretches("test") < 100
    assert many.loss.error == pytest.approx(few.loss.error, rel=0.3)
    single = in_context_loss(predictors["guess"], task, Evaluation(num_sequences=256))
    different = InContextLoss(single.losses)  # as if all were
    again = 256 / task.stretches("test")
    assert few.loss.error == pytest.approx(different.mean_error * again**0.5, rel=1e-4)
    assert few.curve is not None
    wanted = (different.curve_error * again**0.5).tolist()
    assert [one.error for one in few.curve] == pytest.approx(wanted, rel=1e-4)
    assert single.mean_error == pytest.approx(few.loss.error, rel=1e-4)
    assert single.curve_error.tolist() == pytest.approx(wanted, rel=1e-4)
    assert [one.error for one in single.at_positions] == pytest.approx(wanted, rel=1e-4)


def test_differences_on_text_count_a_stretch_once(text: Path) -> None:
    task = Text(corpus=str(text), length=64)
    predictors = {f"{n}": text_n_gram(task, order=n) for n in (1, 2)}
    losses = in_context_loss(predictors, task, Evaluation(num_sequences=2560))
    difference = losses["2"] - losses["1"]
    again = 2560 / task.stretches("test")
    plain = InContextLoss(losses["2"].losses - losses["1"].losses)
    assert difference.mean_error == pytest.approx(plain.mean_error * again**0.5, rel=1e-6)
