"""Pictures of matrices: rows of weights in diverging colours, with the borders of their blocks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage

from mesaopt.looks import INK, PALETTE
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


@dataclass(frozen=True)
class HeadSum:
    """The sum over heads that is drawn next to them; rows are pairs of W_k^T W_q and P W_v."""

    heads: int
    """The first pictures of each row."""
    scored: tuple[int, int]
    """Block (row, column) of W_k^T W_q whose mean diagonal says how much a head counts in P W_v."""
    written: tuple[int, int]
    """Block of P W_v whose mean diagonal says how much a head counts in W_k^T W_q."""


def matrix_data(
    rows: Sequence[MatrixRow],
    *,
    colors: Literal["row", "picture"] = "row",
    summed: HeadSum | None = None,
) -> PanelData:
    """Give the numbers of rows of matrices, a line for each line of a matrix.

    Args:
        rows: with as many pictures each.
        colors: whether the pictures of a row share their colours, with a bar, or each has its own.
        summed: the sum over heads that is drawn next to them.

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
    more = {} if summed is None else {"summed": asdict(summed)}
    return PanelData(rows=lines, more={"matrices": layout, "colors": colors} | more)


def draw_matrices(part: SubFigure, data: PanelData) -> None:
    """Draw rows of matrices in diverging colours around zero."""
    shared = data.more["colors"] == "row"
    layout = _read_layout(data)
    grid = part.subplots(len(layout), len(layout[0]["matrices"]), squeeze=False)
    for number, (row, axes) in enumerate(zip(layout, grid, strict=True)):
        matrices = row["matrices"]
        alone = [not shared or place == row["summed"] for place in range(len(matrices))]
        limits = [np.abs(matrix).max() for matrix in matrices]
        if shared:
            together = [m for m, own in zip(matrices, alone, strict=True) if not own]
            entries = np.concatenate([np.abs(matrix).ravel() for matrix in together])
            limit = np.quantile(entries, row["share"])
            limits = [x if own else limit for x, own in zip(limits, alone, strict=True)]
        images = [
            draw_matrix(place, matrix, limit)
            for place, matrix, limit in zip(axes, matrices, limits, strict=True)
        ]
        for image, place, own in zip(images, axes, alone, strict=True):
            if own:
                color_bar(part, image, place)
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


def _read_layout(data: PanelData) -> list[dict[str, Any]]:
    """Read the matrices of each row; put the sum over heads behind the heads, and say where it is."""
    lines = iter(data.rows)
    layout = []
    for row in data.more["matrices"]:
        matrices = [
            np.array([str(next(lines)["weights"]).split() for _ in range(size)], dtype=float)
            for size in row["sizes"]
        ]
        layout.append(row | {"matrices": matrices, "summed": None})
    if "summed" not in data.more:
        return layout
    heads = data.more["summed"]["heads"]
    for key_query, output_value in zip(layout[::2], layout[1::2], strict=True):
        both = key_query["matrices"][:heads], output_value["matrices"][:heads]
        blocks = len(key_query["blocks"])
        scored, written = (tuple(data.more["summed"][name]) for name in ("scored", "written"))
        sums = sum_over_heads(*both, blocks=blocks, scored=scored, written=written)
        for row, total in zip((key_query, output_value), sums, strict=True):
            row["summed"] = heads
            row["matrices"].insert(heads, total)
            for name, text in (("titles", "summed over heads"), ("notes", "")):
                row[name] = [*row[name][:heads], text, *row[name][heads:]]
    return layout


def sum_over_heads(
    key_query: Any,
    output_value: Any,
    *,
    blocks: int,
    scored: tuple[int, int],
    written: tuple[int, int],
) -> tuple[Any, Any]:
    """Sum W_k^T W_q over heads, each times its mean diagonal in P W_v, and P W_v the other way round.

    Signs that both matrices of a head have turned cancel. The mean diagonal of either sum is the effective
    coefficient of the two blocks, in units of a step size.

    Example:
        >>> import numpy as np
        >>> k, v = np.array([[[2.0]], [[-1.0]]]), np.array([[[3.0]], [[-1.0]]])
        >>> sum_over_heads(k, v, blocks=1, scored=(0, 0), written=(0, 0))[0]
        array([[7.]])
    """
    key_query, output_value = np.asarray(key_query), np.asarray(output_value)  # [H, rows, columns]

    def strength(products: Any, block: tuple[int, int]) -> Any:
        size = products.shape[-1] // blocks
        rows, columns = (slice(i * size, (i + 1) * size) for i in block)
        return products[:, rows, columns].diagonal(axis1=1, axis2=2).mean(1)[:, None, None]

    return (
        (strength(output_value, written) * key_query).sum(0),
        (strength(key_query, scored) * output_value).sum(0),
    )


def color_bar(part: SubFigure, image: AxesImage, axes: Axes) -> None:
    """Draw the colour bar of one picture below it, with its ends and zero."""
    limit = image.get_clim()[1]
    bar = part.colorbar(image, ax=axes, orientation="horizontal", aspect=22, pad=0.02, shrink=0.9)
    bar.set_ticks(
        [-limit, 0, limit], labels=[f"{-limit:.2g}".replace("-", "−"), "0", f"{limit:.2g}"]
    )
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1)
    bar.outline.set_linewidth(0.4)


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
