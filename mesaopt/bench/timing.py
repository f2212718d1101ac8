"""Times and peak memory, in this process and in a fresh one."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mesaopt.bench.problems import differentiate, family
from mesaopt.errors import RunError
from mesaopt.training import peak_memory_bytes


@dataclass(frozen=True)
class Alone:
    """Time and memory of an operator in a process of its own."""

    seconds: float
    """Median of forward and backward."""
    fastest: float
    peak_bytes: int
    """Of the whole process, in its first run."""
    idle_bytes: int
    """Before the problem was made: Python, torch, and a tiny run to load the libraries."""


def time_in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of several functions, run in turn so that other load hits all alike.

    Example:
        >>> len(time_in_turn({"nothing": lambda: None}, 3)["nothing"])
        3
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def run_alone(
    operator: str, shape: tuple[int, int, int, int], *, repeats: int, num_threads: int
) -> Alone:
    """Run an operator of :func:`mesaopt.bench.problems.family` forward and backward in a fresh process.

    Raises a RunError if the process fails, for lack of memory for instance.

    Example:
        >>> alone = run_alone("mesa", (1, 8, 1, 4), repeats=1, num_threads=1)
        >>> 0 < alone.idle_bytes <= alone.peak_bytes
        True
    """
    wanted = {"operator": operator, "shape": shape, "repeats": repeats, "threads": num_threads}
    command = [sys.executable, "-m", "mesaopt.bench.timing", json.dumps(wanted)]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"{operator} at {shape} ended with status {done.returncode}: {last}")
    return Alone(**json.loads(done.stdout))


def peak_bytes() -> int:
    """Return the largest resident size in bytes since this program began.

    On Linux without the size of a larger parent, which :func:`mesaopt.training.peak_memory_bytes` includes.

    Example:
        >>> peak_bytes() > 2**20
        True
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return peak_memory_bytes()


def _run_here(wanted: dict[str, Any]) -> Alone:
    torch.set_num_threads(wanted["threads"])
    # Libraries load and threads start at the first run, whatever its size.
    small = family(1, 32, 1, 8)[wanted["operator"]]
    differentiate(small.operator, small.make(), torch.float32)
    idle = peak_bytes()
    member = family(*wanted["shape"])[wanted["operator"]]
    problem, repeats = member.make(), wanted["repeats"]
    seconds, peak = [], idle
    for turn in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        differentiate(member.operator, problem, torch.float32)
        if turn > 0 or repeats == 1:
            seconds.append(time.perf_counter() - started)
        if turn == 0:
            peak = peak_bytes()  # what holes later runs leave between their tensors is not counted
    return Alone(statistics.median(seconds), min(seconds), peak, idle)


if __name__ == "__main__":
    print(json.dumps(vars(_run_here(json.loads(sys.argv[1])))))
