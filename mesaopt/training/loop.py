"""The training loop: one optimiser step after another, evaluation and a checkpoint every so often."""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mesaopt import files
from mesaopt.config import RunConfig, TrainConfig
from mesaopt.errors import InitialisationWarning, RunError, SolveError
from mesaopt.models import Model, make_model
from mesaopt.tasks import Batch, make_task
from mesaopt.training.environment import resolve_device
from mesaopt.training.run_folder import (
    Checkpoint,
    RunFolder,
    load_optimizer_tensors,
    optimizer_tensors,
)

Report = Callable[[int, float], None]
"""Told the steps done and the newest training loss, now and then."""

TEST_SEED = 0
"""Every run is tested on the same sequences, so that runs can be compared."""

_EVALUATION_BATCH = 256
_LARGEST_PART = 1024  # sequences that are differentiated at once; gradients of the parts add up
_REPORT_EVERY = 10


class DivergedError(RunError):
    """The loss is no longer a number, or a ridge left its range; the run has failed."""

    exit_status = 1


@dataclass(frozen=True)
class Run:
    """A trained model and where it came from."""

    path: Path
    config: RunConfig
    model: Model
    metrics: list[dict[str, Any]]
    """One entry per evaluation: step, train_loss, test_loss, learning_rate."""
    seconds: float
    """Training time, over all sittings."""


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    report: Report | None = None,
) -> Run:
    """Train a model in a run folder.

    The folder is whole at every moment: after Ctrl-C, a kill or a full disk, `resume=True` goes on from
    the newest checkpoint and gives the numbers of an uninterrupted run, on the CPU bit for bit. A run
    that has ended is loaded, not repeated.

    Args:
        config: what to train.
        out: folder of the run, new or empty unless resumed.
        resume: continue the run in `out` if there is one.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        report: told the progress; None for silence.

    Returns:
        The trained model with its metrics.

    Raises:
        RunError: the folder, a checkpoint or the device does not allow it, or the disk is full.
        DivergedError: the loss is no longer a number.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from mesaopt import recipes
        >>> config = recipes.get("lsa-1")
        >>> short = replace(config.train, steps=2, batch_size=4, evaluation_sequences=4)
        >>> run = train(replace(config, train=short), tempfile.mkdtemp(), device="cpu")
        >>> [line["step"] for line in run.metrics]
        [0, 2]
    """
    where = resolve_device(device)
    folder = RunFolder.open(Path(out), config, resume=resume)
    if not folder.is_done:
        with files.only_one_process(folder.path), _num_threads(folder.meta["num_threads"]):
            _train_in(folder, config, where, report)
    return load_run(folder.path, device=device)


