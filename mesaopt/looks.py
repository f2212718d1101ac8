"""Colours, and how one thing looks in all figures. The report reads this without drawing anything."""

from dataclasses import dataclass
from typing import Any

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
            start = 0.02 * (1 + MARKERS.index(self.marker))
            line |= {"marker": self.marker, "ms": 4, "mew": 0, "markevery": (start, 0.2)}
        return line | more


MARKERS = "sD^v<>PXph*d"
"""Filled; circles are kept for published numbers."""


def series(number: int) -> Look:
    """Give a look to the number-th of things that are no idea of their own, such as starts or dimensions.

    Example:
        >>> series(0).color == PALETTE[0], series(1).marker != series(0).marker
        (True, True)
    """
    return Look(PALETTE[number % len(PALETTE)], marker=MARKERS[number % len(MARKERS)])


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
