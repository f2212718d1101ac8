"""Errors and warnings of the package. Every module may import this one."""

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "InitialisationWarning",
    "MesaoptError",
    "MissingPackageError",
    "RunError",
    "SolveError",
    "SolveWarning",
    "StabilityWarning",
]


class MesaoptError(Exception):
    """Base of the errors that the command line shows as one line, without a traceback.

    Example:
        >>> raise MesaoptError("out='results': holds another run")
        Traceback (most recent call last):
        ...
        mesaopt.errors.MesaoptError: out='results': holds another run
    """

    exit_status = 2
    """Exit status of the command line: 2, a usage error."""


class ConfigError(MesaoptError, ValueError):
    """A setting is unknown, malformed or out of range. The message names it and the allowed values."""


class RunError(MesaoptError, RuntimeError):
    """A run cannot go on: its folder is taken, damaged or full, or the device does not exist."""


def printable(text: object) -> str:
    r"""Return text as one line without control characters, which could change a terminal or hide words.

    Args:
        text: from a file, a path or an error.

    Returns:
        The text with a space for line ends, and a question mark for other characters that do not print.

    Example:
        >>> printable("a\n\x1b[31mb")
        'a ?[31mb'
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in str(text))


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the closest choice, or all of them.

    Args:
        name: what the user wrote.
        choices: the names that exist.

    Returns:
        A clause to append to an error message.

    Example:
        >>> suggest("lsa1", ["lsa-1", "mesa-1"])
        "did you mean 'lsa-1'?"
        >>> suggest("x", ["smoke", "small"])
        'allowed: smoke, small'
    """
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else "allowed: " + ", ".join(choices)


RESUME = "--resume (in Python resume=True)"
"""What continues an interrupted training, sweep or study, in messages."""


def wrong_type(argument: str, given: object, wanted: str) -> TypeError:
    """Return the error about an argument of a wrong type.

    Args:
        argument: its name.
        given: its value.
        wanted: what it must be, and perhaps how to get it.

    Returns:
        The error, to be raised.

    Example:
        >>> str(wrong_type("model", None, "a model")), str(wrong_type("task", int, "a task"))
        ('model is None: must be a model', 'task is the class int: must be a task')
    """
    name = type(given).__name__
    kind = f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
    if given is None:
        kind = "None"
    elif isinstance(given, type):
        kind = f"the class {given.__name__}"
    elif isinstance(given, str):
        kind = printable(repr(given))
    return TypeError(f"{argument} is {kind}: must be {wanted}")


class MissingPackageError(MesaoptError, ImportError):
    """A package that an extra of this one names is not installed. The message says how to install it."""


class SolveError(MesaoptError, RuntimeError):
    """A linear system was not solved to its tolerance. The message says where and how far it got."""


class SolveWarning(RuntimeWarning):
    """A linear system was not solved to its tolerance, where a warning was asked for, not an error."""


class InitialisationWarning(UserWarning):
    """Training cannot leave its initial weights, or runs into a saddle. The message says why."""


class StabilityWarning(RuntimeWarning):
    """A step size lies past the bound of stable gradient descent. The message gives the bound."""
