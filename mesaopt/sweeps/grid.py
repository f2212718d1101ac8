"""Grids: every combination of some values of settings."""

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mesaopt.config import RunConfig, flat, override, parse_assignments, parse_value, to_dict
from mesaopt.errors import ConfigError, suggest, wrong_type
from mesaopt.training.loop import as_config

_NOT_IN_A_GRID = {
    "seed": "give the number of seeds",
    "recipe": "give a list of settings to mesaopt.sweep",
}

_LIKE = "train.learning_rate=1e-4,3e-4"


def grid(
    config: RunConfig | str, settings: Mapping[str, Sequence[Any]], *, seeds: int = 1
) -> list[RunConfig]:
    """List the settings of every combination of values, each with several seeds.

    Args:
        config: to begin with, or the name of a recipe.
        settings: values by the name of a setting, such as "train.learning_rate", also of NumPy or torch;
            text is read as on the command line.
        seeds: of every combination, from that of `config` on; 1 or more.

    Returns:
        The settings: the last setting varies fastest, and within one combination the seed.

    Raises:
        TypeError: the values of a setting are no list, or one of them is no number, text or list.
        ConfigError: there is no such setting, or a value is wrong.

    Example:
        >>> points = grid("lsa-1", {"train.steps": [100, 200], "model.num_heads": [2, 4]}, seeds=3)
        >>> len(points), points[-1].train.steps, points[-1].seed
        (12, 200, 2)
        >>> grid("lsa-1", {"learning_rat": [1e-4]})
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: grid='learning_rat': did you mean 'train.learning_rate'?
    """
    config = as_config(config)
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: must be 1 or greater")
    texts = {name: _texts(f"settings[{name!r}]", values) for name, values in settings.items()}
    _check(config, texts)
    made = []
    for values in itertools.product(*texts.values()):
        changes = [f"{name}={value}" for name, value in zip(texts, values, strict=True)]
        changed = override(config, changes)
        made += [replace(changed, seed=config.seed + seed) for seed in range(seeds)]
    return made


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read the values of settings as they are given on the command line.

    Args:
        texts: such as "train.learning_rate=1e-4,3e-4"; values are JSON, or words between commas.

    Returns:
        The values by the name of the setting.

    Raises:
        ConfigError: one looks like something else, or a setting is given twice.

    Example:
        >>> parse_grid(["model.num_heads=2,4", "model.mixers=['mesa'],['mesa','mesa']"])
        {'model.num_heads': [2, 4], 'model.mixers': [['mesa'], ['mesa', 'mesa']]}
    """
    given = parse_assignments(texts, "grid", like=_LIKE)
    settings = {name: _values(text) for name, text in given.items()}
    for name, values in settings.items():
        if "" in values or not values:
            raise ConfigError(f"grid={f'{name}={given[name]}'!r}: must look like {_LIKE}")
    return settings


def _texts(argument: str, values: Sequence[Any]) -> list[str]:
    """Write values as on the command line, those of NumPy and torch as plain numbers."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise wrong_type(argument, values, "a list of values")
    texts = []
    for i, value in enumerate(values):
        try:
            text = json.dumps(value, default=lambda x: x.tolist())
        except (TypeError, AttributeError):
            raise wrong_type(f"{argument}[{i}]", value, "a number, text or a list") from None
        texts.append(value if isinstance(value, str) else text)
    return texts


def _values(text: str) -> list[Any]:
    """Read values as the items of a list in JSON, or as words between commas."""
    items = parse_value(f"[{text}]")
    return items if isinstance(items, list) else text.split(",")


def _check(config: RunConfig, texts: Mapping[str, Sequence[str]]) -> None:
    """Refuse settings that there are not, and suggest the right ones."""
    known = set(flat(to_dict(config)))
    # Of another kind of task or model, `override` knows the settings.
    others = {name.removesuffix("kind") for name in texts if name.endswith(".kind")}
    for name, values in texts.items():
        if name in _NOT_IN_A_GRID:
            raise ConfigError(f"grid={name!r}: cannot be in a grid; {_NOT_IN_A_GRID[name]}")
        if name not in known and not name.startswith(tuple(others)):
            raise ConfigError(f"grid={name!r}: {_hint(name, known)}")
        if len(set(values)) < len(values) or not values:
            raise ConfigError(f"grid={name!r}: must have one or more values, all different")


def _hint(name: str, known: set[str]) -> str:
    """Suggest the full name of a setting, also where its part was left out."""
    if "." in name and (close := difflib.get_close_matches(name, sorted(known), n=1)):
        return f"did you mean {close[0]!r}?"
    short = {full.rpartition(".")[2]: full for full in sorted(known)}
    close = difflib.get_close_matches(name, short, n=1)
    return f"did you mean {short[close[0]]!r}?" if close else suggest(name, sorted(known))
