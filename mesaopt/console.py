"""Printing for the commands: JSON, CSV, tables, durations."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from mesaopt.errors import printable


def print_json(value: Any) -> None:
    """Print a value as readable JSON, in ASCII: it passes any locale and holds no control characters."""
    print(json.dumps(value, indent=2))


def print_csv(rows: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print rows as a table of comma-separated values, with the names of the columns first."""
    table = csv.DictWriter(file or sys.stdout, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


def print_line(text: object) -> None:
    """Print one line, without control characters, at once: also into a pipe."""
    print(printable(text), flush=True)


def print_table(title: str | None, rows: list[dict[str, str]]) -> None:
    """Print rows as a table; with rows and columns exchanged where only that fits the screen."""
    screen = console()
    rows = _fitted(
        [{printable(n): printable(x) for n, x in row.items()} for row in rows], screen.width
    )
    if title:
        screen.print(title, style="bold", markup=False)
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(rows[0]):
        table.add_column(name, overflow="fold", no_wrap=index == 0, header_style="dim")
    for row in rows:
        table.add_row(*row.values())
    screen.print(table, markup=False)
    screen.print()


def _fitted(rows: list[dict[str, str]], width: int) -> list[dict[str, str]]:
    """Exchange rows and columns where the table fits the width only that way."""
    first, *others = rows[0]
    exchanged = [{first: name} | {row[first]: row[name] for row in rows} for name in others]
    is_table = all(
        row.keys() == exchanged[0].keys() and len(row) == len(rows) + 1 for row in exchanged
    )
    fits = [_width(table) <= width for table in (rows, exchanged)] if exchanged else [True]
    return exchanged if fits == [False, True] and is_table else rows


def _width(rows: list[dict[str, str]]) -> int:
    """Count the characters of the longest line, with two spaces between columns."""
    columns = [[name, *(row[name] for row in rows)] for name in rows[0]]
    return sum(max(map(len, column)) + 2 for column in columns) - 2


class _Screen(Console):
    """A console that leaves it to the command line what to do where nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Return the standard output, as wide as the terminal, or 120 columns where there is none."""
    screen = _Screen(highlight=False)
    if not sys.stdout.isatty():
        screen.width = 120
    return screen


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
