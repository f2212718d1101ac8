"""The contract of every task on tokens: pure batches, vocabularies, targets, orders, settings."""

import re
from dataclasses import replace

import pytest
import torch

from mesaopt import recipes
from mesaopt.config import (
    ContinuousMQARConfig,
    from_dict,
    to_dict,
)
from mesaopt.recipes.token_tasks import TOKEN_TASKS
from mesaopt.tasks import IGNORE, DrawnSequences, Task, make_task
from mesaopt.tasks.tokens.order import shuffled


def smaller(config):
    """Draw fewer training sequences, which takes less time."""
    if getattr(config, "examples", None) is None:
        return config
    also = getattr(config, "train_also", None)
    fewer = {} if also is None else {"train_also": tuple((*some, 70) for *some, _ in also)}
    return replace(config, examples=100, **fewer)


CONFIGS = {name: smaller(config) for name, config in TOKEN_TASKS.items()}
every_task = pytest.mark.parametrize("name", CONFIGS)
every_discrete_task = pytest.mark.parametrize(
    "name", [name for name in CONFIGS if not isinstance(CONFIGS[name], ContinuousMQARConfig)]
)


@pytest.fixture(scope="module")
def task_of():
    """Make each task once."""
    made = {}

    def make(name: str):
        if name not in made:
            made[name] = make_task(CONFIGS[name])
        return made[name]

    return make


def test_every_task_has_a_name() -> None:
    assert TOKEN_TASKS.items() <= recipes.TASKS.items()


@every_task
def test_a_batch_is_a_pure_function_of_seed_step_and_split(name: str, task_of) -> None:
    first = task_of(name).sample(32, seed=3, step=5)
    other_object = make_task(CONFIGS[name])
    other_object.sample(7, seed=1)  # nothing is carried from one call to the next
    again = other_object.sample(32, seed=3, step=5)
    for tensor, same in zip(first.tensors.values(), again.tensors.values(), strict=True):
        assert tensor.equal(same)
    for changed in ({"seed": 4}, {"step": 6}, {"split": "test"}, {"split": "validation"}):
        other = task_of(name).sample(32, **({"seed": 3, "step": 5} | changed))
        assert not first.tokens.equal(other.tokens), changed


@every_task
def test_the_batches_of_several_ranks_are_those_of_one(name: str, task_of) -> None:
    alone = [task_of(name).sample(8, seed=0, step=step).tokens for step in range(4)]
    for step in range(2):
        for rank in range(2):
            batch = task_of(name).sample(8, seed=0, step=step, rank=rank, ranks=2)
            assert batch.tokens.equal(alone[2 * step + rank])
    with pytest.raises(ValueError, match="rank=2: must be between 0 and 1"):
        task_of(name).sample(8, seed=0, rank=2, ranks=2)


@every_discrete_task
def test_tokens_and_targets_are_in_the_vocabulary_and_scored_positions_in_the_sequence(
    name: str, task_of
) -> None:
    for split in ("train", "test"):
        config, batch = CONFIGS[name], task_of(name).sample(64, seed=0, split=split)
        for tokens in (batch.tokens, batch.targets[batch.counted]):
            assert tokens.dtype == torch.int64
            assert tokens.min() >= 0
            assert tokens.max() < config.vocabulary
        assert batch.counted.any(1).all()
        if batch.at is None:
            assert batch.targets.shape == batch.tokens.shape
        else:
            assert batch.at.shape == batch.targets.shape
            assert batch.at.min() >= 0
            assert batch.at.max() < batch.tokens.shape[1]
            # Only the places that count are in order; behind them there is nothing.
            later = batch.at.diff() > 0
            assert later[batch.counted[:, 1:]].all()


@pytest.mark.parametrize(
    "name", ["text-stdlib", *(f"mad-{kind}-recall" for kind in ("in-context", "fuzzy", "noisy"))]
)
def test_the_next_token_is_the_target_where_all_are_trained_on(name: str, task_of) -> None:
    batch = task_of(name).sample(16, seed=0)
    assert batch.at is None
    assert batch.targets[:, :-1].equal(batch.tokens[:, 1:])


@every_task
def test_a_batch_is_shown_by_its_shapes(name: str, task_of) -> None:
    shown = repr(task_of(name).sample(2, seed=0))
    assert re.match(r"\w+\(tokens=\w+ \[2, ", shown)
    assert "tensor(" not in shown
    assert "\n" not in shown


