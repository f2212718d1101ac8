"""The training loop: a run or its seeds, with an evaluation and a checkpoint every so often."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mesaopt import files
from mesaopt.config import ModelConfig, RunConfig, differences
from mesaopt.errors import ConfigError, InitialisationWarning, RunError, SolveError
from mesaopt.models import Model, SequenceModel, make_model
from mesaopt.training.environment import resolve_device
from mesaopt.training.run_folder import RunFolder
from mesaopt.training.trainer import Trainer, learning_rate

OnStep = Callable[[int, float], None]
"""Called with the number of finished steps and the newest training loss."""

_CALL_EVERY = 10  # steps between two calls of `on_step`: reading a loss waits for the device


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
    """Training time, over all sessions."""

    @property
    def sequence_model(self) -> SequenceModel:
        """The model, where it is a stack of sequence mixers.

        Raises:
            RunError: it is a model of another kind.
        """
        if not isinstance(self.model, SequenceModel):
            kind = self.config.model.kind
            raise RunError(f"{self.path}: holds a {kind!r} model; must be a 'sequence' model")
        return self.model


def run_name(config: RunConfig) -> str:
    """Name the folder of a run, where nobody else does.

    Args:
        config: of the run.

    Returns:
        "<recipe>-seed<seed>".

    Example:
        >>> run_name(RunConfig(recipe="mine", seed=3))
        'mine-seed3'
    """
    return f"{config.recipe}-seed{config.seed}"


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    on_step: OnStep | None = None,
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
        on_step: called with the number of finished steps and the newest training loss, every 10 steps.

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
    return train_seeds([config], [out], resume=resume, device=device, on_step=on_step)[0]


def train_seeds(
    configs: Sequence[RunConfig],
    outs: Sequence[str | Path],
    *,
    resume: bool = False,
    device: str = "auto",
    on_step: OnStep | None = None,
) -> list[Run]:
    """Train runs that differ in their seeds alone side by side, as one model.

    Every run gets the weights, batches and tests that it would get alone, and a folder of its own that
    looks as :func:`train` leaves it, but that `seconds` is its share of the time. Sums are split
    differently, so the numbers agree up to the rounding of float32, which training enlarges step by step.
    `resume=True` goes on bit for bit on the CPU if it is given the same runs again; runs that have come
    to different steps, trained alone for instance, are trained in groups. One that diverges stops all.

    Args:
        configs: what to train, equal but for `seed`, 1 or more; several only of a `ModelConfig`.
        outs: a folder for each.
        resume: continue the runs in `outs` where there are any.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        on_step: called with the number of finished steps and the newest training loss, the mean over the
            seeds, every 10 steps.

    Returns:
        The trained models with their metrics.

    Raises:
        ConfigError: the runs cannot be trained side by side.
        RunError: a folder, a checkpoint or the device does not allow it, or the disk is full.
        DivergedError: a loss is no longer a number.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from mesaopt import recipes
        >>> config = recipes.get("lsa-1")
        >>> short = replace(config.train, steps=2, batch_size=4, evaluation_sequences=4)
        >>> configs = [replace(config, seed=seed, train=short) for seed in (0, 1)]
        >>> runs = train_seeds(configs, [tempfile.mkdtemp() for _ in configs], device="cpu")
        >>> [run.config.seed for run in runs]
        [0, 1]
    """
    paths = [Path(out) for out in outs]
    _check_seeds(configs, paths)
    where = resolve_device(device)
    folders = RunFolder.open_all(paths, configs, resume=resume)
    with contextlib.ExitStack() as stack:
        unfinished = [folder for folder in folders if not folder.is_done]
        for folder in unfinished:
            stack.enter_context(files.only_one_process(folder.path))
        for start, group in _groups(unfinished):
            with _num_threads(group[0].meta["num_threads"]):
                _train_in(group, start, where, on_step)
    return [load_run(folder.path, device=device) for folder in folders]


def seed_batches(configs: Sequence[RunConfig], device: str = "auto") -> list[list[RunConfig]]:
    """Divide the seeds of one recipe into what is best trained side by side.

    A GPU has room for all of them at once. On a CPU that keeps its cores busy with one, side by side takes
    6 to 20 % longer than one after the other (docs/performance.md).

    Args:
        configs: equal but for `seed`.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Returns:
        Groups for :func:`train_seeds`, in order.

    Raises:
        RunError: there is no such device here.

    Example:
        >>> from mesaopt import recipes
        >>> [len(group) for group in seed_batches([recipes.get("lsa-1", seed=s) for s in (0, 1)], "cpu")]
        [1, 1]
    """
    together = resolve_device(device).type == "cuda" and isinstance(configs[0].model, ModelConfig)
    return [list(configs)] if together else [[config] for config in configs]


def _check_seeds(configs: Sequence[RunConfig], paths: Sequence[Path]) -> None:
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


def _groups(folders: Sequence[RunFolder]) -> list[tuple[int, list[RunFolder]]]:
    """Sort runs by the step that they can go on from together, those furthest behind first."""
    groups, waiting = [], list(folders)
    while waiting:
        step = min(folder.resumable_steps[-1] for folder in waiting)
        group = [folder for folder in waiting if step in folder.resumable_steps]
        groups.append((step, group))
        waiting = [folder for folder in waiting if folder not in group]
    return groups


def _train_in(
    folders: Sequence[RunFolder], start: int, device: torch.device, on_step: OnStep | None
) -> None:
    """Train the seeds of these folders, from a step that all of them can go on from."""
    config = folders[0].config
    train = config.train
    trainer = Trainer(config, device, seeds=[folder.config.seed for folder in folders])
    checkpoints = [folder.rewind(start) for folder in folders]
    found = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    if found:
        trainer.restore(found)
    seconds_before = sum(checkpoint.seconds for checkpoint in found) / len(folders)
    started = time.perf_counter()
    step = max(start, 0)
    losses: list[Tensor] = []

    def seconds() -> float:
        """Of each run: its share of the time."""
        return seconds_before + (time.perf_counter() - started) / len(folders)

    while True:
        due = step % train.evaluate_every == 0 or step == train.steps
        if due and step > start:
            metrics = _evaluate(trainer, step, losses)
            for folder, line, checkpoint in zip(
                folders, metrics, trainer.checkpoints(step, seconds()), strict=True
            ):
                folder.log(line)
                folder.save(checkpoint)
            losses = []
        if step == train.steps:
            break
        with _as_diverged_error(step, trainer.seeds):
            losses.append(trainer.step(step))
        step += 1
        if on_step is not None and (step % _CALL_EVERY == 0 or step == train.steps):
            on_step(step, losses[-1].mean().item())
    for folder in folders:
        folder.finish(train.steps, seconds())


def _evaluate(trainer: Trainer, step: int, losses: list[Tensor]) -> list[dict[str, Any]]:
    """Give one line of metrics per seed."""
    with _as_diverged_error(step, trainer.seeds):
        test_losses = trainer.test_losses()
    train_losses: list[float | None] = [None] * len(trainer.seeds)
    if losses:
        train_losses = [own.mean().item() for own in torch.stack(losses, dim=1)]
    for seed, train_loss, test_loss in zip(trainer.seeds, train_losses, test_losses, strict=True):
        if not math.isfinite(test_loss) or not math.isfinite(train_loss or 0.0):
            values = f"training loss {train_loss}, test loss {test_loss}"
            where = f"step {step}: seed {seed}"
            raise DivergedError(f"{where}: {values}; lower train.learning_rate")
    return [
        {
            "step": step,
            "train_loss": train_loss,
            "test_loss": test_loss,
            "learning_rate": learning_rate(trainer.config.train, step),
        }
        for train_loss, test_loss in zip(train_losses, test_losses, strict=True)
    ]


@contextlib.contextmanager
def _as_diverged_error(step: int, seeds: Sequence[int]) -> Generator[None]:
    try:
        yield
    except (ValueError, SolveError, torch.linalg.LinAlgError) as error:
        which = "" if len(seeds) == 1 else f" in one of the seeds {', '.join(map(str, seeds))}"
        raise DivergedError(f"step {step}: {error}{which}; lower train.learning_rate") from error


@contextlib.contextmanager
def _num_threads(threads: int) -> Generator[None]:
    """Compute with as many threads as the run began with, since sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
