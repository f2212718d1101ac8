"""Configurations as JSON and text: write, read strictly, change, compare."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from mesaopt.config.checks import shown
from mesaopt.config.tasks import TokenSlot
from mesaopt.errors import ConfigError, suggest

Config = TypeVar("Config")
_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_IN_WORDS |= {tuple: "a list", dict: "an object"}


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain JSON values.

    Args:
        config: any configuration.

    Returns:
        Nested dictionaries, with lists in place of tuples; without objects, which are not saved.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> to_dict(LinearSystemConfig())["token_slots"]
        ['zero', 'current', 'current', 'previous']
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in _saved(value)}
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(config)


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Write nested settings as one level, by names such as train.steps.

    Args:
        settings: as :func:`to_dict` returns them.
        name: of the part that they are of.

    Returns:
        The values by name.

    Example:
        >>> flat({"seed": 0, "train": {"steps": 500}})
        {'seed': 0, 'train.steps': 500}
    """
    if not isinstance(settings, dict):
        return {name: settings}
    parts = [flat(value, f"{name}.{key}".lstrip(".")) for key, value in settings.items()]
    return {key: value for part in parts for key, value in part.items()}


def _saved(config: Any) -> list[dataclasses.Field]:
    """List the fields that are settings; the others hold objects of the user."""
    return [f for f in dataclasses.fields(config) if f.metadata.get("saved", True)]


def with_objects(config: Config, source: Config) -> Config:
    """Put objects that no file holds, a task or a model of your own, into settings read from one.

    Args:
        config: settings of a run.
        source: settings of the same run, with the objects.

    Returns:
        `config` with the objects of `source`.

    Example:
        >>> from mesaopt.config import OwnModelConfig
        >>> saved = OwnModelConfig(name="Net", weights={})
        >>> with_objects(saved, OwnModelConfig(name="Net", weights={}, model=len)).model
        <built-in function len>
    """
    changes = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        ours, theirs = getattr(config, f.name), getattr(source, f.name)
        if not f.metadata.get("saved", True):
            changes[f.name] = theirs
        elif dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            changes[f.name] = with_objects(ours, theirs)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def from_dict(cls: type[Config], data: Any, *, where: str = "config") -> Config:
    """Build a configuration from JSON values, and refuse unknown, missing and wrong ones.

    Args:
        cls: the dataclass wanted.
        data: as :func:`to_dict` returns it, usually read from `config.json`.
        where: name of the place of `data` in error messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.

    Example:
        >>> from mesaopt.config import TrainConfig
        >>> from_dict(TrainConfig, {"learning_rat": 1e-3})
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: config: unknown key 'learning_rat'; did you mean 'learning_rate'?
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {shown(data)}: must be an object")
    fields = {f.name: f for f in _saved(cls)}
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {name!r}; {suggest(name, fields)}")
    for name, f in fields.items():
        has_default = not (f.default is f.default_factory is dataclasses.MISSING)
        if name not in data and not has_default:
            raise ConfigError(f"{where}: key {name!r} is missing")
    values = {name: _convert(hints[name], data[name], f"{where}.{name}") for name in data}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Read one JSON value as the type `hint`, one of those that configurations use."""
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {
            name: _convert(arguments[1], item, f"{where}.{name}") for name, item in value.items()
        }
    if hint is Any:
        return value
    if origin is types.UnionType and types.NoneType in arguments:  # only `X | None` occurs
        return None if value is None else _convert(arguments[0], value, where)
    if origin is types.UnionType:
        return from_dict(_member(arguments, value, where), value, where=where)
    if hint == TokenSlot:
        return value  # the task itself checks its slots
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    if origin is Literal:
        raise ConfigError(f"{where}={shown(value)}: {suggest(str(value), arguments)}")
    raise ConfigError(f"{where}={shown(value)}: must be {_IN_WORDS.get(origin or hint, hint)}")


