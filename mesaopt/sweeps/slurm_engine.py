"""The engine of a Slurm cluster: an array of jobs by submitit, queued again where they are ended."""

import re
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesaopt.config.checks import require_not_negative, require_positive, require_types
from mesaopt.errors import ConfigError, RunError, printable, suggest
from mesaopt.sweeps.engine import Ended, check_device_name, imported
from mesaopt.sweeps.job import train_folder

_SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name", "stderr_to_stdout")
"""Parameters that submitit knows without the name of a cluster before them."""
_MOST_TIMEOUTS = 10**6  # each goes on from the newest checkpoint


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Trains folders in an array of Slurm jobs, on machines that have this package and see the folders.

    A job that is preempted, or ended by its time limit, is queued again and goes on from the newest
    checkpoint.

    Example:
        >>> Slurm(parameters={"partition": "long", "timeout_min": 600}).at_once
        256
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    """Of submitit, such as timeout_min, gpus_per_node, mem_gb, and those of sbatch, such as partition."""
    at_once: int = 256
    """Jobs of the array that may run at the same time."""
    retries: int = 2
    """How often a job that ends without an answer, such as for want of memory, is submitted again."""
    cluster: str = "slurm"
    """Of submitit: "slurm", or "local" to try it without Slurm."""
    look_seconds: float = 10.0
    """Time between two questions of how the jobs are doing."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "at_once")
        require_not_negative(self, "retries", "look_seconds")

    def check(self, device: str) -> None:
        """Make sure that submitit is installed, Slurm is here, and the parameters are known."""
        check_device_name(device)
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder))

    def run(self, folders: Sequence[Path], *, device: str, logs: Path) -> Generator[Ended | None]:
        """Run the jobs, see :class:`mesaopt.sweeps.Engine`."""
        executor = self._executor(logs)
        job = _Job(device, int(self.parameters.get("cpus_per_task", 1)))
        running = list(zip(executor.map_array(job, map(str, folders)), folders, strict=True))
        tries = Counter[Path]()
        try:
            while running:
                for pair in [one for one in running if one[0].done()]:
                    running.remove(pair)
                    path, (has_answer, problem) = pair[1], _answer(pair[0])
                    tries[path] += 1
                    if has_answer or tries[path] > self.retries:
                        yield Ended(path, problem)
                    else:
                        running.append((executor.submit(job, str(path)), path))
                yield None
                time.sleep(self.look_seconds if running else 0.0)
        finally:
            for one, _ in running:
                one.cancel(check=False)

    def _executor(self, folder: Path) -> Any:
        """Make the executor of submitit."""
        submitit = imported("submitit", extra="slurm")
        given = {"name": "mesaopt", "timeout_min": 60, "array_parallelism": self.at_once}
        parameters = {
            name if name in _SHARED else f"slurm_{name}": value
            for name, value in (given | self.parameters).items()
        }
        timeouts = {f"{self.cluster}_max_num_timeout": _MOST_TIMEOUTS}
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.cluster, **timeouts)
            executor.update_parameters(**parameters)
        except RuntimeError as error:
            raise RunError(f"engine='slurm': there is no Slurm here: {error}") from None
        except (NameError, ValueError, AssertionError, TypeError) as error:
            raise ConfigError(f"engine slurm: {_said(error)}") from None
        return executor


class _Job:
    """The function of a Slurm job; queued again, it is called again with the same folder."""

    def __init__(self, device: str, threads: int):
        self.device, self.threads = device, threads

    def __call__(self, path: str) -> str | None:
        return train_folder(path, self.device, self.threads)

    def checkpoint(self, path: str) -> Any:
        """Say what to call when the job is queued again."""
        return imported("submitit", extra="slurm").helpers.DelayedSubmission(self, path)


def _answer(job: Any) -> tuple[bool, str | None]:
    """Say whether a job has answered, and give its problem."""
    try:
        return True, job.result()
    except Exception as error:  # whatever ended the job: submitit has several kinds
        last = str(error).strip().splitlines() or [type(error).__name__]
        return False, f"Slurm: {printable(last[0])}: {printable(last[-1])}"


def _said(error: Exception) -> str:
    """Name the parameter that submitit refuses, and what may be meant."""
    text = str(error)
    unknown, known = re.search(r"Unknown argument '(\w+)'", text), text.partition("arguments: ")[2]
    if unknown and known:
        names = [*_SHARED, *sorted(known.splitlines()[0].split(", "))]
        return f"unknown key {unknown[1]!r}; {suggest(unknown[1], names)}"
    return printable(text.splitlines()[0] if text else error)
