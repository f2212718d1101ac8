"""Runs of tasks and models of the user's own: their settings, and their objects given again to a folder."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from mesaopt.config import (
    LanguageModelConfig,
    ModelConfig,
    NetworkConfig,
    OwnModelConfig,
    OwnTaskConfig,
    RunConfig,
    TaskConfig,
    TokenTaskConfig,
    TrainConfig,
    differences,
    small_transformer,
)
from mesaopt.errors import ConfigError, RunError, suggest
from mesaopt.models import make_model, own_model, try_model
from mesaopt.tasks import Task, make_task, own_task
from mesaopt.training.environment import single_precision

TaskLike = Task | TaskConfig | str
"""A task of your own: the object, its settings or those of the library's, or "module:Class"."""
ModelLike = nn.Module | Callable[[], nn.Module] | NetworkConfig | str
"""A model: settings, a module, a function that makes one, or "module:Class"."""


def own_run(
    model: ModelLike | None,
    task: TaskLike,
    *,
    seed: int = 0,
    name: str | None = None,
    train: TrainConfig | None = None,
    **settings: Any,
) -> RunConfig:
    """Make the settings of a run of any task and model, and try both out.

    The task is described at :func:`mesaopt.tasks.own_task`, a module at :func:`mesaopt.models.own_model`.
    A `ModelConfig` needs the widths of the task: `token_dim` and `output_dim`.

    Args:
        model: a `ModelConfig`, a `torch.nn.Module`, a function that makes one, or "module:Class"; None:
            :func:`mesaopt.config.small_transformer` of the widths of the task.
        task: an object with `sample`, settings of a task of the library, or "module:Class".
        seed: of the initial weights and of the training sequences.
        name: of the run, for its folder; the class of the task if not given.
        train: settings of the training; the defaults if not given.
        **settings: fields of :class:`mesaopt.config.TrainConfig` to change, such as `steps=500`.

    Returns:
        The settings, with the objects in them, for :func:`train`, :func:`train_seeds` and
        :func:`step_cost`.

    Raises:
        ConfigError: the task or the model is not what it must be, or a setting is wrong.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> mine = LinearSystem(LinearSystemConfig(dim=2, token_slots=("current",)))
        >>> own_run(nn.Linear(2, 2), mine, steps=5).recipe
        'LinearSystem'
    """
    known = [field.name for field in fields(TrainConfig)]
    for setting in settings:
        if setting not in known:
            raise ConfigError(f"{setting}: is no setting of a training; {suggest(setting, known)}")
    training = replace(train or TrainConfig(), **settings)
    with single_precision():
        task_config = _task_config(task, data=training.data)
        model_config = _model_config(model, task_config)
        config = RunConfig(
            recipe=_default_name(task_config) if name is None else name,
            seed=seed,
            task=task_config,
            model=model_config,
            train=training,
        )
        if isinstance(model_config, OwnModelConfig):
            batch = make_task(task_config).sample(2, seed=seed)
            shape = tuple(batch.targets.shape)
            if isinstance(task_config, TokenTaskConfig):
                shape = (*shape, task_config.vocabulary)
            try_model(make_model(model_config, seed=seed), batch.tokens, shape, **batch.arguments)
    return config


def give_again(
    config: RunConfig,
    path: Path,
    *,
    task: TaskLike | None = None,
    model: ModelLike | None = None,
) -> RunConfig:
    """Put a task and a model of your own into the settings of a run folder, if they are those of the run.

    Args:
        config: as the folder holds it.
        path: of the folder, for messages.
        task: the task; none if not given.
        model: the model; none if not given.

    Returns:
        The settings with the objects.

    Raises:
        RunError: the run has another task or model, or one of the library.
        ConfigError: the object is not what it must be.
    """
    with single_precision():
        if task is not None:
            _require_own(path, "task", config.task.kind)
            given = _task_config(task, data=config.train.data, keywords=_keywords(config.task))
            config = replace(config, task=_same(path, "task", given, config.task))
        if model is not None:
            _require_own(path, "model", config.model.kind)
            given = _model_config(model, config.task, keywords=_keywords(config.model))
            config = replace(config, model=_same(path, "model", given, config.model))
    return config


