"""What a run will cost on this machine, found out by trying a few steps."""

import statistics
import time
from dataclasses import dataclass

from mesaopt.config import RunConfig
from mesaopt.training.environment import resolve_device
from mesaopt.training.loop import Trainer

_WARM_UP, _TIMED = 2, 5


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step of a run costs here.

    Example:
        >>> StepCost(parameters=6400, seconds=0.01).parameters
        6400
    """

    parameters: int
    seconds: float


def step_cost(config: RunConfig, device: str = "auto") -> StepCost:
    """Time a few steps of a run, without a folder.

    Args:
        config: of the run.
        device: where.

    Returns:
        The number of parameters and the median time of a step, in seconds.

    Example:
        >>> from mesaopt import recipes
        >>> step_cost(recipes.get("lsa-1"), "cpu").parameters
        6400
    """
    trainer = Trainer(config, resolve_device(device))
    times = []
    for step in range(_WARM_UP + _TIMED):
        started = time.perf_counter()
        trainer.step(step).item()  # waits for the device
        times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.parameters.values())
    return StepCost(parameters, statistics.median(times[_WARM_UP:]))
