"""Helpers of several tests: the exit status of a command, interrupted programs, engines of sweeps."""

import contextlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from mesaopt import cli
from mesaopt.sweeps import Ended, train_folder


def exit_status(*arguments: str) -> int:
    """Run a command line in this process."""
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    return done.value.code


def is_for_keyboards(html: str) -> bool:
    """Say whether what scrolls has a name and can be focused, and every column of a table has a name."""
    scrolls = re.findall(r'<div class="(?:wide|drawing)"[^>]*>', html)
    named = re.compile('tabindex="0" role="region" aria-label="[^"]+"')
    return bool(scrolls) and all(map(named.search, scrolls)) and "<th></th>" not in html


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


def wait_for_lines(path: Path, count: int) -> None:
    """Wait until another process has written some lines to a file."""
    until = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < until, f"{path} has no {count} lines"
        time.sleep(0.02)


def workers_of(process: int) -> list[int]:
    """List the processes that train folders for another one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"mesaopt.sweeps.job" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


class Here:
    """An engine that works in this process, and fails where it is told to."""

    def __init__(self, failing: str = "nothing"):
        self.failing, self.given = failing, list[str]()

    def check(self, device: str) -> None:
        self.given.append("check")

    def run(self, folders: Sequence[Path], *, device: str, logs: Path) -> Generator[Ended | None]:
        for folder in folders:
            self.given.append(folder.name)
            yield None
            bad = self.failing in folder.name
            yield Ended(folder, "no luck" if bad else train_folder(str(folder), device))
