"""Figures as files: PNG, SVG and PDF, with the CSV behind them."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from mesaopt import files

INK = "#1b1f24"
"""Colour of text and axes; the report swaps it for the page's own."""
GRID = "#d8dce2"
"""Colour of grid lines; the report swaps it too."""
# Middle tones that read on white and on black, and apart from one another when colours are not seen.
PALETTE: tuple[str, ...] = ("#3f87d6", "#d9822b", "#2a9d74", "#9a6fd0", "#cf4d5e", "#8b8f98")
"""Blue, orange, green, purple, red, grey: what a figure draws with, in this order."""
COLORS = dict(
    zip(
        ("lsa-1", "lsa-2", "mesa-1", "proposition-1", "least-squares", "gd-1"), PALETTE, strict=True
    )
)
"""What these are drawn in, wherever they appear."""

_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "figure.constrained_layout.use": True,
    # The same picture gives the same file.
    "svg.hashsalt": "mesaopt",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, kw_only=True)
class FigureResult:
    """A drawn figure, its numbers and what a reader needs to know of it."""

    id: str
    """File name without ending."""
    title: str
    caption: str
    """What is drawn, and what the paper draws differently."""
    settings: dict[str, Any]
    """What it was made with, for the line under the figure."""
    rows: list[dict[str, Any]]
    """The numbers drawn, one row each; all rows have the same keys."""
    figure: Figure
    seconds: float = 0.0
    """Time to compute and draw it, without training; 0 for an equal share of its part's time."""


def style() -> Any:
    """Return a context in which matplotlib draws in the house style.

    Example:
        >>> with style():
        ...     mpl.rcParams["axes.edgecolor"]
        '#1b1f24'
    """
    return mpl.rc_context(_STYLE)


def save_figure(result: FigureResult, folder: Path) -> None:
    """Write a figure as `<id>.png`, `.svg`, `.pdf`, `.csv` and `.json`, each by rename.

    Args:
        result: the figure.
        folder: where to.

    Raises:
        RunError: the disk is full.
    """

    def draw(path: Path, **metadata: Any) -> None:
        transparent = path.suffix == ".svg"  # it takes the colour of the page it stands on
        with style():
            result.figure.savefig(path, metadata=metadata, transparent=transparent)

    files.write(folder / f"{result.id}.png", lambda path: draw(path, Software=None))
    files.write(folder / f"{result.id}.svg", lambda path: draw(path, Date=None))
    files.write(folder / f"{result.id}.pdf", lambda path: draw(path, CreationDate=None))
    files.write(folder / f"{result.id}.csv", table(result.rows))
    description = {
        "id": result.id,
        "title": result.title,
        "caption": result.caption,
        "settings": result.settings,
        "seconds": round(result.seconds, 2),
    }
    files.write_json(folder / f"{result.id}.json", description)


def table(rows: list[dict[str, Any]]) -> str:
    """Write rows as CSV.

    Args:
        rows: one dictionary per row, all with the same keys.

    Returns:
        The text, with a header.

    Example:
        >>> print(table([{"step": 0, "loss": 1.5}]))
        step,loss
        0,1.5
        <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
