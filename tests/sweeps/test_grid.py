"""Grids of settings, and how they are written on the command line."""

from typing import Any

import numpy as np
import pytest
import torch

from mesaopt import recipes
from mesaopt.config import override
from mesaopt.errors import ConfigError
from mesaopt.sweeps import grid, parse_grid


def test_a_grid_has_every_combination_with_every_seed() -> None:
    settings = {"train.learning_rate": ["1e-4", 3e-4], "model.num_heads": [2, 4]}
    made = grid(recipes.get("lsa-1", seed=5), settings, seeds=2)
    values = [(c.train.learning_rate, c.model.num_heads, c.seed) for c in made]
    assert len(set(values)) == 8
    assert values[:3] == [(1e-4, 2, 5), (1e-4, 2, 6), (1e-4, 4, 5)]
    wanted = override(
        recipes.get("lsa-1", seed=6), ["train.learning_rate=3e-4", "model.num_heads=4"]
    )
    assert made[-1] == wanted
    assert grid("lsa-1", {}) == [recipes.get("lsa-1")]


def test_a_setting_of_another_kind_of_task_can_vary() -> None:
    kind = {"task.kind": ["partially_observed"], "model.token_dim": [5], "model.output_dim": [5]}
    first, second = grid("tf-7", {**kind, "task.hidden_dim": [10, 15]})
    assert (first.task.kind, second.task.kind) == ("partially_observed",) * 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.learning_rat", "train.learning_rate"),
        ("trian.steps", "train.steps"),
        ("train.step", "train.steps"),
        ("task.transitions", "task.transition"),
        ("learning_rate", "train.learning_rate"),
        ("num_head", "model.num_heads"),
        ("model.nheads", "model.num_heads"),
    ],
)
def test_an_unknown_setting_suggests_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^grid='{name}': did you mean '{meant}'\\?$"):
        grid("lsa-1", {name: [1]})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"zzzz": [1]}, "grid='zzzz': allowed: .*train.steps"),
        ({"seed": [1, 2]}, "grid='seed': cannot be in a grid; give the number of seeds"),
        ({"recipe": ["tf-3"]}, "grid='recipe': cannot be in a grid"),
        (
            {"train.steps": [1, 1]},
            "grid='train.steps': must have one or more values, all different",
        ),
        ({"train.steps": []}, "must have one or more values"),
        ({"train.steps": [0]}, "steps=0: must be greater than 0"),
    ],
)
def test_wrong_grids_are_refused(settings: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        grid("lsa-1", settings)


@pytest.mark.parametrize(
    "steps",
    [range(100, 300, 100), np.arange(100, 300, 100), torch.tensor([100, 200]), ("100", 200)],
)
def test_values_may_be_of_numpy_or_torch(steps: Any) -> None:
    assert [one.train.steps for one in grid("lsa-1", {"train.steps": steps})] == [100, 200]
    rates = grid("lsa-1", {"train.learning_rate": np.array([1e-4, 3e-4])})
    assert [one.train.learning_rate for one in rates] == [1e-4, 3e-4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("24", "^settings.*num_heads.* is '24': must be a list of values"),
        (4, "is an int: must be a list of values"),
        (None, "is None: must be a list of values"),
        ([2, object()], r"\]\[1\] is an object: must be a number, text or a list"),
        ([{2}], r"\]\[0\] is a set: must be a number"),
    ],
)
def test_values_of_another_type_are_refused(values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        grid("lsa-1", {"model.num_heads": values})


def test_values_are_json_or_words_between_commas() -> None:
    read = parse_grid(
        ["a.b=1,'x,y',[1,[2,3]],{\"c\": 1}", "e=constant,1e-3", "f=null,true", "g=a=b"]
    )
    assert read == {
        "a.b": [1, "x,y", [1, [2, 3]], {"c": 1}],
        "e": ["constant", "1e-3"],
        "f": [None, True],
        "g": ["a=b"],
    }


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a="], ["a=1,,2"], ["a=1", "a=2"]])
def test_a_grid_that_cannot_be_read_is_named(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"^grid='{texts[-1]}': "):
        parse_grid(texts)
