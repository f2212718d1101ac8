"""MQAR, overwriting and continuous MQAR: what their published descriptions say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesaopt import recipes
from mesaopt.config import MQARConfig
from mesaopt.tasks import MQAR, ContinuousMQAR, make_task
from mesaopt.tasks.tokens.drawing import choose_distinct, choose_weighted


def within(count: int, total: int, probability: float) -> bool:
    """Whether a count is as binomial ones are, five standard deviations at most from the mean."""
    spread = (total * probability * (1 - probability)) ** 0.5
    return abs(count - total * probability) <= 5 * spread


def test_distinct_numbers_are_distinct_and_all_orders_are_alike() -> None:
    rows = choose_distinct(np.random.default_rng(0), batch_size=6000, size=4, count=3)
    orders, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(orders) == 4 * 3 * 2
    assert all(len(set(order)) == 3 for order in orders.tolist())
    assert all(within(count, 6000, 1 / 24) for count in counts)


def test_weighted_numbers_come_one_after_the_other_in_proportion() -> None:
    weights = np.array([1.0, 2.0, 5.0])
    rows = choose_weighted(np.random.default_rng(0), weights, batch_size=8000, count=2)
    for first in range(3):
        assert within((rows[:, 0] == first).sum(), 8000, weights[first] / 8)
        for second in set(range(3)) - {first}:
            both = weights[first] / 8 * weights[second] / (8 - weights[first])
            assert within((rows == [first, second]).all(1).sum(), 8000, both)


@pytest.mark.parametrize("fill", ["zero", "random"])
def test_mqar_shows_pairs_and_asks_for_each_key_once(fill: str) -> None:
    task = MQAR(vocabulary=64, length=32, pairs=5, fill=fill, examples=None)
    batch = task.sample(500, seed=0)
    keys, values = batch.tokens[:, 0:10:2], batch.tokens[:, 1:10:2]
    assert keys.min() == 1
    assert keys.max() == 31
    assert values.min() == 32
    assert values.max() == 63
    for row in range(500):
        value_of = dict(zip(keys[row].tolist(), values[row].tolist(), strict=True))
        assert len(value_of) == len(set(value_of.values())) == 5
        asked = batch.tokens[row, batch.at[row]].tolist()
        assert sorted(asked) == sorted(value_of)
        assert batch.targets[row].tolist() == [value_of[key] for key in asked]
    assert (batch.at % 2 == 0).all()
    assert batch.at.min() == 10
    nothing = torch.ones(500, 32, dtype=torch.bool)
    nothing[:, :10] = False
    nothing.scatter_(1, batch.at, False)
    others = batch.tokens[nothing]
    if fill == "zero":
        assert (others == 0).all()
    else:
        assert all(within(int((others == n).sum()), len(others), 1 / 64) for n in (0, 1, 33, 63))


def test_queries_stand_where_the_power_law_puts_them() -> None:
    """One query: its slot i has probability i^(a - 1), normalised."""
    for power in (0.01, 1.0):
        batch = MQAR(length=18, pairs=1, power=power, examples=None).sample(6000, seed=0)
        slots = np.bincount((batch.at[:, 0] - 2) // 2, minlength=8)
        weights = np.arange(1, 9) ** (power - 1)
        for count, share in zip(slots, weights / weights.sum(), strict=True):
            assert within(count, 6000, share)


def test_overwritten_keys_are_asked_for_their_last_value() -> None:
    task = MQAR(vocabulary=20, length=40, pairs=5, updates=3, examples=None)
    batch = task.sample(400, seed=0)
    changed = np.zeros(5)
    for tokens, at, targets in zip(batch.tokens, batch.at, batch.targets, strict=True):
        pairs = tokens[:16].view(8, 2).tolist()
        first, later = dict(pairs[:5]), dict(pairs[5:])
        assert len(later) == 3
        assert all(later[key] != first[key] for key in later)
        assert [(first | later)[key] for key in tokens[at].tolist()] == targets.tolist()
        changed += [key in later for key, _ in pairs[:5]]
    assert all(within(int(count), 400, 3 / 5) for count in changed)


def test_published_settings_of_mqar() -> None:
    based = recipes.TASKS["mqar-based"]
    variants = MQAR(based).variants("train")
    sizes = [(v.length, v.pairs, v.examples) for v in variants]
    assert sizes == [
        (64, 4, 100_000),
        (128, 8, 20_000),
        (256, 16, 20_000),
        (256, 32, 20_000),
        (256, 64, 20_000),
    ]
    assert {v.fill for v in variants} == {"random"}
    assert based.test_on == (
        (64, 4),
        (64, 8),
        (64, 16),
        (128, 32),
        (256, 64),
        (512, 128),
        (1024, 256),
    )
    for name, length, pairs in (("64-4", 64, 4), ("128-8", 128, 8), ("256-16", 256, 16)):
        config = recipes.TASKS[f"mqar-{name}"]
        assert (config.length, config.pairs) == (length, pairs)
        assert (config.vocabulary, config.fill, config.examples) == (8192, "zero", 100_000)


def test_published_settings_of_overwriting_and_continuous_recall() -> None:
    overwriting = recipes.TASKS["mqar-overwriting"]
    assert (overwriting.length, overwriting.pairs, overwriting.examples) == (64, 4, 100_000)
    assert (overwriting.vocabulary, overwriting.fill, overwriting.updates) == (8192, "random", 4)
    more = ((128, 9), (256, 16), (256, 25), (256, 36))
    assert overwriting.train_also == tuple((*setting, 20_000) for setting in more)
    squares = ((64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256))
    assert overwriting.test_on == ((64, 4), *squares)
    continuous = recipes.TASKS["mqar-continuous"]
    assert (continuous.dim, continuous.codes, continuous.passes) == (64, 8192, 1)
    assert (continuous.pairs, continuous.examples) == (4, 100_000)
    assert continuous.train_also == tuple((pairs, 20_000) for pairs in (8, 16, 32, 64))
    assert continuous.test_on == (4, 8, 16, 32, 64, 128, 256)


def test_continuous_recall_shows_codes_and_asks_with_keys_alone() -> None:
    task = ContinuousMQAR(dim=12, pairs=3, passes=2, codes=20)
    batch = task.sample(50, seed=0)
    codes = batch.codes
    assert codes.keys.shape == codes.values.shape == (10, 12)
    torch.testing.assert_close(codes.keys.norm(dim=-1), torch.ones(10))
    keys, values = batch.tokens.chunk(2, dim=-1)
    which_key = (keys @ codes.keys.mT).argmax(-1)
    assert keys.equal(codes.keys[which_key])
    assert (values[:, 6:] == 0).all()
    which_value = (values[:, :6] @ codes.values.mT).argmax(-1)
    assert values[:, :6].equal(codes.values[which_value])
    for row in range(50):
        pairs = list(zip(which_key[row, :6].tolist(), which_value[row].tolist(), strict=True))
        value_of = dict(pairs)
        assert len(value_of) == len(set(value_of.values())) == 3
        assert sorted(pairs[:3]) == sorted(pairs[3:])
        asked = which_key[row, 6:].tolist()
        assert batch.answers[row].tolist() == [value_of[key] for key in asked]
    assert batch.targets[:, 6:].equal(codes.values[batch.answers])
    assert (batch.targets[:, :6] == 0).all()
    assert list(batch.positions) == [7, 8, 9]


def test_continuous_recall_is_scored_by_the_values_or_by_the_squared_error() -> None:
    task = ContinuousMQAR(dim=12, pairs=3, codes=20)
    batch = task.sample(50, seed=0)
    prediction = torch.randn(50, 6, 12)
    logits = prediction[:, 3:] @ batch.codes.values.mT
    wanted = logits.logsumexp(-1) - logits.gather(-1, batch.answers[..., None]).squeeze(-1)
    torch.testing.assert_close(batch.losses(prediction), wanted)
    assert batch.accuracy(prediction).equal(logits.argmax(-1) == batch.answers)
    squared = make_task(replace(task.config, loss="squared_error")).sample(50, seed=0)
    assert squared.tokens.equal(batch.tokens)
    error = (prediction - batch.targets)[:, 3:].square().sum(-1) / 2
    torch.testing.assert_close(squared.losses(prediction), error)
    with pytest.raises(ValueError, match="must be the same"):
        batch.losses(prediction[:, :, :5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 63}, "length=63: must be even"),
        ({"length": 16, "pairs": 5}, "pairs=5: must be 4 or less"),
        ({"length": 16, "pairs": 4, "updates": 1}, "pairs=4: must be 3 or less"),
        ({"pairs": 2, "updates": 3}, "updates=3: must be at most pairs=2"),
        ({"vocabulary": 8}, "pairs=4: must be less than half of vocabulary=8"),
        ({"test_on": ((16, 5),)}, "test_on: pairs=5: must be 4 or less"),
        ({"test_on": ((63, 4),)}, "test_on: length=63: must be even"),
        ({"updates": 4, "test_on": ((64, 3),)}, "test_on: updates=4: must be at most pairs=3"),
        (
            {"updates": 4, "train_also": ((64, 3, 5),)},
            "train_also: updates=4: must be at most pairs=3",
        ),
        (
            {"vocabulary": 16, "test_on": ((64, 9),)},
            "test_on: pairs=9: must be less than half of vocabulary=16",
        ),
        ({"train_also": ((16, 4),)}, r"train_also: \(16, 4\): must be \(length, pairs, examples\)"),
        ({"examples": 0}, "examples=0: must be greater than 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MQARConfig(**settings)
