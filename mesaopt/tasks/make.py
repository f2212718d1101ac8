"""From the settings of a task to the task."""

from mesaopt.config import ARProcessConfig, TaskConfig
from mesaopt.tasks.ar_process import ARProcess
from mesaopt.tasks.batch import Task
from mesaopt.tasks.linear_system import LinearSystem


def make_task(config: TaskConfig) -> Task:
    """Make the task that the settings are of.

    Args:
        config: of any task.

    Returns:
        The task.

    Example:
        >>> make_task(ARProcessConfig(dim=2, length=4)).sample(3, seed=0).states.shape
        torch.Size([3, 4, 2])
    """
    return ARProcess(config) if isinstance(config, ARProcessConfig) else LinearSystem(config)
