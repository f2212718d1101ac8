"""Checks of this machine that compute: what `mesaopt doctor --measure` adds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mesaopt import recipes
from mesaopt.bench.train import matmul_flops
from mesaopt.commands.checks import Check
from mesaopt.commands.diagnosis import DIAGNOSIS_SECONDS
from mesaopt.console import duration
from mesaopt.papers import reproduce as papers
from mesaopt.papers.trainings import costs
from mesaopt.progress import ProgressDisplay, Stage
from mesaopt.training import StepCosts

_LEAST_RATE = 20e9  # of one thread, float32: half of what AVX2 reaches at 2 GHz
_TIMED = "a few steps were timed here"
_MEASURING = "measuring and drawing as on two cores with AVX-512"


@dataclass(frozen=True)
class CommandTime:
    """How long a command takes here."""

    command: str
    seconds: float
    how: str

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        return {"command": self.command, "time": f"about {duration(self.seconds)}", "how": self.how}


def measure() -> tuple[list[Check], list[CommandTime]]:
    """Measure speed, and estimate the time of some commands, with a progress bar."""
    parts: dict[str, Callable[[], Check | CommandTime]] = {
        "matrix products in float32": lambda: _matrix_product(torch.float32),
        "matrix products in float64": lambda: _matrix_product(torch.float64),
        "tiny numbers": _denormals,
        "a GPU for torch": _gpu,
        "steps of tf-7": _training,
        "the demo": _demo,
        "steps of the core study": _core,
    }
    found = []
    with ProgressDisplay([Stage(name, 1, 1.0) for name in parts]) as display:
        for name, part in parts.items():
            display.begin(name)
            found.append(part())
    checks = [one for one in found if isinstance(one, Check)]
    return checks, [one for one in found if isinstance(one, CommandTime)]


def _matrix_product(dtype: torch.dtype) -> Check:
    rate, threads = matmul_flops(dtype), torch.get_num_threads()
    name = f"matrix product, {str(dtype).removeprefix('torch.')}"
    found = f"{rate / 1e9:.0f} GFLOP/s with {threads} threads"
    if rate / threads >= _LEAST_RATE * (1 if dtype == torch.float32 else 0.5):
        return Check(name, "ok", found)
    advice = "other programs may compute: look again when they have ended"
    return Check(name, "slow", found, advice)


def _denormals() -> Check:
    """Multiply numbers below 1e-38, which take some processors a hundred times as long."""
    x = torch.full((2**18,), 0.5)
    usual, tiny = _seconds(lambda: x * 1e-3), _seconds(lambda: x * 1e-39)
    found = f"a product below 1e-38 takes {tiny / usual:.1f} times as long as others"
    if tiny < 3 * usual:
        return Check("tiny numbers", "ok", found)
    advice = "only if your model makes them: torch.set_flush_denormal(True)"
    return Check("tiny numbers", "slow", found, advice)


def _seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(20):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _gpu() -> Check:
    if not torch.cuda.is_available():
        return Check("device that auto means", "ok", "cpu")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("device that auto means", "ok", f"cuda: {', '.join(names)}")


def _training() -> CommandTime:
    config = recipes.get("tf-7")
    seconds = config.train.steps * StepCosts().of([config]).seconds
    return CommandTime("mesaopt train tf-7", seconds, f"{config.train.steps:,} steps; {_TIMED}")


def _demo() -> CommandTime:
    study = papers.get_study("core")
    seconds = DIAGNOSIS_SECONDS + sum(figure.seconds["small"] for figure in study.figures)
    return CommandTime("mesaopt demo", seconds, _MEASURING)


def _core() -> CommandTime:
    plan = papers.make_plan("core", scale="small")
    seconds = sum(cost.seconds for cost in costs(plan))
    seconds += sum(papers.measuring_seconds(plan).values())
    how = f"of each training {_TIMED}; {_MEASURING}"
    return CommandTime("mesaopt reproduce core --scale small", seconds, how)
