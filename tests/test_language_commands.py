"""Language models on the command line: train, evaluate, generate, and inputs that are refused."""

import html as html_module
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import exit_status

from mesaopt import recipes
from mesaopt.analysis import Evaluation, in_context_loss, language_results
from mesaopt.config import CopyingConfig, LanguageModelConfig, RunConfig, TextConfig, TrainConfig
from mesaopt.corpus import load_corpus
from mesaopt.errors import ConfigError
from mesaopt.models import LanguageModel
from mesaopt.progress import Progress
from mesaopt.tasks import make_task
from mesaopt.training import Run, load_run, train, train_seeds

TRAIN = TrainConfig(steps=2, batch_size=4, evaluation_sequences=4, evaluate_every=1)
SMALL = ["model.width=8", "model.num_heads=2", "model.mixers=['softmax_attention','mesanet2025']"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = exit_status(*map(str, arguments))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose tokens are no text."""
    config = RunConfig(
        recipe="copy",
        task=CopyingConfig(),
        model=LanguageModelConfig(vocabulary=CopyingConfig().vocabulary, width=8, num_heads=2),
        train=TRAIN,
    )
    return train(config, tmp_path_factory.mktemp("copying"), device="cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on bytes of a small file."""
    corpus = tmp_path_factory.mktemp("corpus") / "words.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog. é\n" * 100, encoding="utf-8")
    config = RunConfig(
        recipe="words",
        task=TextConfig(corpus=str(corpus), length=16),
        model=LanguageModelConfig(width=8, num_heads=2),
        train=TRAIN,
    )
    return train(config, tmp_path_factory.mktemp("text"), device="cpu")


def test_one_command_trains_evaluates_generates_and_reports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Run
) -> None:
    out = tmp_path / "run"
    settings = [f"task.corpus={text.config.task.corpus}", "task.length=16", *SMALL]
    settings += ["train.steps=2", "train.batch_size=4", "train.evaluation_sequences=4"]
    arguments = ("train", "lm-mesanet", "--set", *settings, "--out", out)
    status, shown, _ = call(capsys, *arguments)
    assert status == 0
    assert "score: loss at 12 less that at 4" in shown
    for column in ("perplexity", "accuracy", "score"):
        assert column in shown
    results = language_results(out)
    assert results.sample is not None
    assert results.sample.prompt.encode() in Path(text.config.task.corpus).read_bytes()
    assert f"--- a held-out text ---\n{results.sample.prompt}\n--- the model goes on" in shown
    report = out / "report.html"
    assert f"Report: {report}" in shown.replace("\n", "")
    assert f"Next: mesaopt generate {out} --prompt 'def '" in shown.replace("\n", "")
    assert isinstance(load_run(out).model, LanguageModel)
    html = report.read_text()
    for words in ("position in the text", "bits a byte", "MesaLayer", "Where it was trained"):
        assert words in html
    assert html_module.escape(results.sample.original[:8]) in html
    report.unlink()
    status, again, _ = call(capsys, *arguments, "--resume")  # trains nothing, shows the same
    assert (status, again) == (0, shown)
    assert report.read_text() == html


def test_the_report_of_a_language_model_is_made_anew_and_does_without_its_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Run, copying: Run
) -> None:
    page, curve = tmp_path / "page.html", tmp_path / "curve.png"
    status, shown, _ = call(capsys, "report", text.path, "--out", page)
    assert (status, shown.strip()) == (0, str(page))
    assert "The model goes on" in page.read_text()
    assert call(capsys, "report", text.path, "--out", curve)[0] == 0
    assert curve.read_bytes().startswith(b"\x89PNG")
    run = shutil.copytree(text.path, tmp_path / "moved")
    config = json.loads((run / "config.json").read_text())
    config["task"]["corpus"] = str(tmp_path / "gone.txt")
    (run / "config.json").write_text(json.dumps(config))
    status, shown, _ = call(capsys, "report", run, "--out", page)
    assert status == 0
    assert "Without tests: corpus=" in shown
    assert "The model goes on" not in page.read_text()
    status, _, _ = call(capsys, "report", copying.path, "--out", page)
    assert status == 0
    assert "a guess without the sequence" in page.read_text()
    assert "The model goes on" not in page.read_text()


def test_losses_by_position_are_in_nats(capsys: pytest.CaptureFixture[str], text: Run) -> None:
    status, out, _ = call(capsys, "evaluate", text.path, "--sequences", "256", "--json")
    (score,) = json.loads(out)["words"]
    assert status == 0
    assert len(score["by_position"]) == 16
    uniform = in_context_loss(
        lambda batch: torch.zeros(*batch.targets.shape, 256),
        make_task(text.config.task),
        Evaluation(num_sequences=256),
    )
    assert uniform.mean == pytest.approx(5.545177, abs=1e-5)  # log 256
    own = in_context_loss(text, evaluation=Evaluation(num_sequences=256))
    assert own.positions == range(1, 17)
    assert own.mean == pytest.approx(score["loss"], abs=1e-5)
    assert own.mean < 5.6


