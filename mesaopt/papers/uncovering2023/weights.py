"""Figures 3B, 9, 10 and 13: products of trained weights, and Proposition 1 in them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor

from mesaopt.analysis import Compressed, compress
from mesaopt.analysis.estimate import Estimate
from mesaopt.config import TokenSlot
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, stack
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.matrices import (
    KEY_QUERY,
    OUTPUT_VALUE,
    HeadSum,
    MatrixRow,
    Picture,
    color_bar,
    draw_matrices,
    draw_matrix,
    mark_blocks,
    matrix_data,
    sum_over_heads,
)
from mesaopt.papers.rows import PanelData
from mesaopt.papers.uncovering2023.laboratory import (
    Laboratory,
    slot_coefficients,
)
from mesaopt.papers.uncovering2023.published import KEY_QUERY_ENERGY

_OTHER_TRAINING = 0.05
"""How far another seed of training may move a share; the published ones are of one network."""


@measurement
def compressed(lab: Laboratory, recipe: str) -> list[Compressed]:
    """Compress the last network of every run of linear layers."""
    return [compress(run.sequence_model.cpu()) for run in lab.trained(recipe)]


def matrices(
    rows: Any, height: float, *, summed: str | None = None, **colors: Any
) -> dict[str, Any]:
    """Give the panel and layout of a figure made of rows of matrices; `summed`: recipe of one layer."""

    def measure(lab: Laboratory) -> PanelData | None:
        measured = rows(lab)
        if not measured:
            return None
        if summed is None:
            return matrix_data(measured, **colors)
        config = lab.trained(summed)[0].config
        heads = gradient_sum(config.task.token_slots, config.sequence_model.num_heads)
        return matrix_data(measured, summed=heads, **colors)

    panel = Panel(name="matrices", measure=measure, draw=draw_matrices)
    return {
        "panels": (panel,),
        "layout": stack(lambda data: height * len(data.more["matrices"]) + 0.35),
    }


def slot_names(token_slots: Sequence[TokenSlot]) -> list[str]:
    """Name the slots of a token for the sides of a picture; the first holds the prediction.

    Example:
        >>> slot_names(("zero", "zero", "current", "previous"))
        ['pred.', 'empty', '$s_t$', '$s_{t-1}$']
        >>> slot_names(("current", "previous", 2))
        ['pred.', '$s_{t-1}$', '$s_{t-2}$']
    """
    names = {"zero": "empty", "current": "$s_t$", "previous": "$s_{t-1}$"}
    return ["pred.", *(names.get(str(slot), f"$s_{{t-{slot}}}$") for slot in token_slots[1:])]


def gradient_sum(token_slots: Sequence[TokenSlot], heads: int) -> HeadSum:
    """Sum heads by the blocks of gradient descent: previous keys, current queries, current values."""
    current, previous = token_slots.index("current"), token_slots.index("previous")
    return HeadSum(heads, (previous, current), (0, current))


def layer_rows(lab: Laboratory, recipe: str, layers: Sequence[int]) -> list[MatrixRow]:
    """Lay out the two products of every head of some layers (counted from 1) of the first seed."""
    runs = lab.trained(recipe)
    if not runs:
        return []
    mixers, scalars = runs[0].sequence_model.cpu().mixers, compressed(lab, recipe)[0]
    slots = slot_names(runs[0].config.task.token_slots)
    shares = scalars.key_query_energy, scalars.output_value_energy
    return [
        MatrixRow(
            f"layer {layer}\n{name}" if len(mixers) > 1 else name,
            [
                Picture(matrix, f"head {head + 1}", f"{share[layer - 1, head].item():.0%}")
                for head, matrix in enumerate(products)
            ],
            slots,
        )
        for layer in layers
        for name, products, share in zip(
            (KEY_QUERY, OUTPUT_VALUE), mixers[layer - 1].head_products(), shares, strict=True
        )
    ]


def _energies(lab: Laboratory, which: str) -> Float[Tensor, "seed layer"]:
    return torch.stack([getattr(one, which).mean(1) for one in compressed(lab, "lsa-6")])


def _by_layer(energy: Float[Tensor, "seed layer"]) -> dict[str, str]:
    return {
        f"layer {layer}": f"{x:.2f}" for layer, x in enumerate(energy.mean(0).tolist(), start=1)
    }


def _fig9_settings(lab: Laboratory) -> dict[str, Any]:
    return {
        "share of W_k^T W_q": _by_layer(_energies(lab, "key_query_energy")),
        "share of P W_v": _by_layer(_energies(lab, "output_value_energy")),
    }


def _early_and_last(energy: Float[Tensor, "seed layer"]) -> tuple[Estimate, Estimate]:
    """Estimate the share of layers 1 to 4, and that of the sixth over it."""
    early, last = energy[:, :4].mean(1), energy[:, -1]
    # Where there are no scalars, there is nothing to lose.
    ratio = torch.where(early > 0.5, last / early, 1.0)
    return Estimate.of_seeds(early), Estimate.of_seeds(ratio)


def _fig9_claims(lab: Laboratory) -> Iterable[Claim]:
    energy = None if lab.lacks("lsa-6") else _energies(lab, "key_query_energy")
    early, ratio = (None, None) if energy is None else _early_and_last(energy)
    yield Claim(
        name="fig9-early-layers-are-scalars",
        figure="Fig. 9",
        statement="Multiples of the identity explain most of the squared weights that score keys against "
        "queries in layers 1 to 4 (mean share)",
        measured=early,
        recipes=("lsa-6",),
        low=0.5,
        basis="0.92 to 0.98 in the released weights; more than half counts",
    )
    yield Claim(
        name="fig9-last-layer-is-not",
        figure="Fig. 9",
        statement="They explain less of the sixth layer than of the first four (ratio of mean shares; 1 "
        "where they do not explain more than half of the first four)",
        measured=ratio,
        recipes=("lsa-6",),
        high=0.8,
        basis="0.38 to 0.58 in the released weights; half of the loss counts",
    )
    if not lab.as_published("lsa-6"):
        return
    for layers, (low, high) in KEY_QUERY_ENERGY.items():
        where = "-".join(map(str, layers))
        share = None if energy is None else energy[:, layers[0] - 1 : layers[-1]].mean(1)
        yield Claim(
            name=f"fig9-energy-layer-{where}",
            figure="Fig. 9",
            statement=f"Multiples of the identity explain {low} to {high} of the squared weights that "
            f"score keys against queries in layer {where} (mean over heads)",
            measured=None if share is None else Estimate.of_seeds(share),
            recipes=("lsa-6",),
            low=low - _OTHER_TRAINING,
            high=high + _OTHER_TRAINING,
            basis=f"the range over heads of the released weights, {_OTHER_TRAINING} for another training",
        )


fig9 = Figure(
    name="fig9",
    title="Fig. 9: the weights of six linear layers",
    summary="the weights of six linear layers",
    caption=(
        "Layers 1, 2 and 4, a column per head. Above: the product that scores a key token (rows) against "
        "a query token (columns). Below: the product that turns a value token (columns) into what is "
        "written (rows). Blocks are the slots of a token: an empty one, where the prediction grows, "
        "twice the current state, and the previous one. Colours are shared within a row. Below each: "
        "the share of its squared entries that multiples of the identity in its 16 blocks "
        "explain. First seed; the settings have the mean share over heads and seeds, by layer."
    ),
    recipes=("lsa-6",),
    **matrices(lambda lab: layer_rows(lab, "lsa-6", (1, 2, 4)), height=1.6),
    settings=_fig9_settings,
    claims=_fig9_claims,
)


def _score_rows(lab: Laboratory) -> list[MatrixRow]:
    model = lab.trained("tf-7")[0].sequence_model.cpu()
    return [_score_row(model, layer) for layer in (1, 2, 4, 7)]


def _score_row(model: SequenceModel, layer: int) -> MatrixRow:
    scores = model.mixers[layer - 1].head_products()[0].detach()  # [H, rows, columns]
    width = model.config.width
    positional = scores.shape[-1] > width
    shares = scores[:, width:, width:].square().sum((1, 2)) / scores.square().sum((1, 2))
    notes = [f"{share:.0%}" for share in shares.tolist()] if positional else [""] * len(scores)
    pictures = [
        Picture(matrix, f"head {head + 1}", note)
        for head, (matrix, note) in enumerate(zip(scores, notes, strict=True))
    ]
    blocks = ("stream", "position") if positional else ("stream",)
    return MatrixRow(f"layer {layer}\n{KEY_QUERY}", pictures, blocks, share=0.995)


fig10 = Figure(
    name="fig10",
    title="Fig. 10: the weights of seven softmax layers",
    summary="the weights of seven softmax layers",
    caption=(
        "The product that scores a key token (rows) against a query token (columns) in layers 1, 2, 4 "
        "and 7, a column per head, first seed. Colours are shared within a row, and the largest half "
        "percent of its entries has the last colour. In the first layer queries and keys also read their "
        "positions, the second block: its corner at the lower right finds a token by its distance alone, "
        "and the number below each picture is its share of all squared entries. The stream behind the "
        "embedding has no slots, so there are no other blocks. The paper draws more layers, and says "
        "nothing of them in numbers."
    ),
    recipes=("tf-7",),
    **matrices(_score_rows, height=1.75),
)


def _fig13_settings(lab: Laboratory) -> dict[str, Any]:
    main = slot_coefficients(lab, "lsa-1")[:, 0, 1, 0].tolist()
    return {"E[current, previous, current]": [float(f"{x:.4f}") for x in main]}


def other_coefficients(coefficients: Float[Tensor, "seed 2 2 2"]) -> Float[Tensor, "seed 2 2 2"]:
    """Leave out the coefficient of gradient descent, E[current, previous, current]."""
    others = coefficients.clone()
    others[:, 0, 1, 0] = 0.0
    return others


def _fig13_claims(lab: Laboratory) -> Iterable[Claim]:
    if lab.lacks("lsa-1"):
        return
    published = lab.as_published("lsa-1")
    coefficients = slot_coefficients(lab, "lsa-1")
    main = coefficients[:, 0, 1, 0]
    ratio = Estimate.of_seeds(other_coefficients(coefficients).abs().flatten(1).amax(1) / main)
    smaller = [
        torch.min(one.key_query_energy.mean(), one.output_value_energy.mean())
        for one in compressed(lab, "lsa-1")
    ]
    yield Claim(
        name="fig13-one-coefficient",
        figure="Fig. 13",
        statement="One effective coefficient stands out, E[current, previous, current]: the largest of the "
        "other seven is a small share of it (mean over seeds)",
        measured=ratio if (main > 0).all() else Estimate(float("inf"), ratio.error),
        recipes=("lsa-1",),
        high=0.3 if published else 0.5,
        basis="below 0.01 against 0.0334 published"
        + ("" if published else "; half counts, trained for fewer steps"),
    )
    yield Claim(
        name="fig13-scalars",
        figure="Fig. 13",
        statement="Multiples of the identity explain most of the squared entries of W_k^T W_q and of P W_v "
        "(the smaller share, mean over heads and seeds)",
        measured=Estimate.of_seeds(torch.stack(smaller)),
        recipes=("lsa-1",),
        low=0.5,
        basis="0.79 and 0.992 in released weights, of another training; more than half counts",
    )


fig13 = Figure(
    name="fig13",
    title="Fig. 13: the weights of one linear layer",
    summary="the weights of one linear layer",
    caption=(
        "Both heads. Above: the product that scores a key token (rows) against a query token (columns). "
        "Below: the product that turns a value token (columns) into what is written (rows). Blocks are "
        "the slots of a token: the prediction, an empty one, the current and the previous state. "
        "Colours are shared within a row, and below each picture is the share of its squared "
        'entries that multiples of the identity in its blocks explain. "Summed over heads" has each '
        "head times the mean diagonal of its other matrix, with a bar of its own. First seed. The authors "
        "trained the layer of this picture with batches of 2048 at a learning rate of 9e-5; this "
        "is lsa-1, with batches of 256 at 2e-4. Whether one coefficient stands out is judged here; "
        "`mesaopt reproduce core` compares its size with a gradient step's."
    ),
    recipes=("lsa-1",),
    **matrices(lambda lab: layer_rows(lab, "lsa-1", (1,)), height=2.8, summed="lsa-1"),
    settings=_fig13_settings,
    claims=_fig13_claims,
)


_TOKEN: tuple[TokenSlot, ...] = ("zero", "zero", "current", "previous")
_SLOTS = slot_names(_TOKEN)
_CURRENT, _PREVIOUS = 2, 3


def pattern_shares(model: SequenceModel) -> tuple[Tensor, Tensor]:
    """Give the shares of one linear layer's weight products that Proposition 1 uses.

    They are the shares of squared entries that a multiple of the identity explains, [head] each: in the
    block of W_k^T W_q for previous keys and current queries, and in the block of P W_v that writes the
    prediction from current values. The model reads tokens [0, 0, s_t, s_{t-1}].
    """
    key_query, output_value = model.mixers[0].head_products()
    return (
        _identity_share(key_query.detach(), _PREVIOUS, _CURRENT),
        _identity_share(output_value.detach(), 0, _CURRENT),
    )


def _identity_share(products: Tensor, row: int, column: int) -> Tensor:
    size = products.shape[-1] // len(_SLOTS)
    diagonals = _block(products, row, column).diagonal(dim1=-2, dim2=-1)  # [H, size]
    return size * diagonals.mean(-1).square() / products.square().sum((-2, -1))


def _block(products: Tensor, row: int, column: int) -> Tensor:
    size = products.shape[-1] // len(_SLOTS)
    rows, columns = (slice(i * size, (i + 1) * size) for i in (row, column))
    return products[:, rows, columns]


def pattern_claims(lab: Laboratory) -> Iterable[Claim]:
    """Judge whether one linear layer has the weights of Proposition 1: Figure 3B."""
    shares = [pattern_shares(run.sequence_model.cpu()) for run in lab.trained("lsa-1")]
    if not shares:
        return
    for place, (name, matrix, block) in enumerate(
        (
            ("scores", "W_k^T W_q", "compares previous keys with current queries"),
            ("values", "P W_v", "writes current values into the prediction"),
        )
    ):
        by_seed = torch.stack([pair[place].mean() for pair in shares])
        yield Claim(
            name=f"fig3-pattern-{name}",
            figure="Fig. 3B",
            statement=f"One linear layer: {matrix} is a multiple of the identity in the block that "
            f"{block}, as in Proposition 1 (share of its squared entries, mean over heads)",
            measured=Estimate.of_seeds(by_seed),
            recipes=("lsa-1",),
            low=0.5,
            basis="multiples of the identity in any block explain 0.79 of W_k^T W_q and 0.992 of P W_v "
            "in the released weights; half in this one counts",
        )


def _measure_pattern(lab: Laboratory) -> PanelData | None:
    """Give the products of both heads, with a positive P W_v, and those of Proposition 1."""
    runs = lab.trained("lsa-1")
    if not runs:
        return None
    products = runs[0].sequence_model.cpu().mixers[0].head_products()
    key_query, output_value = (x.detach() for x in products)
    written = _block(output_value, 0, _CURRENT)
    sign = written.diagonal(dim1=-2, dim2=-1).mean(-1).sign()[:, None, None]
    rows = []
    for name, signed, row in (
        ("W_k^T W_q", sign * key_query, _PREVIOUS),
        ("P\\,W_v", sign * output_value, 0),
    ):
        built = torch.zeros(1, *signed.shape[1:])
        _block(built, row, _CURRENT)[:] = torch.eye(signed.shape[-1] // len(_SLOTS))
        titles = [f"{name}, head {h + 1}" for h in range(len(signed))] + [f"{name}, Prop. 1"]
        rows += [
            pattern_row("B", title, f"row {i + 1}", " ".join(f"{x:.4g}" for x in line))
            for matrix, title in zip(torch.cat([signed, built]), titles, strict=True)
            for i, line in enumerate(matrix.tolist())
        ]
    heads = len(key_query)
    return PanelData(rows=rows, more={"heads": heads, "size": key_query.shape[-1]})


def pattern_row(panel: str, what: str, where: str, value: float | str) -> dict[str, Any]:
    """Write one line of the table of Figure 3."""
    return {"panel": panel, "what": what, "where": where, "value": value}


def _draw_pattern(part: SubFigure, data: PanelData) -> None:
    part.suptitle("B: one linear layer and Proposition 1", fontsize=10)
    size, heads, lines = data.more["size"], data.more["heads"], iter(data.rows)
    grid = part.subplots(2, heads + 2)
    products: list[list[Any]] = []
    for places in grid:
        products.append([])
        for place in (*places[:heads], places[-1]):
            rows = [next(lines) for _ in range(size)]
            matrix = np.array([[float(x) for x in row["value"].split()] for row in rows])
            products[-1].append(matrix)
            name, _, whose = rows[0]["what"].partition(", ")
            _draw_product(part, place, matrix, f"${name}$, {whose}")
    blocks = gradient_sum(_TOKEN, heads)
    sums = sum_over_heads(
        *(one[:heads] for one in products),
        blocks=len(_SLOTS),
        scored=blocks.scored,
        written=blocks.written,
    )
    for places, total in zip(grid, sums, strict=True):
        _draw_product(part, places[heads], total, "summed over heads")


def _draw_product(part: SubFigure, axes: Axes, matrix: Any, title: str) -> None:
    color_bar(part, draw_matrix(axes, matrix, np.abs(matrix).max()), axes)
    mark_blocks(axes, _SLOTS, len(matrix), named=True)
    axes.set_title(title, fontsize=8.5, pad=3)


pattern_panel = Panel(name="B", measure=_measure_pattern, draw=_draw_pattern)
"""Panel B of Figure 3: the weights of one linear layer and those of Proposition 1."""
