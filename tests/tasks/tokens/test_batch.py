"""Batches of tokens: losses, accuracies, and places that are not scored."""

import pytest
import torch

from mesaopt.config import CopyingConfig
from mesaopt.tasks import IGNORE, TokenBatch, macro_accuracy, make_task


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
    batch = make_task(CopyingConfig(alphabet=5, shortest=2, longest=4)).sample(7, seed=0)
    logits = torch.randn(7, 4, 9)
    parts = zip(batch.split(3), logits.split(3), strict=True)
    shares = [part.loss(own) * len(own) / 7 for part, own in parts]
    torch.testing.assert_close(sum(shares), batch.loss(logits))


def test_logits_of_another_shape_are_refused() -> None:
    batch = TokenBatch(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
    assert batch.arguments == {}
    with pytest.raises(ValueError, match=r"\(2, 4, 7\): must be \(2, 5, vocabulary\)"):
        batch.losses(torch.zeros(2, 4, 7))


def test_accuracy_counts_the_scored_places_alone() -> None:
    targets = torch.tensor([[0, 1, IGNORE], [2, 2, 2]])
    batch = TokenBatch(torch.zeros(2, 5, dtype=torch.int64), targets, at=targets.clamp(0, 4))
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 0], [2, 1, 3]]), 5).float()
    assert batch.accuracy(logits).tolist() == [[True, False, False], [True, False, False]]
    # Token 0 is right once of once, 1 never of once, 2 once of three, 3 is predicted and never right.
    assert macro_accuracy(logits, targets) == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\): must be \(2, 3, vocabulary\)"):
        batch.accuracy(torch.zeros(2, 4, 5))
