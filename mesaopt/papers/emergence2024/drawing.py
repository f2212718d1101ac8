"""What the figures of this paper draw alike: curves of training, and weight matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact
from matplotlib.axes import Axes

from mesaopt.papers.emergence2024.measure import STARTS, mean_and_range
from mesaopt.papers.figures import INK, PALETTE

Array = np.ndarray
Rows = list[dict[str, Any]]

START_LABELS = tuple(f"a₀ = {a:g}, b₀ = {b:g}" for a, b in STARTS)


def draw_training(
    axes: Axes,
    panel: str,
    by_seed: Sequence[Float[Array, "step start"]],
    exact: Float[Array, "step start"],
) -> Rows:
    """Draw a quantity while training: mean and range over seeds, and the exact population behind it.

    Args:
        axes: where.
        panel: name of the quantity in the table.
        by_seed: one array per set of sequences, a column per start.
        exact: the same for the population.

    Returns:
        The numbers drawn.
    """
    mean, low, high = mean_and_range(by_seed)
    steps = np.arange(len(exact))
    rows: Rows = []
    for column, label in enumerate(START_LABELS):
        color = PALETTE[column]
        axes.fill_between(steps, low[:, column], high[:, column], color=color, alpha=0.22, lw=0)
        axes.plot(steps, mean[:, column], color=color, label=label)
        axes.plot(steps, exact[:, column], color=INK, lw=0.8, ls=(0, (1, 2)))
        rows += [
            {
                "panel": panel,
                "start": label,
                "step": int(n),
                "mean": float(mean[n, column]),
                "lowest": float(low[n, column]),
                "highest": float(high[n, column]),
                "exact": float(exact[n, column]),
            }
            for n in steps
        ]
    axes.set_xlim(0, len(exact) - 1)
    axes.set_xlabel("step of gradient descent")
    return rows


def limit_view(axes: Axes, limit: float, exact: Float[Array, "step start"]) -> None:
    """Show a curve around its limit: starts far above it are cut off.

    Args:
        axes: where.
        limit: what the curves go to.
        exact: the curves.
    """
    axes.set_ylim(0, min(3 * limit, 1.15 * float(exact.max())))


def draw_level(axes: Axes, value: float, label: str, *, dotted: bool = False) -> None:
    """Draw a horizontal line of theory: solid for this length, dotted for T to infinity.

    Args:
        axes: where.
        value: of the line.
        label: in the legend.
        dotted: whether it is the limit.
    """
    style = (0, (1, 1.5)) if dotted else "solid"
    axes.axhline(value, color=PALETTE[4], lw=1.1, ls=style, label=label, zorder=1.5)


def draw_matrix(
    axes: Axes,
    matrix: Inexact[Array, "row column"],
    title: str,
    *,
    limit: float | None = None,
    block: int | None = None,
) -> None:
    """Draw the real part of a weight matrix.

    Args:
        axes: where.
        matrix: the weights.
        title: above it.
        limit: the weight of the darkest colour; the largest modulus if not given.
        block: size of the blocks to mark.
    """
    limit = float(np.abs(matrix).max()) if limit is None else limit
    axes.imshow(matrix.real, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.grid(visible=False)
    if block is not None:
        for edge in range(block, max(matrix.shape), block):
            if edge < matrix.shape[0]:
                axes.axhline(edge - 0.5, color="#8b8f98", lw=0.7)
            if edge < matrix.shape[1]:
                axes.axvline(edge - 0.5, color="#8b8f98", lw=0.7)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)


def matrix_rows(panel: str, matrix: Inexact[Array, "row column"]) -> Rows:
    """List the entries of a matrix for the table.

    Args:
        panel: name of the matrix.
        matrix: the weights.

    Returns:
        One row per entry.
    """
    return [
        {"panel": panel, "row": i, "column": j, "real": float(w.real), "imaginary": float(w.imag)}
        for (i, j), w in np.ndenumerate(matrix)
    ]
