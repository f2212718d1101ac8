"""What a run will cost on this machine, found out by trying a few steps."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mesaopt.config import RunConfig
from mesaopt.training.environment import resolve_device
from mesaopt.training.trainer import Trainer

_WARM_UP, _TIMED = 2, 5


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step of a run costs here; its share, where seeds are trained side by side.

    Example:
        >>> StepCost(parameters=6400, seconds=0.01).parameters
        6400
    """

    parameters: int
    seconds: float


def step_cost(
    config: RunConfig, device: str = "auto", *, seeds: Sequence[int] | None = None
) -> StepCost:
    """Time a few steps of a run, without a folder.

    Args:
        config: of the run.
        device: where.
        seeds: trained side by side; that of the configuration alone if not given.

    Returns:
        The number of parameters and the median time of a step, in seconds.

    Example:
        >>> from mesaopt import recipes
        >>> step_cost(recipes.get("lsa-1"), "cpu").parameters
        6400
    """
    trainer = Trainer(config, resolve_device(device), seeds=seeds)
    times = []
    for step in range(_WARM_UP + _TIMED):
        started = time.perf_counter()
        trainer.step(step).tolist()  # waits for the device
        times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.parameters.values())
    count = len(trainer.seeds)
    return StepCost(parameters // count, statistics.median(times[_WARM_UP:]) / count)
