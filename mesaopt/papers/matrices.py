"""Pictures of matrices: rows of weights in diverging colours, with the borders of their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage

from mesaopt.papers.plots import INK, PALETTE
from mesaopt.papers.rows import PanelData

if TYPE_CHECKING:
    from torch import Tensor

KEY_QUERY, OUTPUT_VALUE = "$W_k^T W_q$", "$P W_v$"
"""The products of a head's weights, as the paper writes them."""


@dataclass(frozen=True)
class Picture:
    """One matrix with its title and the note below it."""

    matrix: "Tensor"
    title: str
    note: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """Pictures in one row, all cut into the same blocks."""

    name: str
    pictures: Sequence[Picture]
    blocks: Sequence[str]
    """Names of the equal blocks along each side; one for a matrix without blocks."""
    share: float = 1.0
    """Share of the entries that the colours of the row reach to; larger entries have the last colour."""


def matrix_data(
    rows: Sequence[MatrixRow], *, colors: Literal["row", "picture"] = "row"
) -> PanelData:
    """Give the numbers of rows of matrices, a line for each line of a matrix.

    Args:
        rows: with as many pictures each.
        colors: whether the pictures of a row share their colours, with a bar, or each has its own.

    Returns:
        For :func:`draw_matrices`.
    """
    lines = [
        {"matrix": _plain(row.name), "panel": picture.title, "row": i, "weights": weights}
        for row in rows
        for picture in row.pictures
        for i, weights in enumerate(map(_numbers, picture.matrix.detach().tolist()))
    ]
    layout = [
        {
            "name": row.name,
            "blocks": list(row.blocks),
            "share": row.share,
            "titles": [picture.title for picture in row.pictures],
            "notes": [picture.note for picture in row.pictures],
            "sizes": [len(picture.matrix) for picture in row.pictures],
        }
        for row in rows
    ]
    return PanelData(rows=lines, more={"matrices": layout, "colors": colors})


def draw_matrices(part: SubFigure, data: PanelData) -> None:
    """Draw rows of matrices in diverging colours around zero."""
    layout, shared = data.more["matrices"], data.more["colors"] == "row"
    lines = iter(data.rows)
    grid = part.subplots(len(layout), len(layout[0]["titles"]), squeeze=False)
    for number, (row, axes) in enumerate(zip(layout, grid, strict=True)):
        matrices = [
            np.array([str(next(lines)["weights"]).split() for _ in range(size)], dtype=float)
            for size in row["sizes"]
        ]
        limits = [np.abs(matrix).max() for matrix in matrices]
        if shared:
            entries = np.concatenate([np.abs(matrix).ravel() for matrix in matrices])
            limits = [np.quantile(entries, row["share"])] * len(limits)
        images = [
            draw_matrix(place, matrix, limit)
            for place, matrix, limit in zip(axes, matrices, limits, strict=True)
        ]
        if shared:
            ends = "both" if row["share"] < 1 else "neither"
            bar = part.colorbar(images[0], ax=list(axes), aspect=14, pad=0.01, extend=ends)
            bar.ax.tick_params(labelsize=7)
        axes[0].set_ylabel(row["name"], fontsize=9)
        for place, matrix, title, note in zip(
            axes, matrices, row["titles"], row["notes"], strict=True
        ):
            if number == 0:
                place.set_title(title, fontsize=9)
            place.set_xlabel(note, fontsize=7.5, labelpad=2)
            mark_blocks(place, row["blocks"], len(matrix), named=place is axes[0])


def draw_matrix(axes: Axes, matrix: Any, limit: float) -> AxesImage:
    """Draw one matrix in colours from red (-limit) over white (zero) to blue (limit)."""
    limit = limit or 1.0  # zeros have the colour of zero
    return axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")


def mark_blocks(axes: Axes, blocks: Sequence[str], width: int, *, named: bool) -> None:
    """Draw the borders of equal blocks of a matrix, with their names below, and at the left if `named`."""
    axes.grid(visible=False)
    size = width / len(blocks)
    for edge in range(1, len(blocks)):
        for line in (axes.axhline, axes.axvline):
            line(edge * size - 0.5, color=PALETTE[5], lw=0.6)
    centers = [(block + 0.5) * size - 0.5 for block in range(len(blocks))]
    axes.set_xticks(centers, blocks)
    axes.set_yticks(centers, blocks if named else [])
    axes.tick_params(length=0, labelsize=7, colors=INK, pad=2)
    axes.spines[["top", "right"]].set_visible(True)


def _numbers(line: Sequence[float]) -> str:
    return " ".join(f"{weight:.4g}" for weight in line)


def _plain(name: str) -> str:
    return name.replace("$", "").replace("\n", ", ")
