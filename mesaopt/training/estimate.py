"""The cost of a run on this machine, measured on a few steps."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mesaopt.config import RunConfig
from mesaopt.training.environment import resolve_device
from mesaopt.training.seeds import SeedsTrainer
from mesaopt.training.trainer import Trainer
from mesaopt.workers import part_size, training_workers

_WARM_UP, _TIMED = 2, 5  # steps


@dataclass(frozen=True)
class StepCost:
    """The cost of one optimiser step of a run; its share of it, where seeds are trained side by side.

    Example:
        >>> StepCost(parameters=6400, seconds=0.01).parameters
        6400
    """

    parameters: int
    """Number of trained numbers of one run."""
    seconds: float
    """Time of one step of one run."""


def step_cost(
    config: RunConfig, device: str = "auto", *, seeds: Sequence[int] | None = None
) -> StepCost:
    """Time a few steps of a run, without a folder.

    Args:
        config: of the run.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        seeds: trained side by side; the seed of the configuration alone if not given.

    Returns:
        The number of parameters and the median time of a step, of one run.

    Raises:
        RunError: there is no such device here.

    Example:
        >>> from mesaopt import recipes
        >>> step_cost(recipes.get("lsa-1"), "cpu").parameters
        6400
    """
    configs = [replace(config, seed=seed) for seed in seeds or [config.seed]]
    where = resolve_device(device)
    together = len(configs) > 1
    with contextlib.ExitStack() as stack:
        if together:
            trainer = SeedsTrainer(configs, where)
        elif where.type != "cpu":
            trainer = Trainer(config, where)
        else:
            workers = stack.enter_context(training_workers(torch.get_num_threads()))
            size = part_size(config.train.batch_size)
            trainer = Trainer(configs[0], where, part_size=size, workers=workers)
        times = []
        for step in range(_WARM_UP + _TIMED):
            started = time.perf_counter()
            trainer.step(step).tolist()  # waits for the device
            times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    median = statistics.median(times[_WARM_UP:])
    return StepCost(parameters // len(configs), median / len(configs))