def load_run(path: str | Path, *, step: int | None = None, device: str = "auto") -> Run:
    """Load the model of a run.

    Args:
        path: folder of the run.
        step: of the weights; the newest if not given.
        device: where to put the model.

    Returns:
        The run; its metrics are all there are.

    Raises:
        RunError: there is no run, or a file of it is damaged.
        ConfigError: its configuration has an unknown key or a wrong value.
    """
    folder = RunFolder(Path(path))
    config, checkpoint = folder.config, folder.load(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InitialisationWarning)  # about weights that are replaced
        model = make_model(config.model)
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise RunError(f"{path}: the weights do not fit config.json: {error}") from None
    model.to(resolve_device(device))
    return Run(folder.path, config, model, folder.metrics, checkpoint.seconds)


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

    Example:
        >>> from mesaopt import recipes
        >>> trainer = Trainer(recipes.get("lsa-1"), torch.device("cpu"))
        >>> round(trainer.step(0).item(), 1)  # predicts nothing yet
        1.7
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.task = make_task(config.task)
        self.model = make_model(config.model, seed=config.seed).to(device)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = make_optimizer(config.train, list(self.parameters.values()))

    def step(self, step: int) -> Tensor:
        """Train on the batch of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The loss before the step, a scalar on the device.
        """
        train = self.config.train
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        for part in self._batch(step).split(_LARGEST_PART):
            share = self._loss(part) * (len(part.tokens) / train.batch_size)
            share.backward()
            loss += share.detach()
        if train.gradient_clip is not None:
            clip_gradients(self.parameters.values(), train.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def test_loss(self) -> float:
        """Score the model on the test sequences, the same ones every time."""
        total = self.config.train.evaluation_sequences
        sizes = [
            min(_EVALUATION_BATCH, total - done) for done in range(0, total, _EVALUATION_BATCH)
        ]
        losses = []
        for step, size in enumerate(sizes):
            batch = self.task.sample(
                size, seed=TEST_SEED, step=step, split="test", device=self.device
            )
            losses.append(self._loss(batch) * size)
        return (torch.stack(losses).sum() / total).item()

    def _batch(self, step: int) -> Batch:
        return self._fixed_batch if self.config.train.data == "fixed" else self._draw(step)

    @functools.cached_property
    def _fixed_batch(self) -> Batch:
        return self._draw(0)

    def _draw(self, step: int) -> Batch:
        size, seed = self.config.train.batch_size, self.config.seed
        return self.task.sample(size, seed=seed, step=step, device=self.device)

    def _loss(self, batch: Batch) -> Tensor:
        """Mean over sequences, and mean or sum over the scored positions."""
        losses = batch.losses(self.model(batch.tokens))
        return losses.sum(1).mean() if self.config.train.positions == "sum" else losses.mean()

    def checkpoint(self, step: int, seconds: float) -> Checkpoint:
        """Take the state after `step` steps."""
        optimizer = optimizer_tensors(self.optimizer, self.parameters)
        return Checkpoint(step, seconds, self.model.state_dict(), optimizer)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the state of a checkpoint."""
        self.model.load_state_dict(checkpoint.model)
        load_optimizer_tensors(self.optimizer, self.parameters, checkpoint.optimizer)


def _train_in(
    folder: RunFolder, config: RunConfig, device: torch.device, report: Report | None
) -> None:
    train, trainer = config.train, Trainer(config, device)
    checkpoint = folder.rewind()
    step, seconds_before = 0, 0.0
    if checkpoint is not None:
        trainer.restore(checkpoint)
        step, seconds_before = checkpoint.step, checkpoint.seconds
    started = time.perf_counter()
    losses: list[Tensor] = []
    while True:
        due = step % train.evaluate_every == 0 or step == train.steps
        if due and (checkpoint is None or step > checkpoint.step):
            folder.log(_evaluate(trainer, step, losses))
            folder.save(trainer.checkpoint(step, seconds_before + time.perf_counter() - started))
            losses = []
        if step == train.steps:
            break
        with _clear_divergence(step):
            losses.append(trainer.step(step))
        step += 1
        if report is not None and (step % _REPORT_EVERY == 0 or step == train.steps):
            report(step, losses[-1].item())
    folder.finish(train.steps, seconds_before + time.perf_counter() - started)


def _evaluate(trainer: Trainer, step: int, losses: list[Tensor]) -> dict[str, Any]:
    with _clear_divergence(step):
        test_loss = trainer.test_loss()
    train_loss = torch.stack(losses).mean().item() if losses else None
    if not math.isfinite(test_loss) or not math.isfinite(train_loss or 0.0):
        values = f"training loss {train_loss}, test loss {test_loss}"
        raise DivergedError(f"step {step}: {values}; lower train.learning_rate")
    return {
        "step": step,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "learning_rate": learning_rate(trainer.config.train, step),
    }


@contextlib.contextmanager
def _clear_divergence(step: int) -> Generator[None]:
    try:
        yield
    except (ValueError, SolveError, torch.linalg.LinAlgError) as error:
        raise DivergedError(f"step {step}: {error}; lower train.learning_rate") from error


@contextlib.contextmanager
def _num_threads(threads: int) -> Generator[None]:
    """Compute with as many threads as the run began with, since sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
