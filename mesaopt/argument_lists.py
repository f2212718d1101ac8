"""The arguments of every command as a list: for hints, completion and the page of the docs."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from mesaopt.arguments import Command


@dataclass(frozen=True)
class Argument:
    """One argument of a command, as it is typed.

    Example:
        >>> print(*arguments_of(commands()["report"])[:3], sep=", ")
        DIR|RUN, --out FILE.png|.svg|.html, --redraw
    """

    name: str
    """With its dashes; empty for a positional argument."""
    values: str
    """The choices with "|" between them, or what help texts call the value; empty for a switch."""
    takes_several: bool = False
    """Whether it may have several values."""

    def __str__(self) -> str:
        return f"{self.name} {self.values}".strip()


def dashed(name: str) -> str:
    """Write a name as it is typed.

    Args:
        name: of a class or a field.

    Returns:
        The name in small letters, with dashes.

    Example:
        >>> dashed("ImportReleased"), dashed("dry_run")
        ('import-released', 'dry-run')
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).replace("_", "-").lower()


def commands() -> dict[str, type]:
    """Return all commands by the name that is typed.

    Returns:
        The classes of their arguments.

    Example:
        >>> commands()["import-released"].__name__
        'ImportReleased'
    """
    return {dashed(kind.__name__): kind for kind in get_args(Command)}


def arguments_of(command: type) -> list[Argument]:
    """List the arguments of a command.

    Args:
        command: one of those that :func:`commands` returns.

    Returns:
        The arguments, in the order of the help text.

    Example:
        >>> arguments_of(commands()["report"])[0]
        Argument(name='', values='DIR|RUN', takes_several=False)
    """
    return [_argument(*pair) for pair in get_type_hints(command, include_extras=True).items()]


def _argument(name: str, hint: Any) -> Argument:
    """Read the annotation of one field."""
    extras, plain = getattr(hint, "__metadata__", ()), getattr(hint, "__origin__", hint)
    is_positional = Positional[int].__metadata__[0] in extras
    names = [extra.name for extra in extras if getattr(extra, "name", None)]
    values = [extra.metavar for extra in extras if getattr(extra, "metavar", None)]
    values += ["|".join(map(str, get_args(plain)))] if get_origin(plain) is Literal else []
    usual = {bool: "", int: "N", float: "X"}.get(plain, "VALUE")
    return Argument(
        name="" if is_positional else f"--{dashed(names[0] if names else name)}",
        values=values[0] if values else usual,
        takes_several=get_origin(plain) is tuple,
    )