def test_compare_counts_a_stretch_of_text_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Run
) -> None:
    other = shutil.copytree(text.path, tmp_path / "other")
    arguments = ("--sequences", "512", "--json")
    _, out, _ = call(capsys, "evaluate", text.path, *arguments)
    (score,) = json.loads(out)["words"]
    status, out, _ = call(capsys, "compare", text.path, other, *arguments)
    assert status == 0
    loss = json.loads(out)["runs"]["other"]
    assert loss["mean"] == pytest.approx(score["loss"], rel=1e-5)
    assert loss["standard_error"] == pytest.approx(score["loss_error"], rel=1e-4)


def test_bytes_are_continued(capsys: pytest.CaptureFixture[str], text: Run) -> None:
    arguments = ("generate", text.path, "--prompt", "the é", "--tokens", "7", "--json")
    status, out, _ = call(capsys, *arguments, "--samples", "3", "--top-k", "9", "--top-p", "0.9")
    rows = json.loads(out)
    assert (status, len(rows)) == (0, 3)
    for row in rows:
        assert row["text"] == "the é" + bytes(row["tokens"]).decode(errors="replace")
        assert len(row["tokens"]) == 7
        assert row["log_probability"] < 0
    assert json.loads(call(capsys, *arguments, "--seed", "0")[1])[0]["tokens"]
    greedy = [json.loads(call(capsys, *arguments, "--temperature", "0")[1]) for _ in range(2)]
    assert greedy[0] == greedy[1]
    status, out, _ = call(capsys, *arguments[:-1], "--beams", "2")
    assert "--- 1 of 2, log-probability -" in out


def test_tokens_that_are_no_text_are_numbers(
    capsys: pytest.CaptureFixture[str], copying: Run
) -> None:
    arguments = ("generate", copying.path, "--prompt", "3 4 5", "--tokens", "4", "--temperature=0")
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    numbers = [int(word) for word in out.split()]
    assert numbers[:3] == [3, 4, 5]
    model = load_run(copying.path).model
    for count in range(3, 7):
        assert numbers[count] == model(torch.tensor([numbers[:count]]))[0, -1].argmax()


def test_what_cannot_be_continued_is_one_line(
    capsys: pytest.CaptureFixture[str], copying: Run, text: Run
) -> None:
    size = copying.config.task.vocabulary
    for run, arguments, message in (
        (text.path, ["--prompt", ""], "prompt: is empty: must be one token or more"),
        (copying.path, ["--prompt", " "], "prompt=' ': has no token: must be one token or more"),
        (
            copying.path,
            ["--prompt", "1 999"],
            f"prompt='1 999': has the token 999: must be from 0 to {size - 1}",
        ),
        (copying.path, ["--prompt", "def"], "prompt='def': must be whole numbers with spaces"),
        (text.path, ["--prompt", "a", "--tokens", "0"], "tokens=0: must be 1 or greater"),
        (text.path, ["--prompt", "a", "--top-p", "2"], "top_p=2.0: must be above 0 and at most 1"),
        (text.path, ["--prompt", "a", "--beams", "0"], "beams=0: must be 1 or greater"),
        ("zoo:lsa-1", ["--prompt", "a"], "holds a 'sequence' model: must be a 'language' model"),
    ):
        status, out, err = call(capsys, "generate", run, *arguments)
        assert (status, out) == (2, ""), message
        assert message in err
        assert err.count("\n") == 1


def train_tiny(capsys: pytest.CaptureFixture[str], out: Path, *settings: str) -> tuple[int, str]:
    tiny = ["train.steps=1", "train.batch_size=2", "train.evaluation_sequences=2", "task.length=8"]
    status, _, err = call(
        capsys, "train", "lm-mesanet", "--out", out, "--set", *SMALL, *tiny, *settings
    )
    return status, err


