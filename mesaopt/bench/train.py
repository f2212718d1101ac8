"""How fast a training step is, in time and as a share of what this machine's arithmetic allows."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from mesaopt import recipes
from mesaopt.bench.official import Comparison, OfficialCode, check, compare
from mesaopt.config import RunConfig
from mesaopt.console import duration
from mesaopt.errors import ConfigError
from mesaopt.training import Trainer, peak_memory_bytes
from mesaopt.training.environment import part_size_of
from mesaopt.workers import num_threads, training_workers

_WARM_UP, _SECONDS_A_ROUND = 5, 0.5


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One optimiser step of a recipe, batch generation included."""

    recipe: str
    steps: int
    """Of its whole training."""
    batch_size: int
    length: int
    """Tokens in a sequence."""
    milliseconds: float
    """Median, with all threads."""
    one_thread_milliseconds: float
    """Median with a single thread: the same numbers, bit for bit."""
    fastest: float
    slowest: float
    data_milliseconds: float
    """Median time to generate a batch, part of the step."""
    tokens_per_second: float
    peak_memory_mib: float
    """Of the process, torch itself included."""
    idle_memory_mib: float
    """Of the process before the first step."""
    flops: int
    """Floating-point operations of the matrix products of one step."""
    matmul_flops: float
    """Operations per second of a large float32 matrix product, here and with as many threads."""
    threads: int
    """That compute parts of a batch."""
    repeats: int
    official: Comparison | None = None
    """With the authors' code, if that was asked for."""

    @property
    def share_of_peak(self) -> float:
        """Share of the machine's matrix-product rate that the step reaches."""
        return self.flops / (self.milliseconds / 1000) / self.matmul_flops

    def describe(self, *, goals: bool = False) -> list[tuple[str, str]]:
        """Return the lines that `mesaopt bench train` prints.

        Args:
            goals: add what the developers of the package look at.

        Returns:
            Names and values.
        """
        spread = f"{self.fastest:.1f} to {self.slowest:.1f} in {self.repeats} runs"
        memory = (
            f"{self.peak_memory_mib:.0f} MiB, {self.idle_memory_mib:.0f} MiB before the first step"
        )
        alone = f"{self.one_thread_milliseconds:.1f} ms"
        whole = self.steps * self.milliseconds / 1000
        rows = [
            ("sequences", f"{self.batch_size} of {self.length} tokens"),
            ("time of a step", f"{self.milliseconds:.1f} ms (median; {spread})"),
            ("tokens", f"{self.tokens_per_second:,.0f} a second"),
            ("the whole training", f"{self.steps:,} steps, about {duration(whole)} here"),
            ("peak memory", memory),
            ("threads", f"{self.threads}; with one of them a step takes {alone}"),
        ]
        rows += self._goals() if goals else []
        return rows + (self.official.describe() if self.official else [])

    def _goals(self) -> list[tuple[str, str]]:
        """Say how far the step is from what the arithmetic of this machine allows."""
        return [
            ("drawing a batch", f"{self.data_milliseconds:.1f} ms"),
            ("matrix products", f"{self.flops / 1e9:.2f} GFLOP a step"),
            ("float32 rate", f"{self.matmul_flops / 1e9:.0f} GFLOP/s, {self.threads} threads"),
            ("share of that rate", f"{self.share_of_peak:.0%}"),
        ]


def measure_training_step(
    recipe: str = "lsa-2-notebook",
    *,
    repeats: int = 30,
    threads: int | None = None,
    official: OfficialCode | None = None,
) -> TrainingStep:
    """Time training steps of a recipe on the CPU.

    Args:
        recipe: its name.
        repeats: timed steps, after a warm-up; 1 or more.
        threads: number of threads; torch's own choice of threads if not given.
        official: the authors' code, to time in turns with this package.

    Returns:
        The measurement.

    Raises:
        ConfigError: repeats or threads is less than 1, there is no such recipe, or the authors' code has
            no such model.
        RunError: the authors' code is not there or does not run.

    Example:
        >>> measure_training_step(repeats=1).flops > 10**9
        True
    """
    for name, value in (("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be 1 or greater")
    config = recipes.get(recipe)
    if official is not None:
        check(config, official)
    with num_threads(threads or torch.get_num_threads()):
        return _measure(config, repeats, official)


def matmul_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 7) -> float:
    """Return the rate of a large matrix product on the CPU, in operations per second.

    Example:
        >>> matmul_flops(torch.float32, size=64) > 0
        True
    """
    a = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / min(_times(lambda: a @ a, repeats))


def _measure(config: RunConfig, repeats: int, official: OfficialCode | None) -> TrainingStep:
    idle, threads, size = peak_memory_bytes(), torch.get_num_threads(), config.train.batch_size
    trainer = Trainer(config, torch.device("cpu"), part_size=part_size_of(config))
    with FlopCounterMode(display=False) as counter:
        trainer.step(0)
    times, steps = {}, itertools.count(1)
    for count in dict.fromkeys((1, threads)):
        with training_workers(count) as workers:
            trainer.workers = workers
            times[count] = _times(lambda: trainer.step(next(steps)), repeats)
    data_times = _times(lambda: trainer.data.task.sample(size, seed=0), repeats)
    median = statistics.median(times[threads])
    comparison = None
    if official is not None:
        count = max(1, round(_SECONDS_A_ROUND / median))
        with training_workers(threads) as workers:
            trainer.workers = workers
            comparison = compare(config, official, lambda: trainer.step(next(steps)), steps=count)
    return TrainingStep(
        recipe=config.recipe,
        steps=config.train.steps,
        batch_size=size,
        length=config.task.length,
        milliseconds=median * 1000,
        one_thread_milliseconds=statistics.median(times[1]) * 1000,
        fastest=min(times[threads]) * 1000,
        slowest=max(times[threads]) * 1000,
        data_milliseconds=statistics.median(data_times) * 1000,
        tokens_per_second=size * config.task.length / median,
        peak_memory_mib=peak_memory_bytes() / 2**20,
        idle_memory_mib=idle / 2**20,
        flops=counter.get_total_flops(),
        matmul_flops=matmul_flops(torch.float32),
        threads=threads,
        repeats=repeats,
        official=comparison,
    )


def _times(work: Callable[[], object], repeats: int) -> list[float]:
    for _ in range(_WARM_UP):
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times
