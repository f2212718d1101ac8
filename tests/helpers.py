"""Helpers of several tests: the exit status of a command, and interrupted programs."""

from collections.abc import Callable

import pytest

from mesaopt import cli


def exit_status(*arguments: str) -> int:
    """Run a command line in this process."""
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    return done.value.code


class Interrupted(Exception):
    """Raised in place of a call, as if the process ended there."""


def interrupt(owner: type, method: str, *, after: int, patch: pytest.MonkeyPatch) -> None:
    """Make a method raise :class:`Interrupted` once it has been called `after` times."""
    original: Callable = getattr(owner, method)
    calls = iter(range(10**6))

    def interrupted(*arguments: object, **keywords: object) -> object:
        if next(calls) == after:
            raise Interrupted
        return original(*arguments, **keywords)

    patch.setattr(owner, method, interrupted)
