"""Making a task from its settings."""

from collections.abc import Callable
from typing import Any

from mesaopt.config import (
    ARProcessConfig,
    FewShotConfig,
    LinearSystemConfig,
    NonlinearSystemConfig,
    PartiallyObservedConfig,
    TaskConfig,
    require_config,
)
from mesaopt.tasks.ar_process import ARProcess
from mesaopt.tasks.batch import Task
from mesaopt.tasks.few_shot import FewShot
from mesaopt.tasks.linear_system import LinearSystem
from mesaopt.tasks.nonlinear_system import NonlinearSystem
from mesaopt.tasks.partially_observed import PartiallyObserved

_TASKS: dict[type, Callable[[Any], Task]] = {
    LinearSystemConfig: LinearSystem,
    ARProcessConfig: ARProcess,
    PartiallyObservedConfig: PartiallyObserved,
    NonlinearSystemConfig: NonlinearSystem,
    FewShotConfig: FewShot,
}


def make_task(config: TaskConfig) -> Task:
    """Make the task of the given settings.

    Args:
        config: of any task.

    Returns:
        The task.

    Raises:
        TypeError: these are no settings of a task, such as those of a whole run.

    Example:
        >>> make_task(ARProcessConfig(dim=2, length=4)).sample(3, seed=0).states.shape
        torch.Size([3, 4, 2])
    """
    require_config(config, TaskConfig, part="task")
    return _TASKS[type(config)](config)
