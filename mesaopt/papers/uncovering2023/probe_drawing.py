"""Drawings of probes: held-out errors with their controls, and published numbers for comparison."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from mesaopt.looks import PALETTE
from mesaopt.papers.rows import PanelData, Rows

HELD_OUT_CAPTION = (
    "Held out: the probe is fitted on validation and scored on test sequences; bars are 95 % intervals, "
    "thin lines are training seeds where there are several. The same 256 sequences: the probe is fitted "
    "and scored on these, without an intercept. That is what the authors measure and what their numbers "
    "are compared with; it is too optimistic. Controls: the mean of the fitting targets as prediction, "
    "and probes fitted to the targets of other sequences (crosses). "
)

_DEPTH = LinearSegmentedColormap.from_list("depth", [PALETTE[1], "#b9bdc4", PALETTE[0]])
_FLOOR = 1e-6  # of errors that are drawn on a logarithmic axis
_PUBLISHED = "as published"
_STYLES: dict[str, dict[str, Any]] = {
    "held out": {"marker": "."},
    "same 256 sequences": {"ls": "--", "lw": 1},
    _PUBLISHED: {"ls": "", "marker": "o", "mfc": "none", "ms": 5},
    "mean prediction": {"ls": ":", "lw": 1},
    "shuffled": {"ls": "", "marker": "x", "ms": 4, "alpha": 0.6},
}
"""The look of a line, by what it shows."""
_CONTROLS = {
    "same 256 sequences": "in_sample_256",
    "mean prediction": "uninformative",
    "shuffled": "shuffled",
}
"""Columns of the table, by what they show."""


def depth_color(share: float) -> str:
    """Give the colour of a layer, orange for the first (0) and blue for the last (1).

    Example:
        >>> depth_color(0.0) == PALETTE[1]
        True
    """
    return to_hex(_DEPTH(share))


def layer_label(layer: int) -> str:
    """Name a layer in a legend.

    Example:
        >>> layer_label(0), layer_label(2)
        ('input', 'layer 2')
    """
    return f"layer {layer}" if layer else "input"


def style_legend(drawing: Drawing, colors: Mapping[str, str] | None = None) -> None:
    """Explain the kinds of lines below a drawing, and colours by name."""
    lines = [line for axes in drawing.axes for line in axes.lines]
    published = any(line.get_label() == _hidden(_PUBLISHED) for line in lines)
    kinds = {k: v for k, v in _STYLES.items() if published or k != _PUBLISHED}
    handles = [Line2D([], [], color=PALETTE[5], label=k, **v) for k, v in kinds.items()]
    handles += [Line2D([], [], color=c, label=k) for k, c in (colors or {}).items()]
    drawing.legend(handles=handles, loc="outside lower center", ncols=5)


def all_columns(data: PanelData) -> Rows:
    """Give the rows of a panel with the further columns in `more`."""
    return [
        row | {name: values[place] for name, values in data.more.items()}
        for place, row in enumerate(data.rows)
    ]


def seeds_of(rows: Rows) -> Iterator[tuple[float, ...]]:
    """Give the curve of every seed; none where there is a single one."""
    return zip(*(row["seeds"] for row in rows), strict=True)


def draw_curve(
    axes: Axes,
    places: Sequence[int],
    rows: Rows,
    *,
    color: str,
    label: str | None = None,
    controls: bool = True,
) -> None:
    """Draw errors on a logarithmic axis: held out, of each seed, as published, and the controls."""
    draw_held_out(axes, places, rows, color=color, label=label, lw=1.5, **_STYLES["held out"])
    for errors in seeds_of(rows):
        axes.plot(places, np.maximum(errors, _FLOOR), color=color, lw=0.5, alpha=0.5)
    for kind, column in _CONTROLS.items() if controls else ():
        errors = np.maximum([row[column] for row in rows], _FLOOR)
        axes.plot(places, errors, color=color, **_STYLES[kind])
    # 0 has no place on the axis.
    published = {x: row["published"] for x, row in zip(places, rows, strict=True)}
    published = {x: error for x, error in published.items() if error}
    if published:
        x, errors = zip(*published.items(), strict=True)
        axes.plot(x, errors, color=color, label=_hidden(_PUBLISHED), **_STYLES[_PUBLISHED])


def draw_held_out(axes: Axes, places: Sequence[int], rows: Rows, **line: Any) -> None:
    """Draw held-out errors with 95 % intervals, which go down to a tenth of the error at most."""
    errors = np.array([row["held_out"] for row in rows])
    above = np.array([row["half_width_95"] for row in rows]) * (errors > _FLOOR)
    below = np.minimum(above, 0.9 * errors)
    axes.errorbar(places, np.maximum(errors, _FLOOR), yerr=[below, above], **line)
    axes.set_yscale("log")


def _hidden(label: str) -> str:
    """Mark a line for :func:`style_legend` that the legend of its axes is to leave out."""
    return f"_{label}"
