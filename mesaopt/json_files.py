"""Values in JSON files: reading with a check of what is in them, writing by rename."""

import json
import math
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.errors import RunError


def read(path: Path, wanted: Any = None) -> Any:
    """Read a JSON file, and check that it holds what it must.

    Args:
        path: of the file.
        wanted: what it must hold, see :func:`check`; anything if not given.

    Returns:
        Its value.

    Raises:
        RunError: the file is missing, cannot be opened, is not JSON or holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write(path, {"steps": 3, "by": "me"})
        >>> read(path, {"steps": int})["steps"]
        3
    """
    value = parse(files.read_text(path), str(path))
    if wanted is not None:
        check(value, wanted, str(path))
    return value


def write(path: Path, value: Any) -> None:
    """Write a value as indented JSON, by rename.

    Args:
        path: of the file.
        value: anything JSON can hold.

    Raises:
        RunError: the disk is full or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write(path, {"steps": 3})
        >>> json.loads(path.read_text())
        {'steps': 3}
    """
    files.write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse(text: str, where: str) -> Any:
    """Read a value from JSON text.

    Args:
        text: one value.
        where: path of the file, and the line in it, for messages.

    Returns:
        The value.

    Raises:
        RunError: it is not JSON.

    Example:
        >>> parse("[1, 2]", "a.json")
        [1, 2]
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        raise RunError(f"{where}: is not JSON: {error}") from None


def read_lines(path: Path, wanted: Any) -> list[Any]:
    """Read a file with a JSON value on each line; half of a last line, which a kill leaves, does not count.

    Args:
        path: of the file.
        wanted: what each line must hold, see :func:`check`.

    Returns:
        The values, first to last.

    Raises:
        RunError: the file is missing, cannot be opened, or a line is not JSON or holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> files.write(path, '{"step": 0}\\n{"step": 1}\\n{"st')
        >>> read_lines(path, {"step": int})
        [{'step': 0}, {'step': 1}]
    """
    text, lines = files.read_text(path), []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        where = f"{path}, line {number}"
        lines.append(parse(line, where))
        check(lines[-1], wanted, where)
    return lines


_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def check(value: Any, wanted: Any, where: str, name: str = "") -> None:
    """Check what was read from a file.

    Args:
        value: as JSON gives it.
        wanted: `str`, `int`, `float` (any finite number), `bool` or None; a tuple of these, of which one
            must fit; `[item]` for a list; `{str: item}` for an object with any names; `{"name": item}`
            for an object with these names, and perhaps others.
        where: path of the file, for messages.
        name: place of the value in the file, for messages.

    Raises:
        RunError: it is something else.

    Example:
        >>> check({"loss": [0.5, None]}, {"loss": [(float, None)]}, "a.json")
        >>> check({"loss": ["low"]}, {"loss": [float]}, "a.json")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: a.json: is damaged: loss[0]='low': must be a finite number
    """
    if isinstance(wanted, list):
        _require(isinstance(value, list), value, "a list", where, name)
        for index, item in enumerate(value):
            check(item, wanted[0], where, f"{name}[{index}]")
    elif isinstance(wanted, dict):
        _require(isinstance(value, dict), value, "an object", where, name)
        pairs = [(key, wanted[str]) for key in value] if str in wanted else wanted.items()
        for key, item in pairs:
            if key not in value:
                raise RunError(f"{where}: is damaged: {_in(name, key)} is missing")
            check(value[key], item, where, _in(name, key))
    else:
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        words = " or ".join("null" if kind is None else _NAMES[kind] for kind in choices)
        _require(any(_is(value, kind) for kind in choices), value, words, where, name)


def _in(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is kind


def _require(condition: bool, value: Any, wanted: str, where: str, name: str) -> None:
    if not condition:
        given = repr(value)
        given = given if len(given) < 60 else given[:57] + "..."
        what = f"{name}={given}" if name else given
        raise RunError(f"{where}: is damaged: {what}: must be {wanted}")
