"""The training steps of one run, with its batches and losses; :mod:`mesaopt.training.loop` calls them."""

import contextlib
import functools
from collections.abc import Callable, Generator

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from mesaopt.config import RunConfig, Split
from mesaopt.errors import ConfigError
from mesaopt.models import make_model
from mesaopt.tasks import Batch, make_task
from mesaopt.tasks.tokens.base import num_settings
from mesaopt.training.environment import part_size_of, single_precision
from mesaopt.training.optimizer import Optimizer
from mesaopt.training.run_folder import Checkpoint
from mesaopt.training.tensors import trained_parameters
from mesaopt.workers import CALLING_THREAD, WHOLE_PART, Workers, training_workers

TEST_SEED = 0
"""Seed of the test sequences: the same for all runs, so that runs can be compared."""
TEST_BATCH = 256
"""Test sequences that are scored at once."""
MOST_LOGITS = 2**25
"""Logits that are computed at once in a test."""


def sequences_at_once(batch: Batch, vocabulary: int) -> int:
    """Say for how many sequences of a batch the logits at the scored positions fit into memory."""
    return max(1, MOST_LOGITS // (batch.targets.shape[1] * vocabulary))


class Data:
    """Training batches and test batches of one run, and the loss of predictions on them.

    Args:
        config: of the run.
        device: of the batches.

    Example:
        >>> from mesaopt import recipes
        >>> data = Data(recipes.get("lsa-1"), torch.device("cpu"))
        >>> data.batch(0).tokens.shape, len(data.test_batch(0).tokens), data.num_test_batches
        (torch.Size([256, 50, 40]), 256, 10)
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.task = make_task(config.task)
        self._settings = num_settings(self.task, "test")

    def batch(self, step: int) -> Batch:
        """Draw the batch of a training step.

        Args:
            step: 0 for the first one.

        Returns:
            `batch_size` sequences, the same at every step where the data are fixed.
        """
        return self._fixed if self.config.train.data == "fixed" else self._draw(step)

    @property
    def num_test_batches(self) -> int:
        """Number of batches of test sequences, as many of every setting that the task is tested with."""
        return self._settings * -(-self._tests_of_each // TEST_BATCH)

    @property
    def num_test_sequences(self) -> int:
        """Number of test sequences: `evaluation_sequences`, or the next that all settings share evenly."""
        return self._settings * self._tests_of_each

    @property
    def _tests_of_each(self) -> int:
        """Number of test sequences of every setting."""
        return -(-self.config.train.evaluation_sequences // self._settings)

    def test_batch(self, number: int) -> Batch:
        """Draw a batch of the test sequences, the same ones every time.

        Args:
            number: 0 for the first one.

        Returns:
            256 of the test sequences; the last batch of each setting may be smaller.
        """
        # Batches of one size, of which the last is cut: Text has no stretch twice in those.
        size = min(TEST_BATCH, self._tests_of_each)
        batch = self._sample(size, seed=TEST_SEED, step=number, split="test")
        left = self._tests_of_each - number // self._settings * TEST_BATCH
        return batch if left >= size else next(batch.split(left))

    def loss(
        self, batch: Batch, predictions: Inexact[Tensor, "batch time dim"]
    ) -> Float[Tensor, ""]:
        """Score predictions.

        Args:
            batch: the sequences.
            predictions: at every position, [batch, time, dim]; of tokens, logits at the scored ones.

        Returns:
            The mean over sequences of the squared error or the cross-entropy, and its mean or sum over the
            scored positions.
        """
        if predictions.dtype == torch.bfloat16:
            predictions = predictions.float()
        return batch.loss(predictions, total=self.config.train.positions == "sum")

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Return the context that a model predicts in: autocast where the settings have bfloat16."""
        if self.config.train.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @functools.cached_property
    def _fixed(self) -> Batch:
        return self._draw(0)

    def _draw(self, step: int) -> Batch:
        size, seed = self.config.train.batch_size, self.config.seed
        return self._sample(size, seed=seed, step=step, split="train")

    def _sample(self, size: int, *, seed: int, step: int, split: Split) -> Batch:
        """Draw a batch; an error is no ValueError, which those of weights that diverge are."""
        try:
            return self.task.sample(size, seed=seed, step=step, split=split).to(self.device)
        except ConfigError:
            raise
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise RuntimeError(f"task.sample(step={step}, split={split!r}): {error}") from error


class Trainer:
    """Training steps of one run, for the loop and for whoever wants to time a step.

    Args:
        config: of the run.
        device: where to compute.
        part_size: sequences that are differentiated at once; their gradients are added in order.
        workers: compute the parts, on the CPU; the calling thread alone if not given.

    Example:
        >>> from mesaopt import recipes
        >>> trainer = Trainer(recipes.get("lsa-1"), torch.device("cpu"))
        >>> round(trainer.step(0).item(), 1)  # predicts nothing yet
        1.7
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        *,
        part_size: int = WHOLE_PART,
        workers: Workers = CALLING_THREAD,
    ):
        self.config, self.device = config, device
        self.part_size, self.workers = part_size, workers
        self.data = Data(config, device)
        with single_precision():
            self.model = make_model(config.model, seed=config.seed).to(device)
        self.parameters = trained_parameters(self.model)
        self.optimizer = Optimizer(config.train, self.parameters)
        self._next: tuple[int, Callable[[], Batch]] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, config: RunConfig, device: torch.device, *, size: int | None = None
    ) -> Generator["Trainer"]:
        """Make a trainer, on the CPU with as many workers as torch computes with.

        Args:
            config: of the run.
            device: where to compute.
            size: of a part on the CPU; that of a new run if not given.

        Yields:
            The trainer, whose workers end with the block.
        """
        if device.type != "cpu":
            yield cls(config, device)
            return
        size = part_size_of(config) if size is None else size
        with training_workers(torch.get_num_threads()) as workers:
            yield cls(config, device, part_size=size, workers=workers)

    def step(self, step: int) -> Float[Tensor, ""]:
        """Train on the batch of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The loss before the step, on the device.
        """
        parts = list(self._batch(step).split(self.part_size))
        ahead = self.workers.later(self.data.batch, step + 1) if self.workers.pool else None
        results = list(self.workers.map(self._differentiate, parts))
        self._next = None if ahead is None else (step + 1, ahead)
        loss, gradients = results[0]
        for part_loss, part_gradients in results[1:]:
            loss = loss + part_loss
            # Not in place: autograd may give two parameters the same tensor.
            gradients = [a + b for a, b in zip(gradients, part_gradients, strict=True)]
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step(step)
        return loss

    def _batch(self, step: int) -> Batch:
        """Take the batch that was drawn ahead, or draw it."""
        if self._next is not None and self._next[0] == step:
            return self._next[1]()
        return self.data.batch(step)

    def _differentiate(self, part: Batch) -> tuple[Float[Tensor, ""], list[Tensor]]:
        """Compute the share that a part has in the loss and its gradients."""
        share = len(part.tokens) / self.config.train.batch_size
        loss = self._loss(part) * share
        gradients = torch.autograd.grad(
            loss, list(self.parameters.values()), allow_unused=True, materialize_grads=True
        )
        return loss.detach(), list(gradients)

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Let the model predict, and compute its mean loss."""
        with self.data.precision():
            predictions = self.model(batch.tokens, **batch.arguments)
        return self.data.loss(batch, predictions)

    def test_loss(self) -> float:
        """Return the mean loss of the test sequences."""
        losses = list(self.workers.map(self._test_loss, range(self.data.num_test_batches)))
        return (torch.stack(losses).sum() / self.data.num_test_sequences).item()

    @torch.no_grad()
    def _test_loss(self, number: int) -> Float[Tensor, ""]:
        """Compute the sum of the losses of a batch of test sequences."""
        batch = self.data.test_batch(number)
        parts = batch.split(self._scored_at_once(batch))
        losses = [self._loss(part) * len(part.tokens) for part in parts]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _scored_at_once(self, batch: Batch) -> int:
        """Say for how many test sequences the logits fit into memory, where predictions are logits."""
        vocabulary = getattr(self.config.task, "vocabulary", None)
        return len(batch.tokens) if vocabulary is None else sequences_at_once(batch, vocabulary)

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
