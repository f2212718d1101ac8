"""The machine that a run is on: devices, versions, memory."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from mesaopt import files
from mesaopt.config import LanguageModelConfig, RunConfig
from mesaopt.errors import RunError
from mesaopt.training.devices import is_launched
from mesaopt.workers import part_size

_PACKAGES = ("mesaopt", "torch", "numpy", "scipy", "matplotlib", "safetensors", "tyro", "rich")


def resolve_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" (the GPU if there is one, else the CPU), "cpu", "cuda" or "cuda:<number>".

    Returns:
        The device.

    Raises:
        RunError: this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    have = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        have.append("cuda")
    if name not in have:
        raise RunError(f"device={name!r}: is not there; devices here: {', '.join(have)}")
    return torch.device(name)


@contextlib.contextmanager
def single_precision() -> Generator[None]:
    """Make float32 torch's default dtype for a while: runs are float32, whatever a caller has set.

    Example:
        >>> with single_precision():
        ...     torch.get_default_dtype()
        torch.float32
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def describe() -> dict[str, Any]:
    """Describe the software and hardware that a result depends on besides its configuration.

    Returns:
        Values for JSON: time, command line, git commit, versions, processor, memory, threads, GPUs.

    Example:
        >>> describe()["num_threads"] >= 1
        True
    """
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "num_threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")) if is_launched() else 1,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def peak_memory_bytes() -> int:
    """Return the largest memory use of this process so far, in bytes of resident memory.

    Example:
        >>> peak_memory_bytes() > 2**20
        True
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def part_size_of(config: RunConfig) -> int:
    """Give the number of sequences in a part of a batch of a new run, by :func:`mesaopt.workers.part_size`.

    Args:
        config: of the run.

    Returns:
        Sequences that one thread computes at once.
    """
    language = isinstance(config.model, LanguageModelConfig)
    tokens = config.task.length if language else None
    return part_size(config.train.batch_size, tokens=tokens)


def _git_state() -> str | None:
    """Return the commit of the checkout, with "+changes" where files differ; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]  # the whole package
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # In a virtual environment inside another repository the package is not tracked.
        if not git("ls-files", "training/environment.py"):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = files.read_text(info).splitlines() if files.exists(info) else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
