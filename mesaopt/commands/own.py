"""Tasks and models of the user's own on the command line: `--task module:Class`, `--model ...`."""

import os
import sys
from typing import Any

from mesaopt import arguments as args
from mesaopt import recipes
from mesaopt.config import (
    ModelConfig,
    NetworkConfig,
    RunConfig,
    TaskConfig,
    override,
    parse_assignments,
    parse_value,
)
from mesaopt.errors import ConfigError

_RECIPE = "tf-3"
_PARTS = ("task", "model", "train")


def configs_of(command: args.Train) -> list[RunConfig]:
    """Return the settings of every seed of a training."""
    if "seed" in parse_assignments(command.set, "set", like="train.steps=500"):
        raise ConfigError("set='seed=...': must be given as --seed N")
    seeds = range(command.seed, command.seed + command.seeds)
    if command.task is None and command.model is None:
        if not command.recipe:
            problem = "is missing: give one of those that mesaopt list recipes shows, or --task"
            raise ConfigError(f"recipe: {problem}")
        return [override(recipes.get(command.recipe, seed=seed), command.set) for seed in seeds]
    return _own_configs(command, list(seeds))


def _own_configs(command: args.Train, seeds: list[int]) -> list[RunConfig]:
    """Begin with a recipe, and put a task or a model of the user's own into its place."""
    from dataclasses import replace

    from mesaopt.training import own_run

    base = recipes.get(command.recipe or _RECIPE)
    settings = _by_part(command.set)
    train = override(base.train, settings["train"])
    task = _task(command, base, settings["task"], data=train.data)
    model = _model(command, base, task, settings["model"])
    name = f"{_short(command.task) or base.recipe}-{_short(command.model) or base.recipe}"
    config = own_run(model, task, name=name, train=train)
    return [replace(config, seed=seed) for seed in seeds]


def _by_part(assignments: tuple[str, ...]) -> dict[str, list[str]]:
    """Sort assignments such as train.steps=500 by their first word, which is left out."""
    like = "task.dim=8, model.num_heads=4 or train.steps=500"
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    for name, value in parse_assignments(assignments, "set", like=like).items():
        part, _, rest = name.partition(".")
        if part not in parts or not rest:
            raise ConfigError(f"set={f'{name}={value}'!r}: must look like {like}")
        parts[part].append(f"{rest}={value}")
    return parts


def _task(command: args.Train, base: RunConfig, settings: list[str], *, data: Any) -> TaskConfig:
    if command.task is None:
        return override(base.task, settings)
    from mesaopt.training import named_task

    find_modules_here()
    return named_task(command.task, _keywords(settings), data=data)


def _model(
    command: args.Train, base: RunConfig, task: TaskConfig, settings: list[str]
) -> NetworkConfig:
    from mesaopt.training import fitted_to, named_model

    if command.model is not None and ":" in command.model:
        find_modules_here()
        return named_model(command.model, _keywords(settings))
    model = base.model if command.model is None else recipes.get(command.model).model
    if isinstance(model, ModelConfig):
        model = fitted_to(model, task)
    return override(model, settings)


def _keywords(settings: list[str]) -> dict[str, Any]:
    """Read arguments of a class."""
    given = parse_assignments(settings, "set", like="task.dim=3")
    return {name: parse_value(text) for name, text in given.items()}


def _short(name: str | None) -> str:
    """Return a name for a folder: the class of "module:Class"."""
    return (name or "").rpartition(":")[2].rpartition(".")[2]


def find_modules_here() -> None:
    """Let modules of the working folder be imported, as `python -m mesaopt` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
