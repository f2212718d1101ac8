"""Making a task from its settings."""

from collections.abc import Callable
from typing import Any

from mesaopt.config import (
    ARProcessConfig,
    ContinuousMQARConfig,
    CopyingConfig,
    FewShotConfig,
    LinearSystemConfig,
    MADConfig,
    MQARConfig,
    NonlinearSystemConfig,
    OwnTaskConfig,
    ParityConfig,
    PartiallyObservedConfig,
    RegBenchConfig,
    TaskConfig,
    TextConfig,
    require_config,
)
from mesaopt.tasks.ar_process import ARProcess
from mesaopt.tasks.base import GeneratedTask
from mesaopt.tasks.few_shot import FewShot
from mesaopt.tasks.linear_system import LinearSystem
from mesaopt.tasks.nonlinear_system import NonlinearSystem
from mesaopt.tasks.own import OwnTask
from mesaopt.tasks.partially_observed import PartiallyObserved
from mesaopt.tasks.tokens import (
    MAD,
    MQAR,
    ContinuousMQAR,
    Copying,
    Parity,
    RegBench,
    Text,
    TokenTask,
)

AnyTask = GeneratedTask[Any, Any] | TokenTask[Any] | OwnTask
"""A task made from its settings."""

_TASKS: dict[type, Callable[[Any], AnyTask]] = {
    LinearSystemConfig: LinearSystem,
    ARProcessConfig: ARProcess,
    PartiallyObservedConfig: PartiallyObserved,
    NonlinearSystemConfig: NonlinearSystem,
    FewShotConfig: FewShot,
    OwnTaskConfig: OwnTask,
    TextConfig: Text,
    MQARConfig: MQAR,
    ContinuousMQARConfig: ContinuousMQAR,
    MADConfig: MAD,
    RegBenchConfig: RegBench,
    ParityConfig: Parity,
    CopyingConfig: Copying,
}


def make_task(config: TaskConfig) -> AnyTask:
    """Make the task of the given settings.

    Args:
        config: of any task.

    Returns:
        The task.

    Raises:
        TypeError: these are no settings of a task, such as those of a whole run.
        ConfigError: it is a task of your own, and the settings were read from a file.

    Example:
        >>> make_task(ARProcessConfig(dim=2, length=4)).sample(3, seed=0).states.shape
        torch.Size([3, 4, 2])
    """
    require_config(config, TaskConfig, part="task")
    return _TASKS[type(config)](config)
