"""The engine of this machine: processes that train one folder after another."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from mesaopt.config.checks import require_not_negative, require_positive_if_given, require_types
from mesaopt.sweeps.engine import Ended
from mesaopt.training import resolve_device


@dataclass(frozen=True, kw_only=True)
class Local:
    """Trains folders in processes of this machine: one thread on a core, or a GPU, for each.

    Example:
        >>> Local(processes=0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: processes=0: must be greater than 0
    """

    processes: int | None = None
    """Folders that are trained at the same time; as many as there are cores, or GPUs, if not given."""
    retries: int = 2
    """How often a folder whose process dies, such as for want of memory, is taken up again."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive_if_given(self, "processes")
        require_not_negative(self, "retries")

    def check(self, device: str) -> None:
        """Make sure that the device is here."""
        resolve_device(device)

    def devices(self, device: str) -> list[str]:
        """Give the device of each process.

        Raises:
            RunError: there is no such device here.
        """
        where = resolve_device(device)
        if where.type == "cpu":
            return ["cpu"] * (self.processes or torch.get_num_threads())
        found = range(torch.cuda.device_count()) if where.index is None else [where.index]
        return [f"cuda:{found[i % len(found)]}" for i in range(self.processes or len(found))]

    def run(self, folders: Sequence[Path], *, device: str, logs: Path) -> Generator[Ended | None]:
        """Run the jobs, see :class:`mesaopt.sweeps.Engine`."""
        waiting, deaths = deque(folders), Counter[Path]()
        free, workers = self.devices(device), dict[IO[str], _Worker]()
        try:
            while waiting or any(worker.folder for worker in workers.values()):
                while waiting and free:
                    worker = _Worker(free.pop())
                    workers[worker.answers] = worker
                    worker.give(waiting.popleft())
                busy = [stream for stream, worker in workers.items() if worker.folder]
                for stream in select.select(busy, [], [], 1.0)[0]:
                    folder, problem, is_dead = workers[stream].take()
                    if is_dead:
                        free.append(workers.pop(stream).device)
                        deaths[folder] += 1
                    elif waiting:
                        workers[stream].give(waiting.popleft())
                    if is_dead and deaths[folder] <= self.retries:
                        waiting.append(folder)
                    else:
                        yield Ended(folder, problem)
                yield None
        finally:
            for worker in workers.values():
                worker.end()


class _Worker:
    """A process that trains the folders it is given, one after another."""

    def __init__(self, device: str):
        self.device = device
        self.folder: Path | None = None
        """The folder that it trains now."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mesaopt.sweeps.job", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the caller alone, which ends its workers
        )

    @property
    def answers(self) -> IO[str]:
        """The stream of its answers."""
        assert self._process.stdout is not None
        return self._process.stdout

    def give(self, folder: Path) -> None:
        """Give it a folder; where it has died, its answers have ended."""
        assert self._process.stdin is not None
        self.folder = folder
        with contextlib.suppress(OSError):
            print(json.dumps(str(folder)), file=self._process.stdin, flush=True)

    def take(self) -> tuple[Path, str | None, bool]:
        """Take its answer: the folder, the problem if there is one, and whether the process has died."""
        assert self.folder is not None
        folder, self.folder = self.folder, None
        line = self.answers.readline()
        if line.endswith("\n"):
            return folder, json.loads(line), False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        status = self.end()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return folder, ": ".join([f"its process {how}", *last]), True

    def end(self) -> int:
        """End the process, and give its status."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was meant for a dead process
                stream.close()  # type: ignore[union-attr]
        return self._process.wait()
