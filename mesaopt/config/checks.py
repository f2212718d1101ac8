"""Checks of the values of a configuration, used in `__post_init__`, and of the arguments of samplers."""

import dataclasses
import json
import numbers
import sys
import types
import typing
from typing import Any, Literal, get_args, get_origin

from mesaopt.errors import ConfigError, suggest, wrong_type

_LARGEST = 2**64 - 1


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise a ConfigError with the name, value and wanted range of a setting, unless a condition holds."""
    if not condition:
        raise ConfigError(f"{name}={getattr(config, name)!r}: must be {wanted}")


def require_positive(config: object, *names: str) -> None:
    """Check that settings are greater than 0."""
    for name in names:
        require(getattr(config, name) > 0, config, name, "greater than 0")


def require_positive_if_given(config: object, *names: str) -> None:
    """Check that settings are greater than 0 or None."""
    require_positive(config, *(name for name in names if getattr(config, name) is not None))


def require_not_negative(config: object, *names: str) -> None:
    """Check that settings are 0 or greater."""
    for name in names:
        require(getattr(config, name) >= 0, config, name, "0 or greater")


def require_types(config: Any) -> None:
    """Check the values of all fields against their types, which Python does not; numbers must be finite."""
    hints = typing.get_type_hints(type(config))
    for name in (field.name for field in dataclasses.fields(config)):
        value, choices = getattr(config, name), _choices(hints[name])
        if not any(_fits(hint, value) for hint in choices):
            if get_origin(choices[0]) is Literal:
                raise ConfigError(f"{name}={value!r}: {suggest(str(value), get_args(choices[0]))}")
            wanted = _any_of([_words(hint) for hint in choices])
            raise ConfigError(f"{name}={shown(value)}: must be {wanted}")


def require_json(config: object, name: str) -> None:
    """Check that a setting is made of what JSON can hold."""
    value = getattr(config, name)
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    wanted = "made of numbers, text, lists and dictionaries with text as keys"
    require(same, config, name, wanted)


def require_matrix(config: object, name: str, *, rows: int, columns: int) -> None:
    """Check that a setting is a matrix of finite numbers of some size, as tuples of tuples."""
    value = getattr(config, name)
    lengths = {len(row) if isinstance(row, tuple) else -1 for row in value}
    if len(value) != rows or lengths != {columns}:
        wanted = f"a tuple of {rows} rows, tuples of {columns} numbers each"
        raise ConfigError(f"{name}={shown(value)}: must be {wanted}; as_matrix makes them")
    for i, row in enumerate(value):
        for j, number in enumerate(row):
            if not _fits(float, number):
                raise ConfigError(f"{name}[{i}][{j}]={shown(number)}: must be a finite number")


def require_config(config: object, wanted: Any, *, part: str) -> None:
    """Check that an argument is a configuration of a kind; one that is inside of it is named."""
    kinds = get_args(wanted) or (wanted,)
    if type(config) in kinds:  # not isinstance: an AutoEncoderConfig is none of a LanguageModel
        return
    names = " or ".join(kind.__name__ for kind in kinds)
    article = "an" if names[0] in "AEIOU" else "a"
    inside = next((at for at in (part, f"config.{part}") if isinstance(_at(config, at), kinds)), "")
    hint = f", such as its .{inside}" if inside else ""
    if isinstance(config, str):
        hint = f", such as recipes.get({config!r}).{part} if that is a recipe"
    raise wrong_type("config", config, f"{article} {names}{hint}")


def _at(value: object, path: str) -> object:
    """Follow attributes; None where one is missing."""
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def require_flag(name: str, value: Any) -> None:
    """Check that an argument is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}: must be True or False")


def require_whole(name: str, value: Any) -> None:
    """Check that an argument is a whole number."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}: must be a whole number")


def require_count(name: str, value: Any, *, smallest: int, largest: int = _LARGEST) -> None:
    """Check that an argument is a whole number of some size."""
    require_whole(name, value)
    if not smallest <= int(value) <= largest:
        wanted = f"between {smallest} and {'2**64 - 1' if largest == _LARGEST else largest}"
        wanted = wanted if smallest == 0 or int(value) > largest else f"{smallest} or greater"
        raise ConfigError(f"{name}={shown(value)}: must be {wanted}")


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is int:
        return type(value) is int and abs(value) <= _LARGEST
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max
    return hint is Any or isinstance(value, get_origin(hint) or hint)


def _any_of(words: list[str]) -> str:
    """Join what a value may be; many kinds of configurations without their articles."""
    if len(words) < 5:
        return " or ".join(words)
    *first, last = (word.removeprefix("a ") for word in words)
    return f"a {', '.join(first)} or {last}"


def _words(hint: Any) -> str:
    if hint is types.NoneType:
        return "None"
    plain = {
        int: "a whole number below 2**64",
        float: "a finite number",
        str: "text",
        tuple: "a tuple",
    }
    kind = get_origin(hint) or hint
    return plain.get(kind) or f"a {kind.__name__}"


def shown(value: Any) -> str:
    """Write a value for a message, at most 80 characters of it."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
