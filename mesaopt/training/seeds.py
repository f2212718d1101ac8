"""Runs that differ in their seeds alone, trained side by side as one model; :mod:`~mesaopt.training.loop`
trains a single run.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt import files
from mesaopt.config import ModelConfig, RunConfig, differences
from mesaopt.errors import ConfigError
from mesaopt.models import SideBySide, join, make_model, separate
from mesaopt.progress import AnyProgress, OnProgress, reporting
from mesaopt.tasks import Batch
from mesaopt.training.environment import resolve_device, single_precision
from mesaopt.training.loop import (
    Run,
    as_config,
    as_diverged_error,
    call_logger,
    evaluation_steps,
    load_folder,
    metrics_line,
    train_in,
)
from mesaopt.training.optimizer import Optimizer
from mesaopt.training.run_folder import Checkpoint, RunFolder
from mesaopt.training.trainer import Data
from mesaopt.workers import WHOLE_PART, num_threads


def train_seeds(
    configs: Sequence[RunConfig],
    outs: Sequence[str | Path],
    *,
    resume: bool = False,
    device: str = "auto",
    progress: AnyProgress = True,
    logger: OnProgress | None = None,
) -> list[Run]:
    """Train runs that differ in their seeds alone side by side, as one model.

    Every run gets the weights, batches and tests that it would get alone, and a folder of its own that
    looks as :func:`train` leaves it, except that `seconds` is its share of the time. Sums are split
    differently, so the numbers agree up to the rounding of float32, which training enlarges step by step.
    `resume=True` goes on bit for bit on the CPU if it is given the same runs again. Runs that have come
    to different steps, trained alone for instance, are trained in groups. One that diverges stops all.

    Args:
        configs: what to train, equal except for `seed`, 1 or more; several only of a `ModelConfig`.
        outs: a folder for each.
        resume: continue the runs in `outs` where there are any.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        progress: as in :func:`train`; the training loss is the mean over the seeds.
        logger: as in :func:`train`; called for every seed, with the name of its folder as the stage.

    Returns:
        The trained models with their metrics.

    Raises:
        ConfigError: the runs cannot be trained side by side.
        RunError: a folder, a checkpoint or the device does not allow it, or the disk is full.
        DivergedError: a loss is no longer a number.

    Example:
        >>> import tempfile
        >>> from mesaopt import recipes
        >>> config = recipes.get("lsa-1")
        >>> short = replace(config.train, steps=2, batch_size=4, evaluation_sequences=4)
        >>> configs = [replace(config, seed=seed, train=short) for seed in (0, 1)]
        >>> runs = train_seeds(configs, [tempfile.mkdtemp() for _ in configs], device="cpu")
        >>> [run.config.seed for run in runs]
        [0, 1]
    """
    configs = [as_config(config, f"configs[{i}]") for i, config in enumerate(configs)]
    paths = [files.as_path(out) for out in outs]
    _check(configs, paths)
    where = resolve_device(device)
    folders = RunFolder.open_all(paths, configs, resume=resume)
    with contextlib.ExitStack() as stack:
        unfinished = [folder for folder in folders if not folder.is_done]
        for folder in unfinished:
            stack.enter_context(files.only_one_process(folder.path))
        for start, group in _groups(unfinished):
            if len(group) == 1:
                train_in(group[0], where, start=start, progress=progress, logger=logger)
            else:
                _train_together(group, where, start=start, progress=progress, logger=logger)
    return [load_folder(folder, device=device) for folder in folders]


def seed_batches(configs: Sequence[RunConfig], device: str = "auto") -> list[list[RunConfig]]:
    """Divide the seeds of one recipe into groups that are best trained side by side.

    A GPU has room for all of them at once. On a CPU that keeps its cores busy with one, side by side takes
    6 to 20 % longer than one after the other (docs/performance.md).

    Args:
        configs: equal except for `seed`.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Returns:
        Groups for :func:`train_seeds`, in order.

    Raises:
        RunError: there is no such device here.

    Example:
        >>> from mesaopt import recipes
        >>> configs = [recipes.get("lsa-1", seed=seed) for seed in (0, 1)]
        >>> [len(group) for group in seed_batches(configs, "cpu")]
        [1, 1]
    """
    configs = [as_config(config, f"configs[{i}]") for i, config in enumerate(configs)]
    together = resolve_device(device).type == "cuda" and isinstance(configs[0].model, ModelConfig)
    return [list(configs)] if together else [[config] for config in configs]


class SeedsTrainer:
    """Training steps of several seeds of a run; :class:`Trainer` has those of one.

    Args:
        configs: equal except for `seed`, all of a `ModelConfig`.
        device: where to compute.

    Example:
        >>> from mesaopt import recipes
        >>> configs = [recipes.get("lsa-1", seed=seed) for seed in (0, 1)]
        >>> trainer = SeedsTrainer(configs, torch.device("cpu"))
        >>> trainer.step(0).shape  # a loss per seed
        torch.Size([2])
    """

    def __init__(self, configs: Sequence[RunConfig], device: torch.device):
        self.configs, self.device = configs, device
        self.data = [Data(config, device) for config in configs]
        with single_precision():
            models = [make_model(config.model, seed=config.seed) for config in configs]
        self.model = SideBySide(models).to(device)
        parameters = dict(self.model.joined.named_parameters())
        self.optimizer = Optimizer(configs[0].train, parameters)

    def step(self, step: int) -> Float[Tensor, " seed"]:
        """Train every seed on its batch of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The losses before the step, on the device.
        """
        self.optimizer.zero_grad()
        losses = torch.zeros(len(self.configs), device=self.device)
        largest = max(1, WHOLE_PART // len(self.configs))
        batches = [data.batch(step).split(largest) for data in self.data]
        for parts in zip(*batches, strict=True):
            share = len(parts[0].tokens) / self.configs[0].train.batch_size
            part_losses = self._losses(parts) * share
            part_losses.sum().backward()  # no model's loss depends on another's weights
            losses += part_losses.detach()
        self.optimizer.step(step)
        return losses

    @torch.no_grad()
    def test_losses(self) -> list[float]:
        """Return the mean loss of the test sequences of each seed."""
        losses = [
            self._losses([batch] * len(self.configs)) * len(batch.tokens)
            for batch in map(self.data[0].test_batch, range(self.data[0].num_test_batches))
        ]
        total = self.data[0].num_test_sequences
        return [(own.sum() / total).item() for own in torch.stack(losses, dim=1)]

    def _losses(self, batches: Sequence[Batch]) -> Float[Tensor, " seed"]:
        with self.data[0].precision():
            predictions = self.model(torch.stack([batch.tokens for batch in batches]))
        each = zip(self.data, batches, predictions, strict=True)
        return torch.stack([data.loss(batch, own) for data, batch, own in each])

    def checkpoints(self, step: int, seconds: float) -> list[Checkpoint]:
        """Return the state of each seed after some steps.

        Args:
            step: number of steps done.
            seconds: training time so far, of each seed.

        Returns:
            A checkpoint per seed, as :meth:`Trainer.checkpoint` returns it.
        """
        optimizers = separate(self.optimizer.state(), len(self.configs))
        states = zip(self.model.states(), optimizers, strict=True)
        return [Checkpoint(step, seconds, model, optimizer) for model, optimizer in states]

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Go back to a checkpoint of each seed, all after the same number of steps.

        Args:
            checkpoints: one per seed, with the state of the optimiser.
        """
        self.model.load_states([checkpoint.model for checkpoint in checkpoints])
        self.optimizer.load_state(join([checkpoint.optimizer for checkpoint in checkpoints]))


