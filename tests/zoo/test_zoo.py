"""Trained models that come with the package: every one is what its card says."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exit_status

import mesaopt
from mesaopt import zoo
from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
from mesaopt.corpus import load_corpus
from mesaopt.errors import ConfigError, RunError
from mesaopt.models import LanguageModel, make_model
from mesaopt.recipes import RECIPES
from mesaopt.tasks import Text, make_task
from mesaopt.training.tensors import read_tensors

MOST_BYTES = 25 * 10**6
MOST_BYTES_OF_TEXT = 5 * 10**6
"""Of the whole, and of each byte model."""


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the zoo with one model, to damage."""
    shutil.copytree(zoo.FOLDER / "lsa-1", tmp_path / "lsa-1")
    shutil.copy(zoo.FOLDER / zoo.INDEX, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path


def test_the_zoo_is_small() -> None:
    sizes = {path: path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < MOST_BYTES
    for name in {*zoo.names()} & {*zoo.FAMILIES}:
        assert zoo.get(name).num_bytes < MOST_BYTES_OF_TEXT


def test_the_zoo_has_room_for_a_byte_model_of_each_family() -> None:
    largest: dict[str, int] = {}
    for name, family in zoo.FAMILIES.items():
        with torch.device("meta"):
            weights = make_model(RECIPES[name].config.model).state_dict().values()
        # Settings, learning curve and names, and two bytes a weight.
        size = 50_000 + sum(2 * weight.numel() for weight in weights)
        assert size < MOST_BYTES_OF_TEXT
        largest[family] = max(size, largest.get(family, 0))
    others = [zoo.get(name).num_bytes for name in zoo.names() if name not in zoo.FAMILIES]
    assert sum(others) + sum(largest.values()) < MOST_BYTES


def test_every_folder_is_listed() -> None:
    folders = {path.name for path in zoo.FOLDER.iterdir() if path.is_dir()}
    assert folders == set(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_was_trained_as_its_recipe_says(name: str) -> None:
    run, entry = zoo.load(name), zoo.get(name)
    assert run.config == RECIPES[name].config
    assert run.metrics[-1]["step"] == run.config.train.steps == entry.steps[-1]
    assert (entry.checksum == "") == (entry.family is None)
    listed = {path.relative_to(entry.path).as_posix() for path in entry.path.rglob("*.*")}
    assert {path for path in listed if "step_" not in path.split("/")[-1]} <= set(entry.digests)


def compare_with_fresh_sequences(name: str) -> None:
    """Measure the loss of a model again, on other sequences."""
    run, entry, task = zoo.load(name), zoo.get(name), make_task(zoo.load(name).config.task)
    if isinstance(task, Text) and task.corpus.checksum != entry.checksum:
        # Every Python has its own standard library, and some systems leave parts of it out.
        pytest.skip("the loss is of the standard library of another Python")
    predictor = model_predictor(run.model, run.config.task.token_slots)
    evaluation = Evaluation(num_sequences=256, seed=1)
    loss = in_context_loss({"model": predictor}, task, evaluation)["model"]
    # Two independent samples: five standard errors of their difference.
    error = (loss.mean_error**2 + entry.loss.error**2) ** 0.5
    assert abs(loss.mean - entry.loss.value) < 5 * error


@pytest.mark.parametrize("name", zoo.names())
def test_the_loss_is_that_of_fresh_sequences(name: str) -> None:
    compare_with_fresh_sequences(name)


@pytest.mark.parametrize("name", zoo.names())
def test_a_card_says_what_a_model_is(name: str) -> None:
    card, entry = zoo.card(name), zoo.get(name)
    facts = (f"# {name}\n", f"{entry.loss.value:.4f} ± ", f"{entry.steps[-1]:,} steps", "commit")
    assert all(fact in card for fact in facts)


@pytest.mark.parametrize("name", zoo.names())
def test_weights_before_the_last_are_rounded(name: str) -> None:
    entry = zoo.get(name)
    for step in entry.steps:
        path = entry.path / "checkpoints" / f"step_{step:06d}" / "model.safetensors"
        dtypes = {tensor.dtype for tensor in read_tensors(path)[0].values()}
        whole = step == entry.steps[-1] and entry.family is None
        assert (torch.float16 not in dtypes) if whole else (dtypes == {torch.float16})
        assert all(weight.dtype != torch.float16 for weight in _weights(name, step))
    assert ("half precision" in zoo.card(name)) == (len(entry.steps) > 1)


def _weights(name: str, step: int) -> list[torch.Tensor]:
    return list(zoo.load(name, step=step).model.state_dict().values())


def test_checkpoints_load() -> None:
    first, last = zoo.get("lsa-1").steps[0], zoo.get("lsa-1").steps[-1]
    models = [zoo.load("lsa-1", step=step).model for step in (first, last)]
    weights = [next(model.parameters()) for model in models]
    assert not torch.equal(*weights)


def test_load_is_at_hand() -> None:
    assert mesaopt.load("zoo:lsa-1").config.recipe == "lsa-1"
    assert "load" in dir(mesaopt)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lsa1", "name='lsa1': did you mean 'lsa-1'?"),
        ("zoo:lsa1", "name='lsa1': did you mean 'lsa-1'?"),
        ("delta-1", "name='delta-1': is not trained yet; `mesaopt train delta-1` does it"),
    ],
)
def test_unknown_names_are_errors(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message.replace("?", r"\?")):
        zoo.load(name)


@pytest.mark.parametrize("file", ["config.json", "checkpoints/step_003500/model.safetensors"])
def test_a_damaged_file_is_named_and_how_to_restore_it(copied: Path, file: str) -> None:
    path = copied / "lsa-1" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for use in (zoo.load, zoo.locate):
        with pytest.raises(RunError, match=f"{file}: is damaged; .*git checkout -- .*{file}"):
            use("zoo:lsa-1")


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "lsa-1" / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics\.jsonl: there is no such file"):
        zoo.load("lsa-1")


def test_paths_are_left_alone() -> None:
    assert zoo.locate("some/where") == Path("some/where")


def change_index(folder: Path, name: str, **facts: Any) -> None:
    index = json.loads((folder / zoo.INDEX).read_text())
    index[name] |= facts
    index[name] = {fact: value for fact, value in index[name].items() if value is not None}
    (folder / zoo.INDEX).write_text(json.dumps(index))
    zoo.forget()


def test_the_loss_of_a_byte_model_is_that_of_its_text(byte_zoo: Path) -> None:
    entry = zoo.get("lm-mesanet")
    assert entry.loss.value == pytest.approx(math.log(256), abs=0.1), "nothing was learned yet"
    assert entry.checksum == load_corpus("stdlib").checksum
    compare_with_fresh_sequences("lm-mesanet")
    change_index(byte_zoo, "lm-mesanet", loss=entry.loss.value - 0.1)
    with pytest.raises(AssertionError):
        compare_with_fresh_sequences("lm-mesanet")
    change_index(byte_zoo, "lm-mesanet", checksum="0")
    with pytest.raises(pytest.skip.Exception, match="of another Python"):
        compare_with_fresh_sequences("lm-mesanet")


@pytest.mark.usefixtures("byte_zoo")
def test_a_byte_model_says_its_unit_and_its_text() -> None:
    entry, card = zoo.get("lm-mesanet"), zoo.card("lm-mesanet")
    python = json.loads((entry.path / "meta.json").read_text())["python"]
    loss = f"{entry.loss_value:.4f} ± {entry.loss_error:.4f} nats a byte"
    for words in (
        f"| loss | {loss} (512 fresh test sequences) |",
        f"| perplexity | {math.exp(entry.loss_value):.1f}",
        f"| bits a byte | {entry.loss_value / math.log(2):.2f}",
        "2 steps of 2 sequences, as its recipe says",
        f"the standard library of Python {python} (checksum `{entry.checksum}`)",
    ):
        assert words in card
    assert "published" not in card
    assert "nats a byte after 2 steps" in repr(entry)
    assert loss in repr(entry)
    assert entry.to_dataframe().unit.tolist() == ["nats a byte"]
    other = zoo.card("fixed-lsa-1")
    assert "nats" not in other + repr(zoo.get("fixed-lsa-1"))
    assert "(10,240 fresh test sequences)" in other
    assert "as published" in other


@pytest.mark.usefixtures("byte_zoo")
def test_a_byte_model_is_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(mesaopt.load("lm-mesanet").model, LanguageModel)
    model = "zoo:lm-mesanet"
    arguments = ("generate", model, "--prompt", "def ", "--tokens", "5", "--json")
    assert exit_status(*arguments) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["tokens"]) == 5
    assert exit_status("list", "zoo", "--json") == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["zoo"]}
    assert "nats a byte" in listed[model]["loss"]


