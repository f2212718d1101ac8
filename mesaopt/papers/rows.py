"""Rows: the numbers of a panel as records, and as CSV."""

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from mesaopt.errors import RunError

Rows = list[dict[str, Any]]
"""Records of numbers; a value is a number, a string or None."""


@dataclass(frozen=True, kw_only=True)
class PanelData:
    """The numbers of one panel.

    Example:
        >>> PanelData(rows=[{"step": 0, "loss": 1.5}]).more
        {}
    """

    rows: Rows
    """Written to the figure's CSV."""
    more: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values that the drawing needs besides the rows, such as a picture's pixels."""


def split(rows: Rows, column: str) -> dict[Any, Rows]:
    """Split rows by the value of a column, in the order of the first row of each.

    Args:
        rows: that have the column.
        column: its name.

    Returns:
        Rows by value.

    Example:
        >>> split([{"a": 2, "b": 1}, {"a": 1, "b": 5}, {"a": 2, "b": 3}], "a")
        {2: [{'a': 2, 'b': 1}, {'a': 2, 'b': 3}], 1: [{'a': 1, 'b': 5}]}
    """
    parts: dict[Any, Rows] = {}
    for row in rows:
        parts.setdefault(row[column], []).append(row)
    return parts


def table(rows: Rows) -> str:
    """Write rows as CSV.

    Args:
        rows: one dictionary per row; panels of one figure may have keys of their own, which are empty in
            the rows of the others.

    Returns:
        The text, with a header.

    Example:
        >>> print(table([{"step": 0, "loss": 1.5}]))
        step,loss
        0,1.5
        <BLANKLINE>
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(text: str, where: str = "table") -> Rows:
    """Read what :func:`table` wrote: numbers as numbers, bit for bit, and nothing as None.

    Args:
        text: with a header.
        where: path of the file, for messages.

    Returns:
        The rows.

    Raises:
        RunError: it is no table.

    Example:
        >>> read_table("step,loss,model" + chr(10) + "3,0.1,lsa-1" + chr(10) + "4,,lsa-1" + chr(10))
        [{'step': 3, 'loss': 0.1, 'model': 'lsa-1'}, {'step': 4, 'loss': None, 'model': 'lsa-1'}]
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise RunError(f"{where}: is damaged: {error}") from None
    names, rows = lines[0] if lines else [], lines[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            problem = f"row {number} has {len(row)} values: must have {len(names)}"
            raise RunError(f"{where}: is damaged: {problem}")
    return [dict(zip(names, map(_value, row), strict=True)) for row in rows]


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