def _member(members: tuple[type, ...], value: Any, where: str) -> type:
    """Return the dataclass that `kind` names; the first one where it is missing, as in old run folders."""
    by_kind = {member.kind: member for member in members}  # type: ignore[attr-defined]
    kind = value["kind"] if isinstance(value, dict) and "kind" in value else next(iter(by_kind))
    if kind not in by_kind:
        raise ConfigError(f"{where}.kind={kind!r}: {suggest(str(kind), by_kind)}")
    return by_kind[kind]


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Change settings given as text.

    Args:
        config: a configuration.
        assignments: "train.steps=500" or "model.mixers=['mesa']"; values are JSON or plain words. Another
            `kind` begins with the defaults of that kind; the other assignments then change those.

    Returns:
        The changed configuration, checked.

    Raises:
        ConfigError: a name or a value is wrong, or a whole section is given besides a setting in it.

    Example:
        >>> from mesaopt.config import TrainConfig
        >>> override(TrainConfig(), ["steps=500", "schedule=warmup_cosine"]).steps
        500
        >>> override(TrainConfig(), ["step=500"])
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: config: unknown key 'step'; did you mean 'steps'?
    """
    data = to_dict(config)
    given = parse_assignments(assignments, "set", like="train.steps=500")
    for name in given:
        if inside := [other for other in given if other.startswith(f"{name}.")]:
            wanted = f"must not be given with {inside[0]}, which is a part of it"
            raise ConfigError(f"set={f'{name}={given[name]}'!r}: {wanted}")
    for name in sorted(given, key=lambda name: not name.endswith(".kind")):  # kinds first
        *parents, last = name.split(".")
        place, text = data, given[name]
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                raise ConfigError(f"set={f'{name}={text}'!r}: {suggest(parent, place)}")
            place = place[parent]
        inside = [key for key in data if isinstance(data[key], dict) and name in data[key]]
        if inside and name not in data:
            meant = " or ".join(f"{key}.{name}" for key in inside)
            raise ConfigError(f"set={f'{name}={text}'!r}: must be {meant}")
        if last == "kind" and place.get(last) != text:
            place.clear()
        place[last] = parse_value(text)
    return from_dict(type(config), data)


def parse_assignments(texts: Sequence[str], argument: str, *, like: str) -> dict[str, str]:
    """Split texts such as "train.steps=500" into names and values.

    Args:
        texts: one or more words, each with an equals sign.
        argument: what they were given as, for the message.
        like: an example of one.

    Returns:
        The values, as text, by name.

    Raises:
        ConfigError: one has no name or no equals sign, or a name is given twice.

    Example:
        >>> parse_assignments(["processes=4"], "engine_set", like="processes=2")
        {'processes': '4'}
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{argument}={text!r}: must look like {like}")
        if name in values:
            raise ConfigError(f"{argument}={text!r}: {name} is given twice")
        values[name] = value
    return values


def parse_value(text: str) -> Any:
    """Read the value of a setting given as text: JSON, or else the words as they are.

    Args:
        text: what stands behind the equals sign.

    Returns:
        The value.

    Example:
        >>> parse_value("['mesa']"), parse_value("mesa"), parse_value("1e-3")
        (['mesa'], 'mesa', 0.001)
    """
    try:
        return json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return text


def differences(ours: Any, theirs: Any, *, where: str = "") -> list[str]:
    """List the settings in which two configurations of one class differ; of two kinds, the kinds.

    Args:
        ours: a configuration.
        theirs: another one.
        where: prefix of the names.

    Returns:
        One line a setting, "train.steps: 100, not 200", in the order of the fields.

    Example:
        >>> from mesaopt.config import TrainConfig
        >>> differences(TrainConfig(steps=100), TrainConfig(steps=200))
        ['steps: 100, not 200']
    """
    lines = []
    if type(ours) is not type(theirs):
        return [f"{where}kind: {ours.kind!r}, not {theirs.kind!r}"]
    for f in _saved(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        if dataclasses.is_dataclass(a):
            lines += differences(a, b, where=f"{where}{f.name}.")
        elif isinstance(a, dict):
            for name in sorted(a.keys() | b.keys()):
                if a.get(name) != b.get(name):
                    lines.append(
                        f"{where}{f.name}.{name}: {shown(a.get(name))}, not {shown(b.get(name))}"
                    )
        elif not (_close(a, b) if f.metadata.get("measured") else a == b):
            lines.append(f"{where}{f.name}: {shown(a)}, not {shown(b)}")
    return lines


def changed_settings(config: Any) -> dict[str, Any]:
    """List the settings that are not the defaults.

    Args:
        config: any dataclass; fields without a default are always listed.

    Returns:
        The values by name.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> changed_settings(LinearSystemConfig(dim=3))
        {'dim': 3}
    """
    values = {one: getattr(config, one.name) for one in dataclasses.fields(config)}
    return {one.name: value for one, value in values.items() if value != one.default}


def as_arguments(settings: Mapping[str, Any]) -> str:
    """Write settings as the arguments of a call.

    Args:
        settings: values by name.

    Returns:
        The text.

    Example:
        >>> as_arguments({"num_heads": 2, "solver": "cg"})
        "num_heads=2, solver='cg'"
    """
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def in_words(value: Any, *, longest: int) -> str:
    """Write a setting for a cell of a table.

    Args:
        value: as :func:`to_dict` gives it.
        longest: number of characters, 4 or more; the rest of a longer text is left out.

    Returns:
        The text.

    Example:
        >>> in_words(["current", "previous"], longest=60), in_words(None, longest=60)
        ('current, previous', 'none')
        >>> in_words("a long text", longest=9)
        'a long...'
    """
    if isinstance(value, dict):
        text = ", ".join(f"{name} {item}" for name, item in value.items())
    elif isinstance(value, list):
        text = ", ".join(map(str, value)) or "none"
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _close(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    """Compare measured numbers, whose last digits differ from machine to machine."""
    near = (
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in zip(ours, theirs, strict=False)
    )
    return len(ours) == len(theirs) and all(near)
