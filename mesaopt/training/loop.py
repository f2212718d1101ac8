"""Training a run: steps, with a test and a checkpoint every so often, in a folder that a kill cannot spoil.

:mod:`mesaopt.training.seeds` trains several seeds of a run at once.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mesaopt import files, recipes
from mesaopt.config import NetworkConfig, RunConfig, TaskConfig, TrainConfig
from mesaopt.display import Curve, Drawn, Row
from mesaopt.errors import ConfigError, RunError, SolveError, wrong_type
from mesaopt.models import Model, SequenceModel
from mesaopt.progress import NO_REPORT, AnyProgress, OnProgress, Progress, Report, reporting
from mesaopt.training.devices import Devices, is_launched
from mesaopt.training.environment import resolve_device, single_precision
from mesaopt.training.optimizer import learning_rate
from mesaopt.training.own import ModelLike, TaskLike, give_again, own_run
from mesaopt.training.run_folder import RunFolder
from mesaopt.training.tensors import initial_model
from mesaopt.training.trainer import Trainer
from mesaopt.workers import num_threads

_REPORT_EVERY = 10  # steps between two reports: reading a loss waits for the device


class DivergedError(RunError):
    """The loss is no longer a number, or a ridge left its range; the run has failed.

    Example:
        >>> DivergedError("step 3: training loss inf, test loss nan").exit_status
        1
    """

    exit_status = 1


@dataclass(frozen=True, repr=False)
class Run(Drawn):
    """A trained model and its run folder, as :func:`train` and :func:`load_run` return them.

    Example:
        >>> config = RunConfig(recipe="mine")
        >>> from mesaopt.models import make_model
        >>> run = Run(Path("runs/mine"), config, make_model(config.model), [], 0.0)
        >>> run.sequence_model.mixers[0].num_heads
        4
    """

    path: Path
    """The run folder."""
    config: RunConfig
    """All settings."""
    model: Model
    """With the weights of the checkpoint that was loaded."""
    metrics: list[dict[str, Any]]
    """One entry per evaluation: step, train_loss, test_loss, learning_rate."""
    seconds: float
    """Training time, over all sessions."""

    _axes = {"xlabel": "step", "ylabel": "loss", "yscale": "log"}

    def _headline(self) -> str:
        lines = [f"Run {self.path.name}, not trained"]
        if self.metrics:
            last = self.metrics[-1]
            after = f"{last['step']:,} of {self.config.train.steps:,} steps"
            lines = [f"Run {self.path.name}: test loss {last['test_loss']:.4g} after {after}"]
        number = sum(weight.numel() for weight in self.model.parameters())
        model = f"{self.config.model.kind} model of {number:,} parameters"
        lines.append(f"{model} on {self.config.task.kind}, trained for {self.seconds:.0f} s")
        return "\n".join([*lines, str(self.path)])

    def _rows(self) -> list[Row]:
        return list(self.metrics)

    def _curves(self) -> list[Curve]:
        curves = []
        for name in ("test_loss", "train_loss"):
            lines = [line for line in self.metrics if line[name] is not None]
            steps, losses = [line["step"] for line in lines], [line[name] for line in lines]
            curves += [Curve(name.replace("_", " "), steps, losses)] if lines else []
        return curves

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
    """Return the default name of a run's folder.

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
    config: RunConfig | str | None = None,
    out: str | Path | None = None,
    *,
    model: ModelLike | None = None,
    task: TaskLike | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: Devices | None = None,
    progress: AnyProgress = True,
    logger: OnProgress | None = None,
    **settings: Any,
) -> Run:
    """Train a model in a run folder: `train(config, out)`, or `train(task=..., model=..., out=...)`.

    The task may be any object with `sample(batch_size, *, seed, step, split) -> Batch`, the model any
    `ModelConfig` or `torch.nn.Module`; :func:`own_run` says more. Such runs have the same folders, of which
    `config.json` holds all but the code of the task and of the module.

    The folder is whole at every moment. After Ctrl-C, a kill or a full disk, `resume=True` goes on from
    the newest checkpoint and gives the numbers of an uninterrupted run, on the CPU bit for bit. A run
    that has ended is loaded, not repeated.

    Processes that `torchrun` has started train one run together, and each returns it.

    Args:
        config: what to train, or the name of a recipe, such as "lsa-1"; none with a task.
        out: folder of the run, new or empty unless resumed; with a task `runs/<name>-seed<seed>` if not
            given.
        model: of any kind, with `task`, in place of `config`;
            :func:`mesaopt.config.small_transformer` if not given.
        task: of any kind.
        resume: continue the run in `out` if there is one.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        devices: how the run is spread over several processes, each of which calls this, or how one of
            them computes; every process has all weights if not given.
        progress: a bar, nothing, or a function that is called every 10 steps with the finished steps and
            the newest training loss: see :data:`mesaopt.progress.AnyProgress`.
        logger: called after each evaluation with its metrics, such as
            :class:`mesaopt.training.TensorBoard`.
        **settings: with `task`: `seed`, `name`, and fields of
            :class:`mesaopt.config.TrainConfig`, such as `steps=500`.

    Returns:
        The trained model with its metrics.

    Raises:
        TypeError: config is something else, such as settings of a model alone.
        ConfigError: there is no such recipe, the task or the model is not what it must be, or a setting is
            wrong.
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
    config = _run_config(config, model, task, settings)
    chosen: Any = out if out is not None or task is None else Path("runs") / run_name(config)
    path = files.as_path(chosen)
    if devices is not None or is_launched():
        from mesaopt.training.shared import ProcessGroup  # takes two seconds to import

        with (
            ProcessGroup.join(where, devices or Devices()) as group,
            group.open(path, config, resume=resume) as shared,
        ):
            group.train(shared, progress=progress, logger=logger)
        return load_folder(RunFolder(path, config), device=device)
    folder = RunFolder.open(path, config, resume=resume)
    if not folder.is_done:
        with files.only_one_process(folder.path):
            train_in(folder, where, progress=progress, logger=logger)
    return load_folder(folder, device=device)


def as_config(config: RunConfig | str, argument: str = "config") -> RunConfig:
    """Return the settings that are meant: those of a run, or of a recipe.

    Raises:
        TypeError: they are of something else.
        ConfigError: there is no such recipe.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, str):
        return recipes.get(config)
    hint = ", such as its .config" if isinstance(config, Run) else ""
    parts = {"model": NetworkConfig, "task": TaskConfig, "train": TrainConfig}
    for part, kinds in parts.items():
        if isinstance(config, kinds):
            hint = f", such as RunConfig(recipe='mine', {part}=...)"
    raise wrong_type(argument, config, f"a RunConfig or the name of a recipe{hint}")


