"""Rough costs of steps: equal work is timed once, and scaled to the batch."""

from dataclasses import replace

import pytest
import torch

from mesaopt import recipes
from mesaopt.config import RunConfig, override
from mesaopt.errors import ConfigError
from mesaopt.training import DivergedError, StepCosts, estimate, step_cost


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Collect what is timed, at a second per sequence."""
    found: list[RunConfig] = []

    def spy(config: RunConfig, batch_size: int) -> tuple[int, float]:
        found.append(config)
        return 7, float(batch_size)

    monkeypatch.setattr(estimate, "_time_one_thread", spy)
    return found


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("lsa-1", "lsa-1", True),
        ("lsa-1", "contracting-lsa-1", True),
        ("lsa-2", "fixed-lsa-2", True),  # in batches twice as large
        ("lsa-1", "lsa-2", False),
        ("tf-7", "tf-7-few-shot", False),
        ("tf-7-partial", "hybrid-mesa-partial", False),
    ],
)
def test_equal_work_is_timed_once(
    first: str, second: str, same: bool, timed: list[RunConfig]
) -> None:
    costs = StepCosts("cpu")
    for name in (first, second):
        costs.of([recipes.get(name)])
    assert len(timed) == (1 if same else 2)


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ("train.precision=bfloat16", False),
        ("train.data=fixed", False),
        ("train.optimizer=gradient_descent", False),
        ("train.learning_rate=1e-5", True),
        ("train.steps=7", True),
    ],
)
def test_settings_that_change_the_work_are_timed(
    setting: str, same: bool, timed: list[RunConfig]
) -> None:
    costs, config = StepCosts("cpu"), recipes.get("lsa-1")
    for one in (config, override(config, [setting])):
        costs.of([one])
    assert len(timed) == (1 if same else 2)


def test_other_seeds_are_not_timed(timed: list[RunConfig]) -> None:
    costs = StepCosts("cpu")
    assert costs.of([recipes.get("lsa-1")]) == costs.of([recipes.get("lsa-1", seed=1)])
    assert len(timed) == 1


@pytest.mark.parametrize(("batch_size", "parts"), [(8, 1), (64, 1), (128, 2), (512, 8)])
def test_the_time_is_that_of_the_batch_on_all_threads(
    batch_size: int, parts: int, timed: list[RunConfig]
) -> None:
    config = recipes.get("lsa-1")
    config = replace(config, train=replace(config.train, batch_size=batch_size))
    cost = StepCosts("cpu").of([config])
    assert cost.parameters == 7
    assert cost.seconds == batch_size / min(torch.get_num_threads(), parts)


def test_quick_steps_are_timed_on_a_part_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def quick(_: RunConfig, batch_size: int) -> tuple[int, float]:
        sizes.append(batch_size)
        return 7, 1e-3

    monkeypatch.setattr(estimate, "_time_one_thread", quick)
    StepCosts("cpu").of([recipes.get("lsa-1")])
    assert sizes == [4, 16, 64]


def test_a_rough_cost_counts_parameters_like_the_exact_one(short_config: RunConfig) -> None:
    rough, exact = StepCosts("cpu").of([short_config]), step_cost(short_config, "cpu")
    assert rough.parameters == exact.parameters
    assert rough.seconds > 0


def test_seeds_side_by_side_are_timed_together(short_config: RunConfig) -> None:
    configs = [replace(short_config, seed=seed) for seed in (0, 1)]
    assert StepCosts("cpu").of(configs).parameters == 6400


@pytest.mark.parametrize(
    ("recipe", "setting", "error", "message"),
    [
        ("mesa-1", "train.learning_rate=30", DivergedError, "ridge has the value"),
        ("tf-7-nonlinear", "task.normalisation=none", ConfigError, "states outgrow it"),
    ],
)
def test_what_would_end_the_training_is_said_as_there(
    recipe: str, setting: str, error: type[Exception], message: str
) -> None:
    config = override(recipes.get(recipe), [setting, "train.batch_size=4"])
    with pytest.raises(error, match=message):
        step_cost(config, "cpu")
    with pytest.raises(error, match=message):
        StepCosts("cpu").of([config])
