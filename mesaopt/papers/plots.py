"""The house style: colours, and how lines, bands and published numbers are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mesaopt.looks import GRID, INK

_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 300,
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
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def style() -> Any:
    """Return a context in which matplotlib draws in the house style.

    Example:
        >>> with style():
        ...     mpl.rcParams["axes.edgecolor"]
        '#1b1f24'
    """
    return mpl.rc_context(_STYLE)


def band(
    axes: Axes, x: Sequence[float], mean: Any, half: Any, *, log: bool = True, **line: Any
) -> None:
    """Draw a line with a band of 95 %; for a logarithmic axis the band ends at a tenth of the line."""
    mean, half = np.asarray(mean, dtype=float), np.asarray(half, dtype=float)
    low = np.maximum(mean - half, mean / 10) if log else mean - half
    axes.fill_between(x, low, mean + half, color=line["color"], alpha=0.2, lw=0)
    axes.plot(x, mean, **line)


def circles(axes: Axes, published: Mapping[Any, float], color: str, size: float = 4.0) -> None:
    """Draw published numbers as circles, by their place on the x axis."""
    if published:
        x, y = zip(*published.items(), strict=True)
        axes.plot(x, y, "o", color=color, mfc="none", ms=size)


def plain_log(axes: Axes) -> None:
    """Make the y axis logarithmic, with ordinary numbers: 0.6 and not 6 x 10^-1."""

    def between_powers(value: float, _: float) -> str:
        low, high = axes.get_ylim()
        labelled = "" if high > 30 * low else "2346" if high > 4 * low else "234568"
        return f"{value:g}" if f"{value:e}"[0] in labelled else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(between_powers)


def few_steps(axes: Axes, intervals: int = 5) -> None:
    """Label few steps of a training, whose five digits would touch one another."""
    axes.xaxis.set_major_locator(MaxNLocator(intervals, steps=[1, 2, 5, 10]))