@every_task
def test_the_parts_of_a_batch_are_the_batch(name: str, task_of) -> None:
    batch = task_of(name).sample(7, seed=0)
    parts = list(batch.split(3))
    assert [len(part.tokens) for part in parts] == [3, 3, 1]
    for field, tensor in batch.tensors.items():
        assert torch.cat([getattr(part, field) for part in parts]).equal(tensor)


@every_task
def test_settings_survive_json_and_make_their_task(name: str, task_of) -> None:
    config = TOKEN_TASKS[name]
    assert from_dict(type(config), to_dict(config)) == config
    assert isinstance(task_of(name), Task)


@every_task
def test_what_cannot_be_sampled_is_refused(name: str, task_of) -> None:
    for changes, message in (
        ({"batch_size": 0}, "batch_size=0: must be 1 or greater"),
        ({"seed": -1}, "seed=-1: must be between 0"),
        ({"step": -1}, "step=-1: must be between 0"),
        ({"step": 1.5}, "step=1.5: must be a whole number"),
        ({"split": "tset"}, "split='tset': did you mean 'test'?"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            task_of(name).sample(**({"batch_size": 2, "seed": 0} | changes))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, config in CONFIGS.items()
        if getattr(config, "examples", None) and not getattr(config, "train_also", ())
    ],
)
def test_an_epoch_shows_each_of_a_limited_number_of_sequences_once(name: str) -> None:
    task = make_task(replace(CONFIGS[name], examples=24))
    epochs = [
        torch.cat([task.sample(8, seed=0, step=3 * epoch + step).tokens for step in range(3)])
        for epoch in range(2)
    ]
    assert not epochs[0].equal(epochs[1])
    sets = [sorted(map(tuple, epoch.tolist())) for epoch in epochs]
    assert sets[0] == sets[1]
    fresh = make_task(replace(CONFIGS[name], examples=None))
    assert not fresh.sample(24, seed=0).tokens.equal(fresh.sample(24, seed=0, step=1).tokens)


def test_an_epoch_shows_the_sequences_of_each_group_and_mixes_groups() -> None:
    sizes, batch = [10, 4, 1], 2
    for seed in range(3):
        groups, seen = [], {0: [], 1: [], 2: []}
        for number in range(5 + 2 + 1):
            epoch, group, which = shuffled(number, batch, sizes, seed=seed, stream="test")
            assert epoch == 0
            groups.append(group)
            seen[group] += which.tolist()
        assert sorted(seen[0]) == list(range(10))
        assert sorted(seen[1]) == list(range(4))
        assert seen[2] == [0, 0]
        assert groups != sorted(groups)
    assert shuffled(8, batch, sizes, seed=0, stream="test")[0] == 1


def test_tests_of_several_settings_come_in_turn() -> None:
    config = CONFIGS["mqar-based"]
    task = make_task(config)
    for step, (length, pairs) in enumerate(config.test_on * 2):
        batch = task.sample(2, seed=0, step=step, split="test")
        assert batch.tokens.shape == (2, length)
        assert batch.targets.shape == (2, pairs)
    lengths = {task.sample(4, seed=0, step=step).tokens.shape[1] for step in range(60)}
    assert lengths == {64, 128, 256}


def test_targets_stay_in_their_rows_where_numbers_of_scored_places_differ() -> None:
    targets = torch.full((3, 5), IGNORE)
    targets[0, 2], targets[2, 1], targets[2, 4] = 7, 8, 9
    tokens = torch.arange(15).view(3, 5)
    batch = DrawnSequences(tokens.numpy(), targets.numpy()).batch()
    assert batch.at.tolist() == [[2, 0], [0, 0], [1, 4]]
    assert batch.targets.tolist() == [[7, IGNORE], [IGNORE, IGNORE], [8, 9]]


def test_batches_of_a_limited_number_of_sequences_do_not_depend_on_those_before() -> None:
    config = replace(recipes.TASKS["mad-selective-copying"], examples=20, length=24, copied=4)
    batches = [make_task(config).sample(8, seed=0, step=step) for step in range(6)]
    later = make_task(config)
    for step in (3, 4, 5):
        batch = later.sample(8, seed=0, step=step)
        assert batch.tokens.equal(batches[step].tokens)
        assert batch.targets.equal(batches[step].targets)