def test_a_corpus_or_a_vocabulary_that_does_not_fit_is_one_line_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short, empty = tmp_path / "short.txt", tmp_path / "empty.txt"
    short.write_text("abc def")
    empty.write_text("")
    long = tmp_path / "long.txt"
    long.write_text("abc def" * 100)
    for settings, message in (
        ([f"task.corpus={short}"], "its train part has 7 tokens: must have more than length=8"),
        ([f"task.corpus={empty}"], "is empty; must have a file with text in it"),
        ([f"task.corpus={tmp_path / 'gone'}"], "there is no such file or folder; must be one, or"),
        (["task.tokenizer=gone.json"], "tokenizer='gone.json': there is no such file; must be one"),
        (["task.vocabulary=300"], "model.vocabulary=256: must be 300, the task's vocabulary"),
        (
            ["task.vocabulary=99", "model.vocabulary=99"],
            "vocabulary=99: must be 256 or greater, the",
        ),
    ):
        status, err = train_tiny(capsys, tmp_path / "run", *settings)
        assert status == 2, message
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_tokenizer_whose_vocabulary_does_not_fit_and_unknown_words_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    package = pytest.importorskip("tokenizers")

    def save(name: str, words: dict[str, int], **unknown: str) -> Path:
        tokenizer = package.Tokenizer(package.models.WordLevel(words, **unknown))
        tokenizer.pre_tokenizer = package.pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / name))
        return tmp_path / name

    text, out = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("to be or not to be " * 40)
    few = save("few.json", {"to": 0, "be": 1})
    many = save("many.json", {f"w{number}": number for number in range(300)})
    words = save("words.json", {"to": 0, "be": 1, "or": 2, "?": 3}, unk_token="?")
    for tokenizer, message in (
        (few, "does not know all of the text: WordLevel error"),
        (many, "does not know all of the text: WordLevel error"),
    ):
        status, err = train_tiny(capsys, out, f"task.corpus={text}", f"task.tokenizer={tokenizer}")
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    text.write_text("w7 " * 400)
    status, err = train_tiny(capsys, out, f"task.corpus={text}", f"task.tokenizer={many}")
    assert status == 2
    assert f"vocabulary=256: must be 300 or greater, the tokens of '{many}'" in err
    assert not out.exists()

    text.write_text("to be or not to be " * 40)
    shards = tmp_path / "shards"
    assert call(capsys, "data", "prepare", text, "--out", shards, "--tokenizer", words)[0] == 0
    own = ["task.vocabulary=5", "model.vocabulary=5"]
    assert train_tiny(capsys, out, f"task.corpus={shards}", *own)[0] == 0
    status, shown, _ = call(capsys, "generate", out, "--prompt", "to be", "--tokens", "1")
    assert (status, shown[:5]) == (0, "to be")
    status, _, err = call(capsys, "generate", out, "--prompt", "to sleep")
    assert (status, err.count("\n")) == (2, 1)
    assert "prompt='to sleep': has a part that the tokenizer does not know" in err
    shards.rename(tmp_path / "elsewhere")  # and with it the tokenizer
    load_corpus.cache_clear()
    status, _, err = call(capsys, "generate", out, "--prompt", "to be")
    assert (status, err.count("\n")) == (2, 1)
    assert f"corpus='{shards}': there is no such file or folder" in err


def test_weights_of_another_architecture_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Run
) -> None:
    config = json.loads((text.path / "config.json").read_text())
    for number, change in enumerate(({"width": 16}, {"mixers": ["mesa"]}, {"mlp": "none"})):
        run = shutil.copytree(text.path, tmp_path / str(number))
        changed = config | {"model": config["model"] | change}
        (run / "config.json").write_text(json.dumps(changed))
        for command in (("generate", run, "--prompt", "a"), ("evaluate", run), ("report", run)):
            status, out, err = call(capsys, *command)
            assert (status, out) == (2, "")
            assert "model.safetensors: the weights do not fit config.json: " in err
            assert err.count("\n") == 1


def test_a_prompt_that_is_no_utf_8_is_bytes_all_the_same(
    capsys: pytest.CaptureFixture[str], text: Run, copying: Run
) -> None:
    typed = os.fsdecode(b"caf\xe9")
    arguments = ("--prompt", typed, "--tokens", "1", "--temperature", "0", "--json")
    status, out, _ = call(capsys, "generate", text.path, *arguments)
    assert status == 0
    (row,) = json.loads(out)
    logits = load_run(text.path).model(torch.tensor([list(b"caf\xe9")]))
    assert row["tokens"] == [logits[0, -1].argmax()]
    assert row["text"].startswith("caf\ufffd")
    status, _, err = call(capsys, "generate", copying.path, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert "must be whole numbers with spaces" in err


def test_tasks_and_models_of_two_kinds_do_not_meet() -> None:
    copying = recipes.get("lm-mesanet")
    with pytest.raises(ConfigError, match=r"model.kind='sequence': must be 'language' or a module"):
        replace(copying, model=recipes.get("lsa-1").model)
    with pytest.raises(ConfigError, match=r"task.kind='linear_system': must be a task on tokens"):
        replace(copying, task=recipes.get("lsa-1").task)
    with pytest.raises(ConfigError, match=r"model.vocabulary=28: must be 256, the task's"):
        replace(copying, model=replace(copying.model, vocabulary=28))


def test_several_seeds_are_trained_one_after_another(tmp_path: Path, copying: Run) -> None:
    configs = [replace(copying.config, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ConfigError, match=r"model.kind='language': must be 'sequence' for several"):
        train_seeds(configs, folders, device="cpu")
    assert not any(folder.exists() for folder in folders)


def test_a_training_goes_on_bit_for_bit(tmp_path: Path, text: Run) -> None:
    config = text.config

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    longer = replace(config, train=replace(config.train, steps=12, evaluate_every=5))
    whole = train(longer, tmp_path / "whole12", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(longer, tmp_path / "cut", device="cpu", progress=stop)
    again = train(longer, tmp_path / "cut", device="cpu", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