def _train_together(
    folders: Sequence[RunFolder],
    device: torch.device,
    *,
    start: int,
    progress: AnyProgress,
    logger: OnProgress | None,
) -> None:
    """Train the seeds of these folders, from a step that all of them can go on from."""
    configs = [folder.config for folder in folders]
    settings = configs[0].train
    which = f" in one of the seeds {', '.join(str(config.seed) for config in configs)}"
    stage = ", ".join(folder.path.name for folder in folders)
    with contextlib.ExitStack() as stack:
        stack.enter_context(num_threads(folders[0].num_threads))
        stack.enter_context(single_precision())
        report = stack.enter_context(reporting(progress, stage, earlier=max(start, 0)))
        trainer = SeedsTrainer(configs, device)
        rewound = [folder.rewind(start) for folder in folders]
        checkpoints = [checkpoint for checkpoint in rewound if checkpoint is not None]
        if checkpoints:
            trainer.restore(checkpoints)
        before = sum(checkpoint.seconds for checkpoint in checkpoints) / len(folders)
        started = time.perf_counter()

        def seconds() -> float:
            """Time of each run: its share."""
            return before + (time.perf_counter() - started) / len(folders)

        steps = evaluation_steps(trainer, settings, after=start, report=report, seeds=which)
        for step, losses in steps:
            with as_diverged_error(step, which):
                test_losses = trainer.test_losses()
            train_losses = [None] * len(folders) if losses is None else losses.unbind(1)
            each = zip(configs, train_losses, test_losses, strict=True)
            lines = [metrics_line(config, step, own, test) for config, own, test in each]
            states = trainer.checkpoints(step, seconds())
            for folder, line, checkpoint in zip(folders, lines, states, strict=True):
                folder.log(line)
                folder.save(checkpoint)
                call_logger(logger, folder, line)
        for folder in folders:
            folder.finish(settings.steps, seconds())


def _check(configs: Sequence[RunConfig], paths: Sequence[Path]) -> None:
    """Refuse runs that cannot be trained side by side."""
    if not configs or len(configs) != len(paths):
        raise ConfigError(f"outs: {len(paths)} folders: must be one for each of 1 or more configs")
    if len(configs) == 1:
        return
    first = configs[0]
    if not isinstance(first.model, ModelConfig):
        raise ConfigError(f"model.kind={first.model.kind!r}: must be 'sequence' for several seeds")
    for config in configs[1:]:
        if changes := differences(replace(config, seed=first.seed), first):
            raise ConfigError(f"configs: must differ in seed alone ({'; '.join(changes)})")
    for name, values in (("seeds", [c.seed for c in configs]), ("outs", list(map(str, paths)))):
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}={values}: must all be different")


def _groups(folders: Sequence[RunFolder]) -> list[tuple[int, list[RunFolder]]]:
    """Sort runs by the step that they can go on from together, those furthest behind first."""
    groups, waiting = [], list(folders)
    while waiting:
        step = min(folder.resumable_steps[-1] for folder in waiting)
        group = [folder for folder in waiting if step in folder.resumable_steps]
        groups.append((step, group))
        waiting = [folder for folder in waiting if folder not in group]
    return groups
