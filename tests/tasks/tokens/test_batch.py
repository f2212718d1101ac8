"""Batches of tokens: losses, places that are not scored, and the contract of the tasks on tokens."""

import pytest
import torch

from mesaopt.config import CopyingConfig, from_dict, to_dict
from mesaopt.tasks import IGNORE, Task, TokenBatch, make_task

CONFIGS = {"copying": CopyingConfig(alphabet=5, shortest=2, longest=4)}
every_task = pytest.mark.parametrize("name", CONFIGS)


def test_losses_are_negative_logarithms_of_the_probability_of_the_target() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64)
    targets = torch.tensor([[0, 6, IGNORE], [2, IGNORE, IGNORE]])
    batch = TokenBatch(torch.zeros(2, 5, dtype=torch.int64), targets, at=targets.clamp(0, 4))
    losses = batch.losses(logits)
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for row, place in ((0, 0), (0, 1), (1, 0)):
        wanted = -probabilities[row, place, targets[row, place]].log()
        torch.testing.assert_close(losses[row, place], wanted)
    assert losses[~batch.counted].tolist() == [0, 0, 0]
    by_sequence = torch.stack([losses[0, :2].mean(), losses[1, 0]])
    torch.testing.assert_close(batch.loss(logits), by_sequence.mean())
    torch.testing.assert_close(batch.loss(logits, total=True), losses.sum() / 2)


def test_the_loss_of_parts_adds_up_to_that_of_the_batch() -> None:
    batch = make_task(CONFIGS["copying"]).sample(7, seed=0)
    logits = torch.randn(7, 4, 7)
    parts = zip(batch.split(3), logits.split(3), strict=True)
    shares = [part.loss(own) * len(own) / 7 for part, own in parts]
    torch.testing.assert_close(sum(shares), batch.loss(logits))


def test_logits_of_another_shape_are_refused() -> None:
    batch = TokenBatch(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
    assert batch.arguments == {}
    with pytest.raises(ValueError, match=r"\(2, 4, 7\): must be \(2, 5, vocabulary\)"):
        batch.losses(torch.zeros(2, 4, 7))


@every_task
def test_a_batch_is_a_pure_function_of_seed_step_and_split(name: str) -> None:
    task = make_task(CONFIGS[name])
    first = task.sample(64, seed=3, step=5)
    task.sample(7, seed=1)
    assert first.tokens.equal(task.sample(64, seed=3, step=5).tokens)
    for changed in ({"seed": 4}, {"step": 6}, {"split": "test"}, {"split": "validation"}):
        other = task.sample(64, **({"seed": 3, "step": 5} | changed))
        assert not first.tokens.equal(other.tokens), changed


@every_task
def test_tokens_and_targets_are_in_the_vocabulary_and_scored_positions_in_the_sequence(
    name: str,
) -> None:
    config, batch = CONFIGS[name], make_task(CONFIGS[name]).sample(64, seed=0)
    assert batch.tokens.shape == (64, config.length)
    for tokens in (batch.tokens, batch.targets[batch.counted]):
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() < config.vocabulary
    assert batch.counted.any(1).all()
    if batch.at is None:
        assert batch.targets.shape == batch.tokens.shape
        shown, targets = batch.tokens[:, 1:], batch.targets[:, :-1]
        assert shown.equal(targets.where(batch.counted[:, :-1], shown))
    else:
        assert batch.at.shape == batch.targets.shape
        assert batch.at.min() >= 0
        assert batch.at.max() < config.length


@every_task
def test_settings_survive_json_and_make_their_task(name: str) -> None:
    config = CONFIGS[name]
    assert from_dict(type(config), to_dict(config)) == config
    assert isinstance(make_task(config), Task)


def test_a_string_is_copied_behind_the_separator() -> None:
    batch = make_task(CONFIGS["copying"]).sample(64, seed=0)
    lengths = set()
    columns = (x.tolist() for x in (batch.tokens, batch.targets, batch.at))
    for tokens, targets, at in zip(*columns, strict=True):
        count = tokens.index(5)
        lengths.add(count)
        assert tokens == [*tokens[:count], 5, *tokens[: count - 1]] + [6] * (8 - 2 * count)
        assert targets == tokens[:count] + [IGNORE] * (4 - count)
        assert at[:count] == list(range(count, 2 * count))
    assert lengths == {2, 3, 4}
