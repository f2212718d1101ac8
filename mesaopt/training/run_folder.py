"""The folder of one run: its configuration, metrics and checkpoints, complete at every moment.

config.json               the configuration, read strictly
meta.json                 versions, hardware, threads and command line
metrics.jsonl             one line per evaluation
checkpoints/step_000100/  model.safetensors, and optimizer.safetensors in the newest two
DONE                      steps and seconds, once the run has ended
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mesaopt import files
from mesaopt.config import RunConfig, differences, from_dict, to_dict
from mesaopt.errors import RunError
from mesaopt.training import environment

_RESUMABLE_CHECKPOINTS = 2


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

    Example:
        >>> import tempfile
        >>> folder = RunFolder.open(Path(tempfile.mkdtemp()), RunConfig(recipe="mine"), resume=False)
        >>> folder.config.recipe, folder.metrics, folder.steps, folder.is_done
        ('mine', [], [], False)
    """

    def __init__(self, path: Path):
        self.path = path

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
        for path in paths:
            reserve_folder(path, resume=resume)
        pairs = zip(paths, configs, strict=True)
        return [cls.open(path, config, resume=resume) for path, config in pairs]

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
        folder = cls(path)
        if reserve_folder(path, resume=resume):
            theirs = folder.config
            if changes := differences(config, theirs):
                changed = "; ".join(changes)
                raise RunError(f"{path}: holds a run with other settings ({changed})")
        else:
            files.write_json(path / "config.json", to_dict(config))
        if not (path / "meta.json").exists():
            files.write_json(path / "meta.json", environment.describe())
        return folder

    @property
    def config(self) -> RunConfig:
        """The configuration, read strictly.

        Raises:
            RunError: there is no run here.
            ConfigError: a key is unknown or missing, or a value is wrong.
        """
        path = self.path / "config.json"
        return from_dict(RunConfig, files.read_json(path), where=str(path))

    @property
    def meta(self) -> dict[str, Any]:
        """Versions, hardware, threads and command line of the process that began the run."""
        return files.read_json(self.path / "meta.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, first to last."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in _whole_lines(path)]

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return (self.path / "DONE").exists()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        found = (self.path / "checkpoints").glob("step_*")
        return sorted(int(folder.name.removeprefix("step_")) for folder in found)

    def finish(self, steps: int, seconds: float) -> None:
        """Mark the run as ended.

        Args:
            steps: number of steps done.
            seconds: training time, over all sessions.

        Raises:
            RunError: the disk is full.
        """
        files.write_json(self.path / "DONE", {"steps": steps, "seconds": round(seconds, 3)})

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line of metrics.

        Args:
            metrics: numbers by name; "step" is among them.

        Raises:
            RunError: the disk is full.
        """
        files.append_line(self.path / "metrics.jsonl", json.dumps(metrics))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and delete the optimiser state of all but the newest two.

        Args:
            checkpoint: the state after `checkpoint.step` steps.

        Raises:
            RunError: the disk is full.
        """
        target = self._checkpoint_path(checkpoint.step)
        temporary = target.with_name(files.TEMPORARY + target.name)
        facts = {"step": str(checkpoint.step), "seconds": repr(checkpoint.seconds)}
        with files.explain_os_errors(target):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        for name in ("model", "optimizer"):
            tensors = {
                k: v.detach().cpu().contiguous() for k, v in getattr(checkpoint, name).items()
            }
            files.write(
                temporary / f"{name}.safetensors",
                lambda path, tensors=tensors: save_file(tensors, path, metadata=facts),
            )
        with files.explain_os_errors(target):
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        for step in self.steps[:-_RESUMABLE_CHECKPOINTS]:
            self._optimizer_path(step).unlink(missing_ok=True)

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
            step = max(self.steps, default=0)
        path = self._checkpoint_path(step)
        if not path.exists():
            have = ", ".join(map(str, self.steps)) or "none"
            raise RunError(f"{path}: there is no such checkpoint; steps there are: {have}")
        model, facts = _load_tensors(path / "model.safetensors")
        optimizer_path = self._optimizer_path(step)
        optimizer = _load_tensors(optimizer_path)[0] if optimizer_path.exists() else {}
        return Checkpoint(step, float(facts.get("seconds", "0")), model, optimizer)

    @property
    def resumable_steps(self) -> list[int]:
        """Steps that the run can go on from, ascending, one or two; -1 is the beginning.

        Raises:
            RunError: the optimiser's state is missing.
        """
        newest = [-1, *self.steps][-_RESUMABLE_CHECKPOINTS:]
        found = [step for step in newest if step < 0 or self._optimizer_path(step).exists()]
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
        for step in self.steps:
            if step > last:
                self._drop(self._checkpoint_path(step))
        path = self.path / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= last]
        files.write(path, "".join(line + "\n" for line in kept))
        return checkpoint

    def _drop(self, checkpoint: Path) -> None:
        """Remove a checkpoint: at once by its name, then from the disk."""
        temporary = checkpoint.with_name(files.TEMPORARY + checkpoint.name)
        with files.explain_os_errors(checkpoint):
            shutil.rmtree(temporary, ignore_errors=True)
            checkpoint.rename(temporary)
            shutil.rmtree(temporary)

    def _checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def _optimizer_path(self, step: int) -> Path:
        return self._checkpoint_path(step) / "optimizer.safetensors"


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
    if path.exists() and not path.is_dir():
        raise RunError(f"out={str(path)!r}: is a file; give a folder")
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    if not [name for name in names if not name.startswith(files.TEMPORARY)]:
        return False
    if "config.json" not in names:
        raise RunError(f"out={str(path)!r}: holds other files; give a new or an empty folder")
    if not resume:
        raise RunError(
            f"out={str(path)!r}: holds another run or other results; --resume goes on with the same "
            "settings, others need a new folder"
        )
    return True


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that were written to their end; a kill can leave half of one behind."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError) as error:
        advice = f"delete {path.parent} to go on from the checkpoint before it"
        raise RunError(f"{path}: is damaged ({error}); {advice}") from None


def _name(saved: str) -> str:
    """Return the present name of a parameter; in old runs mixers and MLPs were lists of their own."""
    return re.sub(r"^(mixer|mlp)s\.(\d+)\.", r"blocks.\2.\1.", saved)
