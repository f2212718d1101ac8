"""The folder of one run: its configuration, metrics and checkpoints, complete at every moment.

config.json               the configuration, read strictly
meta.json                 versions, hardware, threads and command line
metrics.jsonl             one line per evaluation
checkpoints/step_000100/  model.safetensors, and in the newest two optimizer.safetensors, or the folder
                          optimizer/ where several processes train
DONE                      steps and seconds, once the run has ended
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from mesaopt import files, json_files, recipes
from mesaopt.config import RunConfig, differences, from_dict, to_dict, with_objects
from mesaopt.errors import RESUME, RunError
from mesaopt.training import environment
from mesaopt.training.tensors import (
    apart,
    check_optimizer,
    check_weights,
    initial_model,
    read_tensors,
    trained_parameters,
    widened,
)

_RESUMABLE_CHECKPOINTS = 2
_CHECKPOINT = re.compile(r"step_([0-9]{6}|[1-9][0-9]{6,17})")
_METRICS = {"step": int, "train_loss": (float, None), "test_loss": float, "learning_rate": float}


@dataclass(frozen=True)
class Checkpoint:
    """Weights and optimiser state after a number of steps.

    Example:
        >>> Checkpoint(step=0, seconds=0.0, model={}, optimizer={}).step
        0
    """

    step: int
    """Number of steps done."""
    seconds: float
    """Training time so far."""
    model: dict[str, Tensor]
    """The `state_dict` of the model."""
    optimizer: dict[str, Tensor]
    """Optimiser state, "<parameter>/<name>" to tensor; empty for a snapshot of weights only."""


class RunFolder:
    """One run on disk.

    Args:
        path: of the folder; use :meth:`open` to make or continue one.
        objects: settings of this run with the task or model of your own, whose code no file holds.

    Example:
        >>> import tempfile
        >>> folder = RunFolder.open(Path(tempfile.mkdtemp()), RunConfig(recipe="mine"), resume=False)
        >>> folder.config.recipe, folder.metrics, folder.steps, folder.is_done
        ('mine', [], [], False)
    """

    def __init__(self, path: Path, objects: RunConfig | None = None):
        self.path, self._objects = files.as_path(path), objects

    @classmethod
    def open_all(
        cls, paths: Sequence[Path], configs: Sequence[RunConfig], *, resume: bool
    ) -> list["RunFolder"]:
        """Open the folders of several runs, or none of them where one may not be written to.

        Args:
            paths: of the folders.
            configs: of the runs, one per folder.
            resume: whether existing runs of the same configurations may be continued.

        Returns:
            The folders.

        Raises:
            RunError: one holds other files, or a run of another configuration.
        """
        cls.check_all(paths, configs, resume=resume)
        pairs = zip(paths, configs, strict=True)
        return [cls.open(path, config, resume=resume) for path, config in pairs]

    @classmethod
    def check_all(
        cls, paths: Sequence[Path], configs: Sequence[RunConfig], *, resume: bool
    ) -> None:
        """Check that :meth:`open_all` may open the folders of several runs; nothing is written.

        Args:
            paths: of the folders.
            configs: of the runs, one per folder.
            resume: whether existing runs of the same configurations may be continued.

        Raises:
            RunError: one holds other files, or a run of another configuration.
        """
        for path, config in zip(paths, configs, strict=True):
            cls(path, config)._reserve(config, resume=resume)

    @classmethod
    def open(cls, path: Path, config: RunConfig, *, resume: bool) -> "RunFolder":
        """Make the folder of a run, or continue one.

        Args:
            path: of the folder.
            config: of the run.
            resume: whether an existing run of the same configuration may be continued.

        Returns:
            The folder, with `config.json` and `meta.json` in it.

        Raises:
            RunError: the folder holds other files, or a run of another configuration.
        """
        folder = cls(path, config)
        if not folder._reserve(config, resume=resume):
            json_files.write(folder.path / "config.json", to_dict(config))
        if not files.exists(folder.path / "meta.json"):
            meta = environment.describe() | {"part_size": environment.part_size_of(config)}
            json_files.write(folder.path / "meta.json", meta)
        return folder

    def _reserve(self, config: RunConfig, *, resume: bool) -> bool:
        """Check that the folder may be written to; say whether there is a run to go on with."""
        there = reserve_folder(self.path, resume=resume)
        if there and (changes := differences(config, self.config)):
            changed = "; ".join(changes)
            raise RunError(f"{self.path}: holds a run with other settings ({changed})")
        if there and not self.is_done:
            files.inside(self.path, "checkpoints")
            for step in self.steps:
                files.inside(self.path, "checkpoints", self._checkpoint_path(step).name)
        return there

    @property
    def config(self) -> RunConfig:
        """The configuration, read strictly.

        Raises:
            RunError: there is no run here.
            ConfigError: a key is unknown or missing, or a value is wrong.
        """
        path = self.path / "config.json"
        if not files.exists(path):
            _say_what_is_meant(self.path)
        saved = json_files.read(path)
        if isinstance(saved, dict) and "what" in saved:
            raise _not_one_run(self.path, "results", _runs_in(self.path / "runs"))
        config = from_dict(RunConfig, saved, where=str(path))
        return config if self._objects is None else with_objects(config, self._objects)

    @property
    def meta(self) -> dict[str, Any]:
        """Versions, hardware, threads and command line of the process that began the run.

        Raises:
            RunError: the file is missing or damaged.
        """
        return json_files.read(self.path / "meta.json", {"num_threads": int})

    @property
    def num_threads(self) -> int:
        """Threads that the run is computed with, since sums depend on how they are split.

        Raises:
            RunError: the file is missing or damaged.
        """
        threads = self.meta["num_threads"]
        if not 1 <= threads <= 4096:
            path = self.path / "meta.json"
            raise RunError(f"{path}: is damaged: num_threads={threads}: must be between 1 and 4096")
        return threads

    @property
    def part_size(self) -> int | None:
        """Sequences in a part of a batch; None where an earlier version of the package began the run.

        Raises:
            RunError: the file is missing or damaged.
        """
        size = self.meta.get("part_size")
        if size is not None and (type(size) is not int or size < 1):
            path = self.path / "meta.json"
            raise RunError(f"{path}: is damaged: part_size={size!r}: must be 1 or greater")
        return size

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, first to last.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = json_files.read_lines(path, _METRICS) if files.exists(path) else []
        settings = self.config.train
        # What was imported has the line of the last step alone.
        imported = bool(lines) and lines[0]["step"] > 0 and self.is_imported
        first = settings.steps if imported else 0
        for index, line in enumerate(lines):
            wanted = min(first + index * settings.evaluate_every, settings.steps)
            repeated = index > 0 and lines[index - 1]["step"] == line["step"]
            if line["step"] != wanted or repeated:
                raise RunError(f"{path}: is damaged: lines are missing, doubled or out of order")
        return lines

    @property
    def is_imported(self) -> bool:
        """Whether the weights come from elsewhere, so that the metrics begin at the last step.

        Raises:
            RunError: the file that says so is damaged.
        """
        return files.exists(self.path / "meta.json") and "imported" in self.meta

    @property
    def is_done(self) -> bool:
        """Whether the run has ended.

        Raises:
            RunError: the file that says so is damaged.
        """
        path = self.path / "DONE"
        if not files.exists(path):
            return False
        done, last = json_files.read(path, {"steps": int, "seconds": float}), self._last_step
        if done["steps"] != last:
            raise RunError(
                f"{path}: is damaged: steps={done['steps']}: must be {last}, train.steps"
            )
        return True

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending; other names next to them are ignored.

        Raises:
            RunError: there is a checkpoint beyond the end of the run, or the folder cannot be read.
        """
        folder = self.path / "checkpoints"
        found = [_CHECKPOINT.fullmatch(name) for name in files.names(folder)]
        steps = sorted(int(match[1]) for match in found if match)
        if steps and steps[-1] > self._last_step:
            path, last = self._checkpoint_path(steps[-1]), self._last_step
            raise RunError(f"{path}: is of a longer run: must be at most {last}, train.steps")
        return steps

    @functools.cached_property
    def _last_step(self) -> int:
        return self.config.train.steps

    def finish(self, steps: int, seconds: float) -> None:
        """Mark the run as ended.

        Args:
            steps: number of steps done.
            seconds: training time, over all sessions.

        Raises:
            RunError: the disk is full.
        """
        json_files.write(self.path / "DONE", {"steps": steps, "seconds": round(seconds, 3)})

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line of metrics.

        Args:
            metrics: numbers by name; "step" is among them.

        Raises:
            RunError: the disk is full.
        """
        files.append_line(self.path / "metrics.jsonl", json.dumps(metrics))

    def save(
        self, checkpoint: Checkpoint, *, resumable: bool = True, pieces: Path | None = None
    ) -> None:
        """Write a checkpoint, and delete the optimiser state of all but the newest two.

        Args:
            checkpoint: the state after `checkpoint.step` steps.
            resumable: write the state of the optimiser too.
            pieces: a folder with that state, as :func:`write_pieces` leaves it, which is moved into the
                checkpoint.

        Raises:
            RunError: the disk is full.
        """
        target = self._checkpoint_path(checkpoint.step)
        temporary = target.with_name(files.TEMPORARY + target.name)
        facts = {"step": str(checkpoint.step), "seconds": repr(checkpoint.seconds)}
        files.remove(temporary)
        files.make_folder(temporary)
        if pieces is not None:
            files.move(pieces, temporary / "optimizer")
        for name in ("model", "optimizer") if resumable and pieces is None else ("model",):
            tensors = apart(getattr(checkpoint, name))
            files.write(
                temporary / f"{name}.safetensors",
                lambda path, tensors=tensors: save_file(tensors, path, metadata=facts),
            )
        files.remove(target)
        files.move(temporary, target)
        for step in self.steps[:-_RESUMABLE_CHECKPOINTS]:
            files.remove(self._optimizer_path(step))

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; nothing is unpickled.

        Args:
            step: of the checkpoint; the newest if not given.

        Returns:
            The checkpoint, on the CPU.

        Raises:
            RunError: there is none, or its files are damaged.
        """
        if step is None:
            step = self._last_step if self.is_done else max(self.steps, default=0)
        if not isinstance(step, int) or step not in self.steps:
            have = ", ".join(map(str, self.steps)) or "none"
            where = self.path / "checkpoints"
            raise RunError(
                f"{where}: step={step!r}: there is no such checkpoint; steps there are: {have}"
            )
        path = self._checkpoint_path(step) / "model.safetensors"
        tensors, facts = read_tensors(path)
        model = widened(tensors, facts)
        check_weights(path, model, self._new_model.state_dict())
        seconds = _check_facts(path, facts, step)
        return Checkpoint(step, seconds, model, self._load_optimizer(step))

    def _load_optimizer(self, step: int) -> dict[str, Tensor]:
        """Read the state of the optimiser, where there is one."""
        path = self._optimizer_path(step)
        if not files.exists(path):
            return {}
        if files.is_folder(path):
            from mesaopt.training.shared import read_pieces  # takes two seconds to import

            return read_pieces(path, self.parameters, self.config.train, step=step)
        optimizer, facts = read_tensors(path)
        _check_facts(path, facts, step)
        check_optimizer(path, optimizer, self.parameters, self.config.train, step=step)
        return optimizer

    @functools.cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the run trains, by name: as they are in memory, for the optimiser's state."""
        return trained_parameters(self._new_model)

    @functools.cached_property
    def _new_model(self) -> nn.Module:
        return initial_model(self.config.model)

    @property
    def resumable_steps(self) -> list[int]:
        """Steps that the run can go on from, ascending, one or two; -1 is the beginning.

        Raises:
            RunError: the optimiser's state is missing.
        """
        newest = [-1, *self.steps][-_RESUMABLE_CHECKPOINTS:]
        found = [step for step in newest if step < 0 or files.exists(self._optimizer_path(step))]
        if not found:
            path = self._optimizer_path(newest[-1])
            raise RunError(f"{path}: there is no such file, and without it the run cannot go on")
        return found

    def rewind(self, last: int | None = None) -> Checkpoint | None:
        """Go back to a checkpoint, and delete the metrics and checkpoints after it.

        Args:
            last: one of :attr:`resumable_steps`; the newest if not given.

        Returns:
            The checkpoint to go on from; None at the beginning.

        Raises:
            RunError: the checkpoint is damaged.
        """
        last = self.resumable_steps[-1] if last is None else last
        checkpoint = None if last < 0 else self.load(last)
        path = self.path / "metrics.jsonl"
        kept = [line for line in self.metrics if line["step"] <= last]
        if last >= 0 and (not kept or kept[-1]["step"] != last):
            raise RunError(
                f"{path}: is damaged: the line of the checkpoint of step {last} is missing"
            )
        for step in self.steps:
            if step > last:
                self._drop(self._checkpoint_path(step))
        files.write(path, "".join(json.dumps(line) + "\n" for line in kept))
        return checkpoint

    def _drop(self, checkpoint: Path) -> None:
        """Remove a checkpoint: at once by its name, then from the disk."""
        temporary = checkpoint.with_name(files.TEMPORARY + checkpoint.name)
        files.remove(temporary)
        files.move(checkpoint, temporary)
        files.remove(temporary)

    def _checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def _optimizer_path(self, step: int) -> Path:
        """Return the path of the optimiser's state: of a file, or of a folder with pieces."""
        pieces = self._checkpoint_path(step) / "optimizer"
        return pieces if files.exists(pieces) else pieces.with_suffix(".safetensors")


