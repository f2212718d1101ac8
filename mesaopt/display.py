"""How results show themselves: a few lines in a terminal, a small table in a notebook, a table of pandas,
a picture. A result says what it found and gives rows; the rest is here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any, Protocol, runtime_checkable

from mesaopt.errors import MissingPackageError, printable
from mesaopt.looks import LOOKS, Look, series

__all__ = ["Drawn", "Shown"]

Row = Mapping[str, Any]
"""Cells of a table by the name of their column."""

WIDTH = 80
"""Columns of a terminal that results keep to."""
SHOWN = 5
"""Rows of a long table that are shown."""


@runtime_checkable
class Measured(Protocol):
    """A number with its standard error, such as an Estimate."""

    @property
    def value(self) -> float:
        """The number."""
        ...

    @property
    def error(self) -> float:
        """Its standard error."""
        ...


def with_error(value: float, error: float) -> str:
    """Write a number with its standard error, of which two digits count.

    Example:
        >>> with_error(0.95123, 0.0031), with_error(0.95123, 0.0), with_error(1234.5, 67.8)
        ('0.9512 ± 0.0031', '0.9512', '1234 ± 68')
    """
    if not (math.isfinite(error) and math.isfinite(value) and error > 1e-9 * abs(value)):
        return f"{value:.4g}"
    places = 1 - math.floor(math.log10(error))
    if places > 6 or abs(value) >= 1e6:
        return f"{value:.4g} ± {error:.2g}"
    places = max(places, 0)
    return f"{value:.{places}f} ± {error:.{places}f}"


class Shown:
    """A result that prints as a few lines, shows itself in notebooks and becomes a table of pandas."""

    def _headline(self) -> str:
        """Say what was found, the answer first."""
        raise NotImplementedError

    def _rows(self) -> list[Row]:
        """Give all numbers as a long table: one observation per row, positions counted from 1."""
        raise NotImplementedError

    def _table(self) -> list[Row]:
        """Give the rows to be shown: a few of them, evenly spread."""
        rows = self._rows()
        last, shown = len(rows) - 1, min(SHOWN, len(rows))
        return [rows[round(i * last / max(shown - 1, 1))] for i in range(shown)]

    def __repr__(self) -> str:
        """Give the headline and a small table, in lines of at most 80 columns."""
        head = [line for text in self._headline().splitlines() for line in wrap(text, WIDTH)]
        return "\n".join([*map(printable, head), *_text(cells(self._table()))])

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        """Give the same as a piece of a page; colours are those of the page, light or dark."""
        parts = [f"<p>{'<br>'.join(_html(line) for line in self._headline().splitlines())}</p>"]
        parts += [self._picture(), _html_table(cells(self._table()))]
        return f"<div>{''.join(parts)}</div>"

    def _picture(self) -> str:
        """Give a drawing for a page."""
        return ""

    def to_dataframe(self) -> Any:
        """Give all numbers as a table of pandas: one observation per row, positions counted from 1.

        Returns:
            A `pandas.DataFrame`. A measured number has a second column, named `<its name>_error`, for its
            standard error.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            message = "to_dataframe needs pandas: pip install pandas"
            raise MissingPackageError(message) from error
        return pandas.DataFrame([_flat(row) for row in self._rows()])


@dataclass(frozen=True)
class Curve:
    """One line of a picture.

    Example:
        >>> Curve("loss", (1, 2), (0.5, 0.25)).look(0) == series(0)
        True
    """

    name: str
    x: Sequence[float] | Sequence[str]
    """Numbers, or names that stand side by side."""
    y: Sequence[float]
    error: Sequence[float] | None = None
    """Standard errors, drawn as a band of 95 %."""

    @classmethod
    def of(
        cls, name: str, x: Sequence[float] | Sequence[str], measured: Sequence[Measured]
    ) -> "Curve":
        """Make the line of measured numbers and their standard errors.

        Args:
            name: of the line.
            x: as in :attr:`x`.
            measured: the number of each point.

        Returns:
            The line, with its band.
        """
        return cls(name, x, [one.value for one in measured], [one.error for one in measured])

    @property
    def places(self) -> Sequence[float]:
        """Where the points are along the horizontal axis."""
        return [i if isinstance(x, str) else x for i, x in enumerate(self.x)]

    def look(self, number: int) -> Look:
        """Give the look of the idea of this name, or that of the number-th line of a picture."""
        return LOOKS.get(self.name) or series(number)