def _run_config(
    config: RunConfig | str | None,
    model: ModelLike | None,
    task: TaskLike | None,
    settings: dict[str, Any],
) -> RunConfig:
    """Return the settings given to :func:`train`, in one of its two ways."""
    if config is not None:
        for name, value in {"model": model, "task": task, **settings}.items():
            if value is not None:
                raise ConfigError(f"{name}: must not be given with config, which has all settings")
        return as_config(config)
    if task is None:
        raise ConfigError("task: is missing: give config, or task, and model if you have one")
    return own_run(model, task, **settings)


def load_run(
    path: str | Path,
    *,
    step: int | None = None,
    device: str = "auto",
    task: TaskLike | None = None,
    model: ModelLike | None = None,
) -> Run:
    """Load the model of a run.

    No code is taken from a folder: a module of your own has to be given again, and a task of your own where
    it is needed, as objects or by name ("module:Class", which is imported and called with the arguments
    that the folder has).

    Args:
        path: folder of the run.
        step: of the weights; the newest if not given.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        task: of your own, on which it was trained; `run.config.task` then holds it.
        model: of your own, as it was given to :func:`train`.

    Returns:
        The run; its metrics are those of all steps.

    Raises:
        RunError: there is no run, no such checkpoint or no such device, a file is damaged, or the task or
            the model is another one.
        ConfigError: its configuration has an unknown key or a wrong value, or a model is missing.

    Example:
        >>> load_run("no/such/run")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: run='no/such/run': there is no such folder
    """
    folder = RunFolder(files.as_path(path))
    if task is not None or model is not None:
        config = give_again(folder.config, folder.path, task=task, model=model)
        folder = RunFolder(folder.path, config)
    return load_folder(folder, step=step, device=device)


def load_folder(folder: RunFolder, *, step: int | None = None, device: str = "auto") -> Run:
    """Load the model of a run from its folder, as :func:`load_run` does from its path."""
    where = resolve_device(device)
    config, checkpoint, metrics = folder.config, folder.load(step), folder.metrics
    if not metrics or (folder.is_done and metrics[-1]["step"] < config.train.steps):
        raise RunError(f"{folder.path / 'metrics.jsonl'}: is damaged: lines are missing")
    model = initial_model(config.model)
    model.load_state_dict(checkpoint.model)  # checked when it was read
    return Run(folder.path, config, model.to(where), metrics, checkpoint.seconds)