def reserve_folder(path: Path, *, resume: bool) -> bool:
    """Check that a folder may be written to; nothing is written yet.

    Args:
        path: of the folder.
        resume: whether a run or results in it may be continued.

    Returns:
        True where there is something to continue, False where the folder is new or empty.

    Raises:
        RunError: it holds a run or results and `resume` is false, or it holds other files.

    Example:
        >>> reserve_folder(Path("no/such/folder"), resume=False)
        False
    """
    if not files.exists(path):
        files.require_writable(path)
        return False
    if not files.is_folder(path):
        raise RunError(f"out={str(path)!r}: is a file; give a folder")
    names = files.names(path)
    if not names:
        return False
    if "config.json" not in names:
        raise RunError(f"out={str(path)!r}: holds other files; give a new or an empty folder")
    if not resume:
        raise RunError(
            f"out={str(path)!r}: holds another run or other results; {RESUME} "
            "goes on with the same settings, others need a new folder"
        )
    return True


def _say_what_is_meant(path: Path) -> None:
    """Refuse a path that is no run folder, where another run may be meant."""
    if str(path).startswith("zoo:"):
        name = str(path).removeprefix("zoo:")
        raise RunError(f"run={str(path)!r}: mesaopt.load({name!r}) gives this model")
    if not files.exists(path):
        zoo = f"; the trained model of the recipe is zoo:{path}, or mesaopt.load({str(path)!r})"
        hint = zoo if str(path) in recipes.RECIPES else ""
        raise RunError(f"run={str(path)!r}: there is no such folder{hint}")
    if runs := _runs_in(path):
        raise _not_one_run(path, "runs", runs)


def _runs_in(folder: Path) -> list[Path]:
    """List the run folders in a folder."""
    inside = (folder / name for name in files.names(folder))
    return [path for path in inside if files.exists(path / "config.json")]


def _not_one_run(path: Path, holds: str, runs: list[Path]) -> RunError:
    example = f", such as {runs[0]}" if runs else "; mesaopt.load gives trained ones"
    return RunError(f"run={str(path)!r}: holds {holds}: must be the folder of one run{example}")


def _check_facts(path: Path, facts: Mapping[str, str], step: int) -> float:
    """Check the facts saved with tensors; return the training time."""
    try:
        saved, seconds = int(facts.get("step", step)), float(facts.get("seconds", 0.0))
    except ValueError as error:
        raise RunError(f"{path}: is damaged: {error}") from None
    if saved != step:
        raise RunError(f"{path}: is damaged: step={saved}: must be {step}, as its folder says")
    if not 0 <= seconds < math.inf:
        raise RunError(f"{path}: is damaged: seconds={seconds}: must be finite and 0 or greater")
    return seconds
