"""The cost of a run on this machine, measured on a few steps."""

import contextlib
import statistics
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from mesaopt.config import RunConfig
from mesaopt.tasks import make_task
from mesaopt.training.devices import Devices
from mesaopt.training.environment import part_size_of, resolve_device
from mesaopt.training.loop import as_config, as_diverged_error
from mesaopt.training.seeds import SeedsTrainer
from mesaopt.training.trainer import Trainer
from mesaopt.workers import num_threads

_WARM_UP, _TIMED = 2, 5  # steps
_FEW = (4, 16)  # sequences of a rough estimate, before a whole part
_QUICK = 0.03  # seconds; of a quicker step much is overhead, and more sequences are timed


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
    config: RunConfig | str,
    device: str = "auto",
    *,
    seeds: Sequence[int] | None = None,
    devices: Devices | None = None,
) -> StepCost:
    """Time a few steps of a run, without a folder.

    Args:
        config: of the run, or the name of a recipe.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        seeds: trained side by side; the seed of the configuration alone if not given.
        devices: how a process computes, as for :func:`train`, in which seeds are not side by side.

    Returns:
        The number of parameters and the median time of a step, of one run.

    Raises:
        ConfigError: the task gives no batch, or the model does not go with `devices`.
        RunError: there is no such device here.
        DivergedError: a step cannot be made.

    Example:
        >>> from mesaopt import recipes
        >>> step_cost(recipes.get("lsa-1"), "cpu").parameters
        6400
    """
    config = as_config(config)
    configs = [replace(config, seed=seed) for seed in seeds or [config.seed]]
    where = resolve_device(device)
    with contextlib.ExitStack() as stack:
        if devices is not None:
            from mesaopt.training.shared import ProcessGroup, SharedTrainer  # two seconds

            group = stack.enter_context(ProcessGroup.join(where, devices))
            group.check(configs[0])
            trainer = SharedTrainer(configs[0], group)
        elif len(configs) > 1:
            trainer = SeedsTrainer(configs, where)
        else:
            trainer = stack.enter_context(Trainer.open(configs[0], where))
        times = []
        for step in range(_WARM_UP + _TIMED):
            started = time.perf_counter()
            with as_diverged_error(step):
                trainer.step(step).tolist()  # waits for the device
            times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    median = statistics.median(times[_WARM_UP:])
    return StepCost(parameters // len(configs), median / len(configs))


class StepCosts:
    """Rough costs of the steps of many runs, each kind of work timed once.

    Runs whose models and tokens have the same shapes do the same work, whatever systems the sequences are
    from. On a CPU one thread takes a step or two on part of a batch, and its time is scaled to the batch
    and the threads; on a GPU whole steps are timed. :func:`step_cost` takes longer, and is exact.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Raises:
        RunError: there is no such device here.

    Example:
        >>> from mesaopt import recipes
        >>> costs = StepCosts("cpu")
        >>> costs.of([recipes.get("contracting-lsa-1")]) == costs.of([recipes.get("lsa-1")])
        True
    """

    def __init__(self, device: str = "auto"):
        self._device = resolve_device(device)
        self._timed: dict[Hashable, StepCost] = {}

    def of(self, configs: Sequence[RunConfig]) -> StepCost:
        """Estimate the cost of a step.

        Args:
            configs: of runs that are trained side by side, equal except for `seed`.

        Returns:
            The number of parameters and the time of a step, of one run.

        Raises:
            ConfigError: the task gives no batch.
            DivergedError: a step cannot be made.
        """
        train = configs[0].train
        if self._device.type != "cpu" or len(configs) > 1:
            seeds = [config.seed for config in configs]
            key = (len(seeds), train.batch_size, *_work(configs[0]))
            if key not in self._timed:
                self._timed[key] = step_cost(configs[0], str(self._device), seeds=seeds)
            return self._timed[key]
        part = min(train.batch_size, part_size_of(configs[0]))
        key = (part, *_work(configs[0]))
        if key not in self._timed:
            self._timed[key] = _time_sequences(configs[0], part)
        one, parts = self._timed[key], -(-train.batch_size // part)
        share = train.batch_size / min(torch.get_num_threads(), parts)
        return replace(one, seconds=one.seconds * share)


def _work(config: RunConfig) -> tuple[Hashable, ...]:
    """Say what the time for a sequence depends on."""
    batch = make_task(config.task).sample(1, seed=0, step=0, split="train")
    shapes, train = (batch.tokens.shape, batch.targets.shape), config.train
    return repr(config.model), *shapes, train.data, train.precision, train.optimizer


def _time_sequences(config: RunConfig, part: int) -> StepCost:
    """Time one thread on as few sequences as take a while, or on a part of a batch, per sequence."""
    sizes = [*(few for few in _FEW if few < part), part]
    for size in sizes:
        parameters, seconds = _time_one_thread(config, size)
        if seconds > _QUICK:
            break
    return StepCost(parameters, seconds / size)


def _time_one_thread(config: RunConfig, batch_size: int) -> tuple[int, float]:
    """Count parameters, and time a step after a first one."""
    config = replace(config, train=replace(config.train, batch_size=batch_size))
    with num_threads(1):
        trainer = Trainer(config, torch.device("cpu"))
        for step in (0, 1):
            started = time.perf_counter()
            with as_diverged_error(step):
                trainer.step(step)
            seconds = time.perf_counter() - started
    return sum(p.numel() for p in trainer.model.parameters()), seconds
