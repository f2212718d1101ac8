"""One optimiser step after another: optimisers, schedules, and the batches and losses of each seed."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.config import RunConfig, TrainConfig
from mesaopt.models import SequenceModel, join, make_model, separate, side_by_side
from mesaopt.tasks import Batch, make_task
from mesaopt.training.run_folder import Checkpoint, load_optimizer_tensors, optimizer_tensors

TEST_SEED = 0
"""Every run is tested on the same sequences, so that runs can be compared."""

_EVALUATION_BATCH = 256
_LARGEST_PART = 1024  # sequences that are differentiated at once; gradients of the parts add up


def learning_rate(config: TrainConfig, step: int) -> float:
    """Give the learning rate of one step.

    Constant, or a linear warm-up from 0 and then a cosine down to `final_learning_rate`:
    final + (peak - final) (1 + cos(pi x)) / 2, x = (step - warmup_steps) / (decay_steps - warmup_steps).

    Args:
        config: the schedule.
        step: 0 for the first one.

    Returns:
        The learning rate.

    Source: von Oswald et al., training details; `warmup_cosine_decay_schedule` of their code.

    Example:
        >>> config = TrainConfig(schedule="warmup_cosine", learning_rate=1e-3, warmup_steps=10)
        >>> [learning_rate(config, step) for step in (0, 5, 10, 10**6)]
        [0.0, 0.0005, 0.001, 1e-05]
    """
    if config.schedule == "constant":
        return config.learning_rate
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser of a run; the learning rate is set at every step.

    Args:
        config: which one.
        parameters: real or complex.

    Returns:
        AdamW, or gradient descent without momentum and decay. The gradient of a complex number x + iy is
        dL/dx + i dL/dy, so that a learning rate means what it does for x and y by themselves.

    Example:
        >>> type(make_optimizer(TrainConfig(), [nn.Parameter(torch.zeros(1))])).__name__
        'AdamW'
    """
    if config.optimizer == "gradient_descent":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    real = all(parameter.is_floating_point() for parameter in parameters)  # all that fused can do
    return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, fused=real)


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float) -> None:
    """Clip every element of every gradient to [-bound, bound], real and imaginary parts by themselves.

    Args:
        parameters: with or without gradients.
        bound: > 0.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
        >>> weight.grad = torch.tensor([3.0 - 0.5j])
        >>> clip_gradients([weight], 1.0)
        >>> weight.grad.item()
        (1-0.5j)
    """
    for gradient in (p.grad for p in parameters if p.grad is not None):
        parts = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        parts.clamp_(-bound, bound)


class Trainer:
    """One optimiser step at a time, for the loop and for whoever wants to time a step.

    Args:
        config: what to train.
        device: where.
        seeds: of the models to train side by side, see :func:`mesaopt.models.side_by_side`; that of the
            configuration alone if not given.

    Example:
        >>> from mesaopt import recipes
        >>> trainer = Trainer(recipes.get("lsa-1"), torch.device("cpu"))
        >>> round(trainer.step(0).item(), 1)  # predicts nothing yet
        1.7
    """

    def __init__(
        self, config: RunConfig, device: torch.device, *, seeds: Sequence[int] | None = None
    ):
        self.config, self.device = config, device
        self.seeds = (config.seed,) if seeds is None else tuple(seeds)
        self.task = make_task(config.task)
        models = [make_model(config.model, seed=seed) for seed in self.seeds]
        model = side_by_side(cast(list[SequenceModel], models)) if len(models) > 1 else models[0]
        self.model = model.to(device)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = make_optimizer(config.train, list(self.parameters.values()))

    def step(self, step: int) -> Float[Tensor, " seed"]:
        """Train on the batches of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The loss before the step, one per seed, on the device.
        """
        train = self.config.train
        self.optimizer.zero_grad()
        losses = torch.zeros(len(self.seeds), device=self.device)
        largest = max(1, _LARGEST_PART // len(self.seeds))
        for parts in zip(*(batch.split(largest) for batch in self._batches(step)), strict=True):
            shares = self._losses(parts) * (len(parts[0].tokens) / train.batch_size)
            shares.sum().backward()  # no model's loss depends on another's weights
            losses += shares.detach()
        if train.gradient_clip is not None:
            clip_gradients(self.parameters.values(), train.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self.optimizer.step()
        return losses

    @torch.no_grad()
    def test_losses(self) -> list[float]:
        """Score the models on the test sequences, the same ones every time."""
        total = self.config.train.evaluation_sequences
        sizes = [
            min(_EVALUATION_BATCH, total - done) for done in range(0, total, _EVALUATION_BATCH)
        ]
        losses = []
        for step, size in enumerate(sizes):
            batch = self.task.sample(
                size, seed=TEST_SEED, step=step, split="test", device=self.device
            )
            losses.append(self._losses([batch] * len(self.seeds)) * size)
        return [(own.sum() / total).item() for own in torch.stack(losses, dim=1)]

    def _batches(self, step: int) -> list[Batch]:
        return self._fixed_batches if self.config.train.data == "fixed" else self._draw(step)

    @functools.cached_property
    def _fixed_batches(self) -> list[Batch]:
        return self._draw(0)

    def _draw(self, step: int) -> list[Batch]:
        """Draw the batch that each seed has at this step, trained alone or not."""
        size = self.config.train.batch_size
        return [
            self.task.sample(size, seed=seed, step=step, device=self.device) for seed in self.seeds
        ]

    def _losses(self, batches: Sequence[Batch]) -> Float[Tensor, " seed"]:
        """Mean over sequences, and mean or sum over the scored positions."""
        tokens = torch.cat([batch.tokens for batch in batches], dim=-1)  # [B,T,seed*token]
        predictions = self.model(tokens).chunk(len(batches), dim=-1)
        losses = [batch.losses(own) for batch, own in zip(batches, predictions, strict=True)]
        if self.config.train.positions == "sum":
            losses = [own.sum(1) for own in losses]
        return torch.stack([own.mean() for own in losses])

    def checkpoints(self, step: int, seconds: float) -> list[Checkpoint]:
        """Take the state of each seed after `step` steps."""
        count = len(self.seeds)
        optimizer = optimizer_tensors(self.optimizer, self.parameters)
        states = separate(self.model.state_dict(), count), separate(optimizer, count)
        return [Checkpoint(step, seconds, *state) for state in zip(*states, strict=True)]

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Go back to the state of a checkpoint of each seed, all after the same number of steps."""
        self.model.load_state_dict(join([checkpoint.model for checkpoint in checkpoints]))
        optimizer = join([checkpoint.optimizer for checkpoint in checkpoints])
        load_optimizer_tensors(self.optimizer, self.parameters, optimizer)
