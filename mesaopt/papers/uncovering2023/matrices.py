"""Pictures of weights: matrices side by side, with the borders of their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mesaopt.papers.figures import INK

KEY_QUERY, OUTPUT_VALUE = "$W_k^T W_q$", "$P W_v$"
"""The products of a head's weights, as the paper writes them."""


@dataclass(frozen=True)
class Picture:
    """One matrix and what stands around it."""

    matrix: Tensor
    title: str
    note: str = ""
    """Stands below it."""


@dataclass(frozen=True)
class Row:
    """Pictures side by side, all cut into the same blocks."""

    name: str
    pictures: Sequence[Picture]
    blocks: Sequence[str]
    """What the equal blocks along each side are called; one for a matrix without blocks."""
    share: float = 1.0
    """Of the entries, that the colours of the row reach to; larger entries have the last colour."""


def draw_matrices(
    rows: Sequence[Row], *, scale: Literal["row", "picture"] = "row", height: float = 1.45
) -> tuple[Figure, list[dict[str, Any]]]:
    """Draw rows of matrices in diverging colours around zero.

    Args:
        rows: with as many pictures each.
        scale: whether the pictures of a row share their colours, with a bar beside them, or each has
            its own.
        height: of a row, in inches.

    Returns:
        The figure, and the numbers drawn: a line for each line of a matrix.
    """
    figure = Figure(figsize=(7.6, height * len(rows) + 0.35))
    grid = figure.subplots(len(rows), len(rows[0].pictures), squeeze=False)
    lines = []
    for row, axes in zip(rows, grid, strict=True):
        limits = [picture.matrix.abs().max().item() for picture in row.pictures]
        if scale == "row":
            entries = torch.cat([picture.matrix.detach().flatten() for picture in row.pictures])
            limits = [entries.abs().quantile(row.share).item()] * len(limits)
        images = [
            draw_matrix(place, picture.matrix, limit)
            for place, picture, limit in zip(axes, row.pictures, limits, strict=True)
        ]
        if scale == "row":
            ends = "both" if row.share < 1 else "neither"
            bar = figure.colorbar(images[0], ax=list(axes), aspect=14, pad=0.01, extend=ends)
            bar.ax.tick_params(labelsize=7)
        axes[0].set_ylabel(row.name, fontsize=9)
        for place, picture in zip(axes, row.pictures, strict=True):
            if row is rows[0]:
                place.set_title(picture.title, fontsize=9)
            place.set_xlabel(picture.note, fontsize=7.5, labelpad=2)
            mark_blocks(place, row.blocks, len(picture.matrix), named=place is axes[0])
            lines += [
                {"matrix": _plain(row.name), "panel": picture.title, "row": i, "weights": weights}
                for i, weights in enumerate(map(_numbers, picture.matrix))
            ]
    return figure, lines


def draw_matrix(axes: Axes, matrix: Tensor, limit: float) -> AxesImage:
    """Draw one matrix in colours from red (-limit) over white (zero) to blue (limit)."""
    limit = limit or 1.0  # zeros have the colour of zero
    colors = {"cmap": "RdBu", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    return axes.imshow(matrix.detach().numpy(), **colors)


def mark_blocks(axes: Axes, blocks: Sequence[str], width: int, *, named: bool) -> None:
    """Draw the borders of equal blocks of a matrix, with their names below, and beside if `named`."""
    axes.grid(visible=False)
    size = width / len(blocks)
    for edge in range(1, len(blocks)):
        for line in (axes.axhline, axes.axvline):
            line(edge * size - 0.5, color="#8b8f98", lw=0.6)
    centers = ((torch.arange(len(blocks)) + 0.5) * size - 0.5).tolist()
    axes.set_xticks(centers, blocks)
    axes.set_yticks(centers, blocks if named else [])
    axes.tick_params(length=0, labelsize=7, colors=INK, pad=2)
    axes.spines[["top", "right"]].set_visible(True)


def _numbers(line: Tensor) -> str:
    return " ".join(f"{weight:.4g}" for weight in line.tolist())


def _plain(name: str) -> str:
    return name.replace("$", "").replace("\n", ", ")