class Drawn(Shown):
    """A result with a picture."""

    _axes: Mapping[str, Any] = {}
    """Settings of the axes, such as labels."""

    def _curves(self) -> list[Curve]:
        """Give the lines of the picture; a result with another picture has a `_draw` of its own."""
        return []

    def plot(self, axes: Any = None) -> Any:
        """Draw the result.

        Args:
            axes: axes of matplotlib to draw on; those of a new figure if not given.

        Returns:
            The axes.
        """
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.figure(figsize=(5.5, 3.6), layout="constrained").add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
        self._draw(axes)
        return axes

    def _draw(self, axes: Any) -> None:
        curves = self._curves()
        for number, curve in enumerate(curves):
            look, x = curve.look(number), curve.places
            if curve.error is not None:
                low, high = zip(*_band(curve, log=self._is_log), strict=True)
                axes.fill_between(x, low, high, color=look.color, alpha=0.2, lw=0)
            axes.plot(x, curve.y, **look.line(label=curve.name))
        axes.set(**self._axes)
        if curves and isinstance(curves[0].x[0], str):
            names = [str(name) for name in curves[0].x]
            tilted = sum(map(len, names)) > 40
            axes.set_xticks(curves[0].places, names, rotation=45 if tilted else 0)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize="small")

    def _picture(self) -> str:
        curves = [curve for curve in self._curves() if len(curve.y) > 1]
        return _svg(curves, log=self._is_log) if curves else ""

    @property
    def _is_log(self) -> bool:
        return self._axes.get("yscale") == "log"


def _band(curve: Curve, *, log: bool) -> list[tuple[float, float]]:
    """Give the ends of the band of 95 %; on a logarithmic axis above a tenth of the value."""
    half = [1.96 * e if math.isfinite(e) else 0.0 for e in curve.error or [0.0] * len(curve.y)]
    floor = [y / 10 if log and y > 0 else -math.inf for y in curve.y]
    each = zip(curve.y, half, floor, strict=True)
    return [(max(y - h, least), y + h) for y, h, least in each]


_SIZE, _MARGIN = (320.0, 110.0), (46.0, 16.0)


