import sys
from pathlib import Path

import pytest

from mesaopt import recipes
from mesaopt.bench.official import Comparison, OfficialCode, compare, settings_of
from mesaopt.bench.train import measure_training_step
from mesaopt.errors import ConfigError, RunError

ANSWERS = 'read settings; echo ready; while read steps; do echo "$steps"; done'
"""Takes a second for every step."""


def official(folder: Path, script: str) -> OfficialCode:
    """A clone, and an interpreter that does what a shell script says."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "train.py").touch()
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return OfficialCode(clone=folder, python=python)


def test_steps_are_timed_in_turns(tmp_path: Path) -> None:
    ours = []
    code = official(tmp_path, ANSWERS)
    result = compare(recipes.get("lsa-1"), code, lambda: ours.append(1), steps=3)
    assert result.official == [1000.0] * len(result.ours)
    assert len(ours) == 3 * len(result.ours)
    assert all(0 < ratio < 0.1 for ratio in result.ratios)


def test_the_lines_are_medians_and_spreads() -> None:
    lines = dict(Comparison(ours=[10.0, 30.0, 20.0], official=[40.0, 40.0, 50.0]).describe())
    assert lines["the authors' code"].startswith("40.0 ms (median; 40.0 to 50.0 in 3 rounds")
    assert lines["our time over theirs"].startswith("0.40 (median; 0.25 to 0.75")


def test_a_measurement_has_the_comparison_asked_for(tmp_path: Path) -> None:
    code = official(tmp_path, ANSWERS)
    result = measure_training_step("lsa-1", repeats=1, threads=1, official=code)
    assert result.official is not None
    assert len(result.describe()) == 8
    assert len(result.describe(goals=True)) == 12


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'No module named jax' >&2; exit 1", "does not run: No module named jax"),
        ("exit 1", "does not run: no message"),
        ("read settings; echo ready; echo broke >&2", "does not run: broke"),
    ],
)
def test_code_that_does_not_run_is_named(script: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        compare(recipes.get("lsa-1"), official(tmp_path, script), lambda: None, steps=1)


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesaopt.bench.train._measure", lambda *_: pytest.fail("measures first"))
    config = recipes.get("lsa-1")
    empty = OfficialCode(clone=tmp_path, python=Path(sys.executable))
    with pytest.raises(RunError, match="is no clone of the authors' code"):
        compare(config, empty, lambda: None, steps=1)
    with pytest.raises(RunError, match="is no clone of the authors' code"):
        measure_training_step("lsa-1", official=empty)
    clone = official(tmp_path, "").clone
    with pytest.raises(RunError, match="python='no/python': No such file"):
        compare(config, OfficialCode(clone=clone, python=Path("no/python")), print, steps=1)
    with pytest.raises(ConfigError, match="recipe='delta-1': the authors' code cannot train"):
        measure_training_step(
            "delta-1", official=OfficialCode(clone=clone, python=clone / "python")
        )


def test_settings_are_those_of_the_notebook() -> None:
    """The values in `configs/config.py` of the authors' code."""
    settings = settings_of(recipes.get("lsa-2-notebook"))
    assert (settings["batch_size"], settings["slots"]) == (256, 40)
    assert settings["data"] | {"range": 1, "noise": 0.01, "data_clip": 10} == settings["data"]
    model = {"use_emb": False, "hybrid_first_block": False, "clip": 1.5, "use_clip": True}
    model |= {"num_layers": 2, "num_heads": 4, "key_size": 20, "linear": True, "use_mesa": False}
    assert settings["model"] | model == settings["model"]
    optimizer = {"peak_lr": 3e-4, "use_schedule": True, "max_iters": 20_000, "weight_decay": 0.05}
    assert settings["optimizer"] | optimizer == settings["optimizer"]


def test_the_first_block_is_apart_where_tokens_are_embedded() -> None:
    model = settings_of(recipes.get("hybrid-mesa"))["model"]
    expected = {"hybrid_first_block": True, "hybrid_sm": True, "use_mesa": True, "num_layers": 1}
    assert model | expected == model
    published = settings_of(recipes.get("full-mesa-published"))["model"]
    assert published | expected | {"hybrid_sm": False} == published


@pytest.mark.parametrize(
    "recipe", ["full-mesa", "tf-7-partial", "tf-7-nonlinear", "delta-1", "ar-sparse", "fixed-lsa-1"]
)
def test_models_that_their_code_does_not_have_are_refused(recipe: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe='{recipe}'"):
        settings_of(recipes.get(recipe))
