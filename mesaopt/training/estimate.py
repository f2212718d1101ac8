"""The cost of a run on this machine, measured on a few steps."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mesaopt.config import RunConfig
from mesaopt.training.environment import resolve_device
from mesaopt.training.seeds import SeedsTrainer
from mesaopt.training.trainer import Trainer

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
    with contextlib.ExitStack() as stack:
        if len(configs) > 1:
            trainer = SeedsTrainer(configs, where)
        else:
            trainer = stack.enter_context(Trainer.open(configs[0], where))
        times = []
        for step in range(_WARM_UP + _TIMED):
            started = time.perf_counter()
            trainer.step(step).tolist()  # waits for the device
            times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    median = statistics.median(times[_WARM_UP:])
    return StepCost(parameters // len(configs), median / len(configs))