def train_in(
    folder: RunFolder,
    device: torch.device,
    *,
    start: int | None = None,
    progress: AnyProgress = True,
    logger: OnProgress | None = None,
    open_trainer: "OpenTrainer | None" = None,
) -> None:
    """Train the run of a folder to its end.

    Args:
        folder: of a run that has not ended, which no other process works in.
        device: where to compute.
        start: one of the folder's :attr:`RunFolder.resumable_steps`; the newest if not given.
        progress: as in :func:`train`.
        logger: as in :func:`train`.
        open_trainer: makes the trainer, for a block; one that computes in this process alone if not given.

    Raises:
        RunError: a checkpoint is damaged, or the disk is full.
        DivergedError: the loss is no longer a number.
    """
    settings = folder.config.train
    with contextlib.ExitStack() as stack:
        stack.enter_context(single_precision())
        trainer = stack.enter_context((open_trainer or _trainer)(folder, device))
        checkpoint = folder.rewind(start)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        before = 0.0 if checkpoint is None else checkpoint.seconds
        started = time.perf_counter()
        first = -1 if checkpoint is None else checkpoint.step
        report = stack.enter_context(reporting(progress, folder.path.name, earlier=max(first, 0)))
        for step, losses in evaluation_steps(trainer, settings, after=first, report=report):
            with as_diverged_error(step):
                test_loss = trainer.test_loss()
            line = metrics_line(folder.config, step, losses, test_loss)
            folder.log(line)
            seconds = before + time.perf_counter() - started
            folder.save(trainer.checkpoint(step, seconds))
            call_logger(logger, folder, line)
        folder.finish(settings.steps, before + time.perf_counter() - started)


def call_logger(logger: OnProgress | None, folder: RunFolder, line: dict[str, Any]) -> None:
    """Call a logger with a line of metrics, once a resumed run does not compute it again."""
    if logger is not None:
        numbers = {name: x for name, x in line.items() if name != "step" and x is not None}
        logger(Progress(line["step"], folder.config.train.steps, folder.path.name, numbers))


OpenTrainer = Callable[[RunFolder, torch.device], contextlib.AbstractContextManager[Trainer]]
"""Makes the trainer of a run, for a block."""


@contextlib.contextmanager
def _trainer(folder: RunFolder, device: torch.device) -> Generator[Trainer]:
    """Make the trainer of a run: with workers, or as the version of the package that began the run did."""
    size = folder.part_size
    if device.type == "cpu" and size is not None:
        with Trainer.open(folder.config, device, size=size) as trainer:
            yield trainer
        return
    with num_threads(folder.num_threads):
        yield Trainer(folder.config, device)


class Stepper(Protocol):
    """Anything that trains step by step, such as a :class:`Trainer`."""

    def step(self, step: int) -> Tensor:
        """Train on the batch of one step and return the loss, or one per seed."""
        ...


def evaluation_steps(
    trainer: Stepper,
    settings: TrainConfig,
    *,
    after: int = -1,
    report: Report = NO_REPORT,
    seeds: str = "",
) -> Iterator[tuple[int, Tensor | None]]:
    """Train, and stop wherever an evaluation is due.

    Args:
        trainer: makes the steps.
        settings: how many steps, and how often to evaluate.
        after: the evaluation that was the last; -1 before the first, which comes before all steps.
        report: called with the finished steps and the newest training loss, every 10 steps.
        seeds: names what diverged in the message of an error.

    Yields:
        The number of finished steps, and the losses of the steps since the last evaluation, [step, ...],
        None where there were none.

    Raises:
        DivergedError: a step cannot be made.
    """
    step, losses = max(after, 0), []
    while True:
        due = step % settings.evaluate_every == 0 or step == settings.steps
        if due and step > after:
            yield step, torch.stack(losses) if losses else None
            losses = []
        if step >= settings.steps:
            return
        with as_diverged_error(step, seeds):
            losses.append(trainer.step(step))
        step += 1
        if report.has_listener and (step % _REPORT_EVERY == 0 or step == settings.steps):
            report(step, settings.steps, train_loss=losses[-1].mean().item())


def metrics_line(
    config: RunConfig, step: int, losses: Tensor | None, test_loss: float
) -> dict[str, Any]:
    """Make the line of metrics of one evaluation.

    Args:
        config: of the run.
        step: number of finished steps.
        losses: training losses since the last evaluation, [step], None where there were none.
        test_loss: mean loss of the test sequences.

    Returns:
        step, train_loss (their mean, or None), test_loss and learning_rate.

    Raises:
        DivergedError: a loss is no number.

    Example:
        >>> metrics_line(RunConfig(recipe="mine"), 2, torch.tensor([1.5, 1.0]), 1.25)
        {'step': 2, 'train_loss': 1.25, 'test_loss': 1.25, 'learning_rate': 0.0002}
    """
    train_loss = None if losses is None else losses.mean().item()
    if not math.isfinite(test_loss) or not math.isfinite(train_loss or 0.0):
        values = f"training loss {train_loss}, test loss {test_loss}"
        where = f"step {step}: seed {config.seed}"
        raise DivergedError(f"{where}: {values}; lower train.learning_rate")
    return {
        "step": step,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "learning_rate": learning_rate(config.train, step),
    }


@contextlib.contextmanager
def as_diverged_error(step: int, seeds: str = "") -> Generator[None]:
    """Turn errors of weights that left their range into a :class:`DivergedError`."""
    try:
        yield
    except ConfigError:  # of the task, not of the weights
        raise
    except (ValueError, SolveError, torch.linalg.LinAlgError) as error:
        raise DivergedError(f"step {step}: {error}{seeds}; lower train.learning_rate") from error
