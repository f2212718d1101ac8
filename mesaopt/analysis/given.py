"""Arguments of analyses: a model or the run that has it, a task or its settings."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mesaopt.config import TaskConfig
from mesaopt.errors import wrong_type
from mesaopt.tasks import Batch, Task, make_task
from mesaopt.training import Run, load_run

AnyModel = nn.Module | Run | str | Path
"""A model, or the run that has one, or the path of that run."""
AnyTask = Task | TaskConfig
"""A task, or its settings."""


def as_model(model: object, argument: str = "model") -> nn.Module:
    """Return the model that is meant.

    Args:
        model: a module; of a run, or of the path of a run folder, the trained model.
        argument: its name, for errors.

    Returns:
        The module.

    Raises:
        TypeError: there is no model in it.
        RunError: there is no run at this path, or a file is damaged.

    Example:
        >>> from mesaopt import recipes
        >>> as_model(recipes.get("lsa-1"))
        Traceback (most recent call last):
        ...
        TypeError: model is a RunConfig: must be a model, a Run or its path; train makes a Run of settings
    """
    model = loaded(model)
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Run):
        return model.model
    hint = "; train makes a Run of settings" if hasattr(model, "train") else ""
    raise wrong_type(argument, model, f"a model, a Run or its path{hint}")


def loaded(model: Any) -> Any:
    """Load the run of a path, for those who need both its model and its task; all else stays as it is."""
    return load_run(model, device="cpu") if isinstance(model, str | Path) else model


def as_task(task: object, argument: str = "task") -> Task:
    """Return the task that is meant.

    Args:
        task: a task, or its settings.
        argument: its name, for errors.

    Returns:
        The task.

    Raises:
        TypeError: it draws no batches.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> as_task(LinearSystemConfig(dim=3)).config.dim
        3
        >>> as_task("linear_system")
        Traceback (most recent call last):
        ...
        TypeError: task is 'linear_system': must be a task with .sample, or its settings
    """
    if isinstance(task, TaskConfig):
        return make_task(task)
    if isinstance(task, Task) and not isinstance(task, type):
        return task
    hint = ", such as its .config.task" if isinstance(task, Run) else ""
    hint = ", such as its .task" if hasattr(task, "task") else hint
    raise wrong_type(argument, task, f"a task with .sample, or its settings{hint}")


def task_of(model: object, task: AnyTask | None) -> Task:
    """Return the task that is meant; that of a loaded run where none is given."""
    if task is None and isinstance(model, Run):
        return make_task(model.config.task)
    return as_task(task)


def as_tokens(x: object, argument: str = "tokens") -> Tensor:
    """Return the tokens that are meant: a tensor, or those of a batch.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Batch):
        return x.tokens
    hint = "; its .sample makes one" if hasattr(x, "sample") else ""
    raise wrong_type(argument, x, f"a tensor or a Batch{hint}")
