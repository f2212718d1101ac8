"""The training steps of one run, with its batches and losses; :mod:`mesaopt.training.loop` calls them."""

import functools
from collections.abc import Iterator

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from mesaopt.config import RunConfig
from mesaopt.models import make_model
from mesaopt.tasks import Batch, make_task
from mesaopt.training.optimizer import Optimizer
from mesaopt.training.run_folder import Checkpoint

TEST_SEED = 0
"""Seed of the test sequences: the same for all runs, so that runs can be compared."""
TEST_BATCH = 256
"""Test sequences that are scored at once."""
LARGEST_PART = 1024
"""Training sequences that are differentiated at once; the gradients of larger batches are added up."""


class Data:
    """Training batches and test batches of one run, and the loss of predictions on them.

    Args:
        config: of the run.
        device: of the batches.

    Example:
        >>> from mesaopt import recipes
        >>> data = Data(recipes.get("lsa-1"), torch.device("cpu"))
        >>> data.batch(0).tokens.shape, [len(batch.tokens) for batch in data.test_batches()][:2]
        (torch.Size([256, 50, 40]), [256, 256])
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.task = make_task(config.task)

    def batch(self, step: int) -> Batch:
        """Draw the batch of a training step.

        Args:
            step: 0 for the first one.

        Returns:
            `batch_size` sequences, the same at every step where the data are fixed.
        """
        return self._fixed if self.config.train.data == "fixed" else self._draw(step)

    def test_batches(self) -> Iterator[Batch]:
        """Draw the test sequences, the same ones every time.

        Yields:
            `evaluation_sequences` sequences in batches of 256; the last may be smaller.
        """
        total = self.config.train.evaluation_sequences
        for step, done in enumerate(range(0, total, TEST_BATCH)):
            size = min(TEST_BATCH, total - done)
            yield self.task.sample(
                size, seed=TEST_SEED, step=step, split="test", device=self.device
            )

    def loss(
        self, batch: Batch, predictions: Inexact[Tensor, "batch time dim"]
    ) -> Float[Tensor, ""]:
        """Score predictions.

        Args:
            batch: the sequences.
            predictions: at every position, [batch, time, dim].

        Returns:
            The squared error: its mean over sequences, and its mean or sum over the scored positions.
        """
        losses = batch.losses(predictions)
        if self.config.train.positions == "sum":
            losses = losses.sum(1)
        return losses.mean()

    @functools.cached_property
    def _fixed(self) -> Batch:
        return self._draw(0)

    def _draw(self, step: int) -> Batch:
        size = self.config.train.batch_size
        return self.task.sample(size, seed=self.config.seed, step=step, device=self.device)


class Trainer:
    """Training steps of one run, for the loop and for whoever wants to time a step.

    Args:
        config: of the run.
        device: where to compute.

    Example:
        >>> from mesaopt import recipes
        >>> trainer = Trainer(recipes.get("lsa-1"), torch.device("cpu"))
        >>> round(trainer.step(0).item(), 1)  # predicts nothing yet
        1.7
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.data = Data(config, device)
        self.model = make_model(config.model, seed=config.seed).to(device)
        self.optimizer = Optimizer(config.train, dict(self.model.named_parameters()))

    def step(self, step: int) -> Float[Tensor, ""]:
        """Train on the batch of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The loss before the step, on the device.
        """
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        for part in self.data.batch(step).split(LARGEST_PART):
            share = len(part.tokens) / self.config.train.batch_size
            part_loss = self.data.loss(part, self.model(part.tokens)) * share
            part_loss.backward()
            loss += part_loss.detach()
        self.optimizer.step(step)
        return loss

    @torch.no_grad()
    def test_loss(self) -> float:
        """Return the mean loss of the test sequences."""
        losses = [
            self.data.loss(batch, self.model(batch.tokens)) * len(batch.tokens)
            for batch in self.data.test_batches()
        ]
        return (torch.stack(losses).sum() / self.config.train.evaluation_sequences).item()

    def checkpoint(self, step: int, seconds: float) -> Checkpoint:
        """Return the state after some steps.

        Args:
            step: number of steps done.
            seconds: training time so far.

        Returns:
            The weights and the state of the optimiser, not copied.
        """
        return Checkpoint(step, seconds, self.model.state_dict(), self.optimizer.state())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Args:
            checkpoint: of this run, with the state of the optimiser.
        """
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state(checkpoint.optimizer)
