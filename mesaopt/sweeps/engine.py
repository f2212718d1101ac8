"""The interface of an engine, and the engines by name."""

import importlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mesaopt.config import from_dict
from mesaopt.errors import ConfigError, MissingPackageError, suggest, wrong_type

ENGINES = {
    "local": ("mesaopt.sweeps.local_engine", "Local"),
    "ray": ("mesaopt.sweeps.ray_engine", "Ray"),
    "slurm": ("mesaopt.sweeps.slurm_engine", "Slurm"),
}
"""Module and class of each engine by name; its module imports what it needs when it is first used."""


@dataclass(frozen=True)
class Ended:
    """The end of a job.

    Example:
        >>> Ended(Path("runs/lsa-1-seed0")).problem is None
        True
    """

    folder: Path
    problem: str | None = None
    """Why the run of the folder has not come to its end; None where it has."""


class Engine(Protocol):
    """Trains run folders to their end, several at once, each by :func:`mesaopt.sweeps.train_folder`."""

    def check(self, device: str) -> None:
        """Make sure that jobs can be run, before anything is written.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:<number>".

        Raises:
            ConfigError: there can be no such device.
            MissingPackageError: the package of the engine is not installed.
            RunError: there is no such device here, or the cluster cannot be reached.
        """
        ...

    def run(self, folders: Sequence[Path], *, device: str, logs: Path) -> Generator[Ended | None]:
        """Run a job for each folder; closing the iterator ends those that are still running.

        Args:
            folders: absolute paths of run folders, which every machine sees.
            device: "auto", "cpu", "cuda" or "cuda:<number>".
            logs: folder for what the engine writes itself, if it does.

        Yields:
            The end of each job, and None every second or so.
        """
        ...


def make_engine(engine: str | Engine, options: Mapping[str, Any] | None = None) -> Engine:
    """Make an engine from its name.

    Args:
        engine: one of `ENGINES`, or an engine, which is given back.
        options: fields of its class; of "slurm" also any parameter that submitit knows.

    Returns:
        The engine.

    Raises:
        ConfigError: there is no such engine or option.

    Example:
        >>> make_engine("local", {"processes": 4})
        Local(processes=4, retries=2)
        >>> make_engine("rya")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: engine='rya': did you mean 'ray'?
    """
    if not isinstance(engine, str):
        if not (hasattr(engine, "check") and hasattr(engine, "run")):
            raise wrong_type("engine", engine, f"an engine or one of {', '.join(ENGINES)}")
        return engine
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}: {suggest(engine, ENGINES)}")
    module, name = ENGINES[engine]
    kind = getattr(importlib.import_module(module), name)
    values = dict(options or {})
    if "parameters" in kind.__dataclass_fields__:
        others = [name for name in values if name not in kind.__dataclass_fields__]
        values["parameters"] = {name: values.pop(name) for name in others}
    return from_dict(kind, values, where=f"engine {engine}")


def check_device_name(device: str) -> None:
    """Refuse what names no device on any machine; those of a cluster may have others than this one."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise ConfigError(f"device={device!r}: must be auto, cpu, cuda or cuda:N")


def imported(package: str, *, extra: str) -> Any:
    """Import the package of an engine, or say how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        how = f"pip install 'mesaopt[{extra}]'"
        raise MissingPackageError(f"engine={extra!r}: {package} is not installed: {how}") from error
