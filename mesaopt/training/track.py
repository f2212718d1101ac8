"""Loggers of trainings: TensorBoard, Weights & Biases and trackio, each imported when it is first used.

A logger is any function of a :class:`mesaopt.progress.Progress`, which `train` calls after each evaluation.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.errors import ConfigError, MissingPackageError, suggest
from mesaopt.progress import OnProgress, Progress


class _Logger:
    """Opens the log of every run when its first numbers come, and closes it after the last."""

    def __init__(self) -> None:
        self._logs: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        """Log the metrics of one evaluation."""
        if progress.stage not in self._logs:
            self._logs[progress.stage] = self._open(progress)
        self._log(self._logs[progress.stage], progress)
        if progress.done >= progress.total:
            self._close(self._logs.pop(progress.stage))

    def _open(self, progress: Progress) -> Any:
        raise NotImplementedError

    def _log(self, log: Any, progress: Progress) -> None:
        log.log(dict(progress.metrics), step=progress.done)

    def _close(self, log: Any) -> None:
        log.finish()


class TensorBoard(_Logger):
    """Log to files of TensorBoard, one folder per run: `tensorboard --logdir runs/tensorboard`.

    What an earlier session has logged past the step where a resumed run goes on is not shown.

    Args:
        folder: of the folders of runs.

    Raises:
        MissingPackageError: tensorboard is not installed.

    Example:
        >>> TensorBoard("runs/tensorboard").folder
        PosixPath('runs/tensorboard')
    """

    def __init__(self, folder: str | Path = "runs/tensorboard"):
        super().__init__()
        _imported("tensorboard")
        self.folder = files.as_path(folder)

    def _open(self, progress: Progress) -> Any:
        writer = _imported("torch.utils.tensorboard").SummaryWriter
        return writer(str(self.folder / progress.stage), purge_step=progress.done)

    def _log(self, log: Any, progress: Progress) -> None:
        for name, value in progress.metrics.items():
            log.add_scalar(name, value, progress.done)
        log.flush()

    def _close(self, log: Any) -> None:
        log.close()


class WeightsAndBiases(_Logger):
    """Log to Weights & Biases. A resumed run goes on; one that begins anew replaces that of its name.

    Args:
        project: name of the project.
        **settings: other arguments of `wandb.init`.

    Raises:
        MissingPackageError: wandb is not installed.
    """

    def __init__(self, project: str = "mesaopt", **settings: Any):
        super().__init__()
        self._wandb, self._settings = _imported("wandb"), {"project": project, **settings}

    def _open(self, progress: Progress) -> Any:
        names = {"name": progress.stage, "id": progress.stage, "reinit": "create_new"}
        resume = "allow" if progress.done else None
        return self._wandb.init(**names | {"resume": resume} | self._settings)

    def _log(self, log: Any, progress: Progress) -> None:
        if progress.done >= log.step:  # its next step: earlier ones have been logged
            super()._log(log, progress)


class Trackio(_Logger):
    """Log to trackio. A resumed run goes on; one that begins anew is a new one.

    Args:
        project: name of the project.
        **settings: other arguments of `trackio.init`.

    Raises:
        MissingPackageError: trackio is not installed.
    """

    def __init__(self, project: str = "mesaopt", **settings: Any):
        super().__init__()
        self._trackio, self._settings = _imported("trackio"), {"project": project, **settings}

    def _open(self, progress: Progress) -> Any:
        resume = "allow" if progress.done else "never"
        return self._trackio.init(**{"name": progress.stage, "resume": resume} | self._settings)


TRACKERS: dict[str, Callable[[], OnProgress]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Loggers by the name of their package."""


def tracker(name: str) -> OnProgress:
    """Make the logger of a package.

    Args:
        name: one of `TRACKERS`.

    Returns:
        The logger.

    Raises:
        ConfigError: there is none of this name.
        MissingPackageError: its package is not installed.

    Example:
        >>> tracker("tensorbord")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: track='tensorbord': did you mean 'tensorboard'?
    """
    if name not in TRACKERS:
        raise ConfigError(f"track={name!r}: {suggest(name, TRACKERS)}")
    return TRACKERS[name]()


def _imported(module: str) -> Any:
    """Import a package of the extra `track`, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[-1]
        how = "pip install 'mesaopt[track]'"
        raise MissingPackageError(f"{package} is not installed: {how}") from error
