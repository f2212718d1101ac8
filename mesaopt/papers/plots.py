"""The house style: colours, and how lines, bands and published numbers are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

INK = "#1b1f24"
"""Colour of text and axes; the report swaps it for the page's own."""
GRID = "#d8dce2"
"""Colour of grid lines; the report swaps it too."""
# Middle tones: each has a contrast of 3 or more with the page, light and dark.
PALETTE: tuple[str, ...] = ("#3f87d6", "#c8701a", "#258f69", "#9a6fd0", "#cf4d5e", "#7f8690")
"""Blue, orange, green, purple, red, grey: the colours of figures, in this order."""

DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.5))
"""Line styles of algorithms, and of algorithms as published where they differ."""
DASH_DOTTED = (0, (6, 1.5, 1, 1.5))


@dataclass(frozen=True)
class Look:
    """How one thing looks in all figures: a colour, and what tells it apart without colours.

    Example:
        >>> LOOKS["gradient descent"].color
        '#c8701a'
    """

    color: str
    dashes: Any = "solid"
    marker: str = ""

    def line(self, **more: Any) -> dict[str, Any]:
        """Give the arguments of a line: markers are spread along it."""
        line: dict[str, Any] = {"color": self.color, "ls": self.dashes}
        if self.marker:
            start = 0.02 * (1 + _MARKERS.index(self.marker))
            line |= {"marker": self.marker, "ms": 4, "mew": 0, "markevery": (start, 0.2)}
        return line | more


_MARKERS = "sD^v<>PXph*d"
"""Filled; circles are kept for published numbers."""

LOOKS: dict[str, Look] = {
    "trained model": Look(PALETTE[0], marker="s"),
    "1 linear layer": Look(PALETTE[0], marker="s"),
    "2 linear layers": Look("#7b68d9", marker="D"),
    "4 linear layers": Look("#a356b8", marker="^"),
    "6 linear layers": Look("#c2559a", marker="v"),
    "6 linear layers, heads of 40": Look("#a0628f", marker="<"),
    "mesa": Look(PALETTE[2], marker="P"),
    "3 softmax layers": Look("#a8860f", marker="X"),
    "7 softmax layers": Look("#758c1a", marker="p"),
    "12 softmax layers": Look("#4f8a3a", marker="h"),
    "softmax, then mesa": Look("#1c8c9c", marker="*"),
    "gradient descent": Look(PALETTE[1], DASHED),
    "weights of gradient descent": Look(PALETTE[1], DOTTED, marker=">"),
    "least squares": Look(PALETTE[4], DASH_DOTTED),
    "preconditioned steps": Look("#9a6b3a", (0, (2, 1))),
    "fewer preconditioned steps": Look("#b07f6a", (0, (3, 1, 1, 1))),
    "interpolated weights": Look("#b86fa9", (0, (5, 1))),
    "kernel regression": Look(PALETTE[3], (0, (3, 1)), marker="d"),
    "no knowledge": Look(PALETTE[5], DOTTED),
    "theory": Look(PALETTE[5]),
}
"""The looks of all figures, by idea."""


def series(number: int) -> Look:
    """Give a look to the number-th of things that are no idea of their own, such as starts or dimensions.

    Example:
        >>> series(0).color == PALETTE[0], series(1).marker != series(0).marker
        (True, True)
    """
    return Look(PALETTE[number % len(PALETTE)], marker=_MARKERS[number % len(_MARKERS)])


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


def band(axes: Axes, x: Sequence[float], mean: Any, half: Any, **line: Any) -> None:
    """Draw a line with a band of 95 %, for a logarithmic axis: the band ends at a tenth of the line."""
    mean, half = np.asarray(mean, dtype=float), np.asarray(half, dtype=float)
    low = np.maximum(mean - half, mean / 10)
    axes.fill_between(x, low, mean + half, color=line["color"], alpha=0.2, lw=0)
    axes.plot(x, mean, **line)


def circles(axes: Axes, published: Mapping[Any, float], color: str, size: float = 4.0) -> None:
    """Draw published numbers as circles, by their place on the x axis."""
    if published:
        x, y = zip(*published.items(), strict=True)
        axes.plot(x, y, "o", color=color, mfc="none", ms=size)


def plain_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with ordinary numbers."""
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_formatter(lambda *_: "")