@pytest.mark.slow
@pytest.mark.usefixtures("byte_zoo")
def test_a_byte_model_is_evaluated_next_to_n_grams(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("evaluate", "zoo:lm-mesanet", "--sequences", "512", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    (own,) = scores["lm-mesanet"]
    assert own["loss"] == pytest.approx(zoo.get("lm-mesanet").loss_value, rel=1e-5)  # rounding
    assert "3-gram" in scores


def test_a_damaged_byte_model_is_an_error(byte_zoo: Path) -> None:
    (path,) = byte_zoo.glob("lm-mesanet/checkpoints/*/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="is damaged"):
        zoo.locate("zoo:lm-mesanet")


@pytest.mark.parametrize(
    ("fact", "wrong"),
    [
        ("steps", 2),
        ("loss", "low"),
        ("loss_error", "low"),
        ("sequences", 512.5),
        ("checksum", 7),
        ("files", []),
    ],
)
def test_a_damaged_list_names_what_is_wrong(byte_zoo: Path, fact: str, wrong: Any) -> None:
    for value, problem in ((wrong, f"{fact}="), (None, f"{fact} is missing")):
        change_index(byte_zoo, "lm-mesanet", **{fact: value})
        with pytest.raises(RunError, match=f"is damaged: lm-mesanet.{problem}"):
            zoo.get("fixed-lsa-1")
