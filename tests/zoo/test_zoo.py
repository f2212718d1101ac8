"""Trained models that come with the package: every one is what its card says."""

import shutil
from pathlib import Path

import pytest
import torch

import mesaopt
from mesaopt import zoo
from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
from mesaopt.errors import ConfigError, RunError
from mesaopt.recipes import RECIPES
from mesaopt.tasks import make_task

MOST_BYTES = 25 * 10**6


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the zoo with one model, to damage."""
    shutil.copytree(zoo.FOLDER / "lsa-1", tmp_path / "lsa-1")
    shutil.copy(zoo.FOLDER / zoo.INDEX, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*")) < MOST_BYTES


def test_every_folder_is_listed() -> None:
    folders = {path.name for path in zoo.FOLDER.iterdir() if path.is_dir()}
    assert folders == set(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_was_trained_as_published(name: str) -> None:
    run, entry = zoo.load(name), zoo.get(name)
    assert run.config == RECIPES[name].config
    assert run.metrics[-1]["step"] == run.config.train.steps == entry.steps[-1]
    listed = {path.relative_to(entry.path).as_posix() for path in entry.path.rglob("*.*")}
    assert {path for path in listed if "step_" not in path.split("/")[-1]} <= set(entry.digests)


@pytest.mark.parametrize("name", zoo.names())
def test_the_loss_is_that_of_fresh_sequences(name: str) -> None:
    run, entry = zoo.load(name), zoo.get(name)
    predictor = model_predictor(run.model, run.config.task.token_slots)
    evaluation = Evaluation(num_sequences=256, seed=1)
    loss = in_context_loss({"model": predictor}, make_task(run.config.task), evaluation)["model"]
    # Two independent samples: five standard errors of their difference.
    error = (loss.mean_error**2 + entry.loss.error**2) ** 0.5
    assert abs(loss.mean - entry.loss.value) < 5 * error


@pytest.mark.parametrize("name", zoo.names())
def test_a_card_says_what_a_model_is(name: str) -> None:
    card, entry = zoo.card(name), zoo.get(name)
    facts = (f"# {name}\n", f"{entry.loss.value:.4f} ± ", f"{entry.steps[-1]:,} steps", "commit")
    assert all(fact in card for fact in facts)


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
