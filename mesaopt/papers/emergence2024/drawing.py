"""Drawings that the figures of this paper share: curves of training, and weight matrices."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Inexact
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.looks import INK, LOOKS, PALETTE, series
from mesaopt.papers.emergence2024.laboratory import STARTS, Curve
from mesaopt.papers.figure import Places
from mesaopt.papers.rows import PanelData, Rows

Array = np.ndarray

START_LABELS = tuple(f"a₀ = {a:g}, b₀ = {b:g}" for a, b in STARTS)


def training_rows(panel: str, by_seed: Sequence[Curve], exact: Curve) -> Rows:
    """Give a quantity while training: mean and range over sets of sequences, and the exact population."""
    stacked = np.stack(by_seed)
    mean, low, high = stacked.mean(0), stacked.min(0), stacked.max(0)
    return [
        {
            "panel": panel,
            "start": label,
            "step": step,
            "mean": float(mean[step, column]),
            "lowest": float(low[step, column]),
            "highest": float(high[step, column]),
            "exact": float(exact[step, column]),
        }
        for column, label in enumerate(START_LABELS)
        for step in range(len(exact))
    ]


def draw_training(axes: Axes, rows: Rows) -> None:
    """Draw a quantity while training, a colour for each start, the exact population dotted."""
    for number, label in enumerate(START_LABELS):
        own = [row for row in rows if row["start"] == label]
        steps, mean, low, high, exact = (
            [row[key] for row in own] for key in ("step", "mean", "lowest", "highest", "exact")
        )
        look = series(number)
        axes.fill_between(steps, low, high, color=look.color, alpha=0.22, lw=0)
        axes.plot(steps, mean, **look.line(label=label))
        axes.plot(steps, exact, color=INK, lw=0.8, ls=(0, (1, 2)))
        axes.set_xlim(0, len(steps) - 1)
    axes.set_xlabel("step of gradient descent")


def draw_level(axes: Axes, value: float, label: str, *, dotted: bool = False) -> None:
    """Draw a horizontal line of theory: solid for this length, dotted for T to infinity."""
    style = (0, (1, 1.5)) if dotted else "solid"
    axes.axhline(value, color=LOOKS["theory"].color, lw=1.1, ls=style, label=label, zorder=1.5)


def matrix_rows(panel: str, matrix: Inexact[Array, "row column"]) -> Rows:
    """List the entries of a matrix, a row for each."""
    return [entry(panel, i, j, w) for (i, j), w in np.ndenumerate(matrix)]


def entry(panel: str, row: int, column: int, value: complex) -> dict[str, Any]:
    """Write one number of a table of matrices."""
    numbers = {"real": float(value.real), "imaginary": float(value.imag)}
    return {"panel": panel, "row": row, "column": column} | numbers


def matrices_of(rows: Rows) -> dict[str, Inexact[Array, "row column"]]:
    """Undo :func:`matrix_rows`, for any number of matrices."""
    entries: dict[str, dict[tuple[int, int], complex]] = {}
    for row in rows:
        place = row["row"], row["column"]
        entries.setdefault(row["panel"], {})[place] = complex(row["real"], row["imaginary"])
    matrices = {}
    for name, own in entries.items():
        height, width = (max(place[axis] for place in own) + 1 for axis in (0, 1))
        matrices[name] = np.array(list(own.values())).reshape(height, width)
    return matrices


def draw_matrix(
    axes: Axes, matrix: Inexact[Array, "row column"], title: str, *, block: int, share: float = 1.0
) -> None:
    """Draw the real part of a weight matrix; colours reach to a share of the largest modulus."""
    limit = share * float(np.abs(matrix).max())
    axes.imshow(matrix.real, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.grid(visible=False)
    for line, size in ((axes.axhline, matrix.shape[0]), (axes.axvline, matrix.shape[1])):
        for edge in range(block, size, block):
            line(edge - 0.5, color=PALETTE[5], lw=0.7)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)


def two_parts(height: float, ratio: float) -> Callable[[Sequence[PanelData]], Places]:
    """Lay two panels out below one another, the upper one higher by a ratio."""

    def layout(panels: Sequence[PanelData]) -> Places:
        drawing = Drawing(figsize=(7.6, height))
        parts = cast(np.ndarray, drawing.subfigures(2, 1, height_ratios=(ratio, 1)))
        return drawing, parts.tolist()

    return layout