def _require_own(path: Path, what: str, kind: str) -> None:
    if kind != "own":
        raise RunError(
            f"{path}: {what}.kind={kind!r}: no {what} may be given, its settings are in the folder"
        )


def _same(path: Path, what: str, given: Any, saved: Any) -> Any:
    """Return the settings with the object, under the name that the folder has."""
    given = (
        replace(given, name=saved.name, keywords=saved.keywords) if given.kind == "own" else given
    )
    if changes := differences(given, saved, where=f"{what}."):
        raise RunError(f"{path}: {what}: is not the one of this run ({'; '.join(changes)})")
    return given


def _keywords(config: Any) -> dict[str, Any]:
    return getattr(config, "keywords", {})


def _default_name(config: TaskConfig) -> str:
    return config.name.rpartition(":")[2] if isinstance(config, OwnTaskConfig) else config.kind


def _task_config(
    task: TaskLike, *, data: Any, keywords: Mapping[str, Any] | None = None
) -> TaskConfig:
    """Return the settings of any task."""
    if isinstance(task, TaskConfig):
        return task
    if isinstance(task, str):
        return named_task(task, keywords or {}, data=data)
    return own_task(task, data=data)


def _model_config(
    model: ModelLike | None, task: TaskConfig, *, keywords: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """Return the settings of any model, or of a small one for the task."""
    if model is None:
        if isinstance(task, TokenTaskConfig):
            return LanguageModelConfig(vocabulary=task.vocabulary)
        return small_transformer(token_dim=task.token_dim, output_dim=task.dim)
    if isinstance(model, NetworkConfig):
        return model
    if isinstance(model, str):
        return named_model(model, keywords or {})
    return own_model(model)


def named_task(name: str, keywords: Mapping[str, Any], *, data: Any = "fresh") -> OwnTaskConfig:
    """Import a task by its name, which runs the code of its module, and try it out.

    Args:
        name: "module:Class".
        keywords: arguments of the class.
        data: `train.data` of the run.

    Returns:
        The settings, with the object in them.

    Raises:
        ConfigError: there is no such class, it does not take these arguments, or it makes no task.

    Example:
        >>> named_task("random:Random", {})
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: task.sample: missing a required argument: 'k': must be \
sample(batch_size, *, seed, step, split)
    """
    return own_task(_call("task", name, keywords), name=name, keywords=keywords, data=data)


def named_model(name: str, keywords: Mapping[str, Any]) -> OwnModelConfig:
    """Import a module by its name, which runs the code of its file.

    Args:
        name: "module:Class".
        keywords: arguments of the class.

    Returns:
        The settings, with the function in them that makes it.

    Raises:
        ConfigError: there is no such class, it does not take these arguments, or it makes no module.

    Example:
        >>> named_model("torch.nn:Linear", {"in_features": 3, "out_features": 1}).keywords
        {'in_features': 3, 'out_features': 1}
    """
    return own_model(lambda: _call("model", name, keywords), name=name, keywords=keywords)


def _call(what: str, name: str, keywords: Mapping[str, Any]) -> Any:
    """Import "module:Class" and call it."""
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ConfigError(f"{what}={name!r}: must look like module:Class")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what}={name!r}: cannot be imported: {error}") from error
    try:
        return found(**keywords)
    except TypeError as error:
        raise ConfigError(f"{what}={name!r}: {error}") from error


def fitted_to(model: ModelConfig, task: TaskConfig) -> ModelConfig:
    """Give a model the widths of a task.

    Args:
        model: settings of any widths.
        task: whose tokens and targets it shall take.

    Returns:
        The settings with other `token_dim` and `output_dim`.

    Raises:
        ConfigError: no such model has these widths, or it is a task on tokens.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> plain = LinearSystemConfig(dim=3, token_slots=("current",))
        >>> fitted_to(ModelConfig(embed_dim=8, readout="linear"), plain).output_dim
        3
    """
    if isinstance(task, TokenTaskConfig):
        wanted = "must be 'language' or a module of your own"
        raise ConfigError(f"model.kind='sequence': {wanted}, for {task.kind!r}, a task on tokens")
    return replace(model, token_dim=task.token_dim, output_dim=task.dim)
