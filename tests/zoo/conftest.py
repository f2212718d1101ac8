"""A zoo with a byte model: it is trained for two steps, in place of those that take minutes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesaopt import zoo
from mesaopt.recipes import RECIPES, Recipe
from mesaopt.training import Run, train
from mesaopt.zoo.build import add

BYTE_MODEL = "lm-mesanet"


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """The recipe of the byte model, with eight channels and two steps."""
    recipe = RECIPES[BYTE_MODEL]
    model = replace(recipe.config.model, width=8, num_heads=2, mixers=("mesanet2025",))
    short = replace(recipe.config.train, steps=2, batch_size=2, evaluation_sequences=2)
    return replace(recipe, config=replace(recipe.config, model=model, train=short))


@pytest.fixture(scope="session")
def byte_run(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small_recipe.config, tmp_path_factory.mktemp("byte") / "run", device="cpu")


@pytest.fixture(scope="session")
def byte_folder(
    small_recipe: Recipe, byte_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A clone of which there is the folder of the zoo alone, with the byte model and one other."""
    folder = tmp_path_factory.mktemp("clone") / "mesaopt" / "zoo" / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, BYTE_MODEL, small_recipe)
        for path in (zoo.FOLDER / "fixed-lsa-1", byte_run.path):
            add(path, folder)
    return folder


@pytest.fixture
def byte_zoo(
    small_recipe: Recipe, byte_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a zoo that the package takes for its own."""
    folder = shutil.copytree(byte_folder, tmp_path / "mesaopt" / "zoo" / "runs")
    monkeypatch.setitem(RECIPES, BYTE_MODEL, small_recipe)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    zoo.forget()
    yield folder
    zoo.forget()
