"""Adding trainings to the zoo."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mesaopt import recipes, zoo
from mesaopt.errors import RunError
from mesaopt.training import train
from mesaopt.zoo.build import PUBLISHED, add, kept_steps, page


def test_a_model_that_is_added_again_is_the_same(tmp_path: Path) -> None:
    target = add(zoo.FOLDER / "lsa-1", tmp_path)
    copied = {
        path.relative_to(target): path.read_bytes()
        for path in target.rglob("*.*")
        if path.is_file()
    }
    for path, content in copied.items():
        assert (zoo.FOLDER / "lsa-1" / path).read_bytes() == content
    index = json.loads((tmp_path / zoo.INDEX).read_text())
    listed = json.loads((zoo.FOLDER / zoo.INDEX).read_text())["lsa-1"]
    assert index["lsa-1"]["files"] == listed["files"]
    assert index["lsa-1"]["loss"] == pytest.approx(
        listed["loss"], rel=1e-5
    )  # rounding of a machine


def test_another_training_is_refused(tmp_path: Path) -> None:
    config = recipes.get("lsa-1")
    short = replace(config.train, steps=2, batch_size=4, evaluation_sequences=4)
    run = train(replace(config, train=short), tmp_path / "run", device="cpu")
    with pytest.raises(RunError, match="must be trained as the recipe 'lsa-1' says"):
        add(run.path, tmp_path / "zoo")
    (run.path / "DONE").unlink()
    with pytest.raises(RunError, match="has not ended"):
        add(run.path, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_checkpoints_are_kept_where_a_figure_reads_them() -> None:
    run = zoo.load("lsa-1")
    steps = list(range(0, 3501, 100))
    kept = kept_steps(run, steps)
    assert {0, 200, 300, 400, 600, 1000, 2000, 2500, 3400, 3500} <= set(kept) < set(steps)
    other = replace(run, config=recipes.get("fixed-lsa-1"))
    assert kept_steps(other, steps) == [3500]


def test_the_page_of_the_docs_is_up_to_date() -> None:
    docs = zoo.FOLDER.parents[2] / "docs" / "zoo.md"
    assert docs.read_text() == page(), "python -m mesaopt.zoo.build writes it anew"


def test_everything_in_the_zoo_belongs_there() -> None:
    assert set(zoo.names()) <= set(PUBLISHED)