def _svg(curves: Sequence[Curve], *, log: bool) -> str:
    """Draw curves as a small SVG, in the colour of the text around it but for the lines."""
    bands = [_band(curve, log=log) for curve in curves]
    points = [v for band in bands for low, high in band for v in (low, high) if math.isfinite(v)]
    log = log and min(points, default=0.0) > 0
    scale = math.log10 if log else float
    low, high = min(points, default=0.0), max(points, default=1.0)
    places = {place: x for c in curves for place, x in zip(c.places, c.x, strict=True)}
    (width, height), (left, bottom) = _SIZE, _MARGIN

    def at(x: float, y: float) -> str:
        across = (x - min(places)) / ((max(places) - min(places)) or 1.0)
        up = (scale(y) - scale(low)) / ((scale(high) - scale(low)) or 1.0)
        return (
            f"{left + across * (width - left - 4):.1f},{4 + (1 - up) * (height - bottom - 8):.1f}"
        )

    shapes = []
    for number, curve in enumerate(curves):
        color = curve.look(number).color
        each = zip(curve.places, curve.y, bands[number], strict=True)
        ends = [(x, y, *band) for x, y, band in each if math.isfinite(y)]
        if curve.error is not None:
            rim = [at(x, one) for x, _, one, _ in ends] + [at(x, o) for x, _, _, o in ends[::-1]]
            shapes.append(f'<polygon points="{" ".join(rim)}" fill="{color}" opacity="0.25"/>')
        line = " ".join(at(x, y) for x, y, *_ in ends)
        shapes.append(
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        )
    names = [str(places[min(places)]), str(places[max(places)])]
    words = [(left - 4, 12, "end", f"{high:.3g}"), (left - 4, height - bottom, "end", f"{low:.3g}")]
    words += [(left, height - 4, "start", names[0]), (width - 4, height - 4, "end", names[1])]
    texts = [f'<text x="{x}" y="{y}" text-anchor="{a}">{_html(t)}</text>' for x, y, a, t in words]
    path = f"M{left} 4V{height - bottom}H{width - 4}"
    frame = f'<path d="{path}" fill="none" stroke="currentColor" opacity="0.4"/>'
    style = 'fill="currentColor" font-size="10" font-family="sans-serif"'
    label = _html(f"plot of {', '.join(curve.name for curve in curves)}")
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    drawing = f'<svg {size} role="img" aria-label="{label}" {style}>'
    return f"{drawing}{frame}{''.join(shapes)}{''.join(texts)}</svg>{_key(curves)}"


def _key(curves: Sequence[Curve]) -> str:
    """Name the lines of a drawing by their colour."""
    if len(curves) < 2:
        return ""
    each = enumerate(curves)
    names = [f'<span style="color:{c.look(i).color}">■</span> {_html(c.name)}' for i, c in each]
    return f"<p>{' &nbsp; '.join(names)}</p>"


def _flat(row: Row) -> dict[str, Any]:
    """Give the error of a measured number a column of its own."""
    flat: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, Measured):
            flat |= {name: cell.value, f"{name}_error": cell.error}
        else:
            flat[name] = cell
    return flat


def cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Write the cells of a table as words.

    Args:
        rows: of the table.

    Returns:
        The same with text in all cells, and with spaces in the names of columns.

    Example:
        >>> cells([{"test_loss": 0.123456, "is_done": True}])
        [{'test loss': '0.1235', 'is done': 'yes'}]
    """
    return [
        {printable(name.replace("_", " ")): _word(cell) for name, cell in row.items()}
        for row in rows
    ]


def _word(cell: Any) -> str:
    if isinstance(cell, Measured):
        return with_error(cell.value, cell.error)
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else printable(cell)


def _text(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Write a table in lines; columns that do not fit into 80 are left out."""
    if not rows:
        return []
    columns = [[name, *(row[name] for row in rows)] for name in rows[0]]
    columns = [_justified(column) for column in columns]
    kept = len(columns)
    while kept > 1 and sum(len(column[0]) + 2 for column in columns[:kept]) - 2 > WIDTH:
        kept -= 1
    lines = ("  ".join(cells).rstrip() for cells in zip(*columns[:kept], strict=True))
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]


def _justified(column: Sequence[str]) -> list[str]:
    """Pad the cells of a column, numbers on the left."""
    width = max(map(len, column))
    is_numeric = all(cell == "" or cell[0] in "-0123456789" for cell in column[1:])
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in column]


def _html_table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    side = "text-align:left; padding:2px 12px 2px 0"
    rule = f"{side}; border-bottom:1px solid rgba(128,128,128,0.4)"
    head = "".join(f'<th style="{rule}">{_html(name)}</th>' for name in rows[0])
    body = (
        "".join(f'<td style="{side}">{_html(cell)}</td>' for cell in row.values()) for row in rows
    )
    lines = "".join(f"<tr>{cells}</tr>" for cells in body)
    return f'<table style="border-collapse:collapse"><tr>{head}</tr>{lines}</table>'


def _html(text: str) -> str:
    return escape(printable(text))
