"""Figure 3: where a first softmax layer looks, and the weights of a linear one beside Proposition 1."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from mesaopt.analysis import AttentionMaps
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import first_layer
from mesaopt.papers.uncovering2023.first_layer import PUBLISHED
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import draw_matrix, mark_blocks
from mesaopt.training import Run

_SOFTMAX, _LINEAR = "tf-7", "lsa-1"
MODELS = (_SOFTMAX, _LINEAR)
_SLOTS = ("0", "0", "$s_t$", "$s_{t-1}$")
_CURRENT, _PREVIOUS = 2, 3


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return first_layer.seconds(plan, 1.0)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Average the maps of one model, read the weights of the other, draw, judge.

    Args:
        laboratory: the runs.
        report: told the sequences done.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    found = first_layer.measure(laboratory, (_SOFTMAX,), report)
    linear = laboratory.runs.get(_LINEAR, [])
    panels = [panel for panel, there in ((2.2, found), (4.0, linear)) if there]
    if not panels:
        return Results(figures=[], claims=[])
    figure = Figure(figsize=(7.6, sum(panels)))
    parts = iter(figure.subfigures(len(panels), 1, squeeze=False, height_ratios=panels)[:, 0])
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    if found:
        rows += _draw_maps(next(parts), found[_SOFTMAX])
        claims += first_layer.judge_every_head(laboratory, found, _SOFTMAX, "fig3")
        claims.append(_previous_head(laboratory, found[_SOFTMAX]))
    if linear:
        rows += _draw_weights(next(parts), linear[0])
        claims += _patterns(laboratory, linear)
    result = FigureResult(
        id="uncovering2023-fig3",
        title="Fig. 3: the first layer binds neighbours; one linear layer is a gradient step",
        caption=(
            "A: mean attention maps of the first of seven softmax layers over test sequences, a picture "
            "per head; rows are the positions that look, white is 0, dark is 1, the last eight larger in "
            "the corner; above each the share of the token itself and the previous one, over positions "
            "from the sixth on. To the right the "
            "shares of both, heads ordered by that of the token itself, seeds beside one another; circles "
            "are those of the authors' released weights. B: the products of weights of both heads of one "
            "linear layer, first seed, beside Proposition 1, each in its own colours from negative (red) "
            "to positive (blue); both products of a head may change their signs together, and are drawn "
            "with a positive P W_v. Rows of W_k^T W_q are the slots of a key token, columns those of a "
            "query token; rows of P W_v are what is written, columns the value token. Figure 13 has them "
            "larger."
        ),
        settings=first_layer.settings(laboratory, found)
        | {"weights": {_LINEAR: f"{linear[0].config.train.steps} steps"} if linear else {}},
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=claims)


def pattern_shares(model: SequenceModel) -> tuple[Tensor, Tensor]:
    """Say how much of one linear layer's weight products is in the entries that Proposition 1 uses.

    Args:
        model: on tokens [0, 0, s_t, s_{t-1}], with one layer.

    Returns:
        Shares of squared entries that a multiple of the identity explains, [head] each: in the block of
        W_k^T W_q for previous keys and current queries, and in the block of P W_v that writes the
        prediction from current values.
    """
    key_query, output_value = model.mixers[0].head_products()
    return (
        _identity_share(key_query.detach(), _PREVIOUS, _CURRENT),
        _identity_share(output_value.detach(), 0, _CURRENT),
    )


def _identity_share(products: Tensor, row: int, column: int) -> Tensor:
    size = products.shape[-1] // len(_SLOTS)
    diagonals = _block(products, row, column).diagonal(dim1=-2, dim2=-1)  # [H,size]
    return size * diagonals.mean(-1).square() / products.square().sum((-2, -1))


def _block(products: Tensor, row: int, column: int) -> Tensor:
    size = products.shape[-1] // len(_SLOTS)
    rows, columns = (slice(i * size, (i + 1) * size) for i in (row, column))
    return products[:, rows, columns]


def _previous_head(laboratory: Laboratory, maps: Sequence[AttentionMaps]) -> Claim:
    shares = torch.stack([one.mass[:, 1].max() for one in maps])
    head = [one.mass[:, 1].argmax() for one in maps]
    errors = torch.stack([one.mass_error[h, 1] for one, h in zip(maps, head, strict=True)])
    variance = errors.square().mean() / len(maps)
    if len(maps) > 1:
        variance = variance + shares.var() / len(maps)
    error = variance.sqrt().item()
    return laboratory.claim(
        "fig3-previous-head",
        "Fig. 3A",
        "A head of the first layer looks at the previous token above all (its share of attention, the "
        "largest of the heads)",
        value=shares.mean().item(),
        low=0.5 - STANDARD_ERRORS * error,
        basis="0.847 in the released weights; more than on all others counts, and "
        f"{STANDARD_ERRORS:g} standard errors of {error:.2g}",
    )


def _patterns(laboratory: Laboratory, runs: Sequence[Run]) -> list[Claim]:
    both = [pattern_shares(run.sequence_model.cpu()) for run in runs]
    claims = []
    for place, (name, matrix, reads) in enumerate(
        (
            ("scores", "W_k^T W_q", "compares previous keys with current queries"),
            ("values", "P W_v", "writes current values into the prediction"),
        )
    ):
        shares = torch.stack([pair[place].mean() for pair in both])
        error = (shares.std() / len(shares) ** 0.5).item() if len(shares) > 1 else 0.0
        claims.append(
            laboratory.claim(
                f"fig3-pattern-{name}",
                "Fig. 3B",
                f"One linear layer: {matrix} is a multiple of the identity in the block that {reads}, as "
                "in Proposition 1 (share of its squared entries, mean over heads)",
                value=shares.mean().item(),
                low=0.5 - STANDARD_ERRORS * error,
                basis="multiples of the identity in any block explain 0.79 of W_k^T W_q and 0.992 of P W_v "
                "in the released weights; half in this one counts, and "
                f"{STANDARD_ERRORS:g} standard errors over seeds",
            )
        )
    return claims


def _draw_maps(part: SubFigure, of_seeds: Sequence[AttentionMaps]) -> list[dict[str, Any]]:
    part.suptitle("A: the first of seven softmax layers", fontsize=10)
    heads = len(of_seeds[0].mean)
    *pictures, beside = part.subplots(1, heads + 1, width_ratios=[1] * heads + [1.1])
    rows = [
        _row("A", f"head {row['head']}", f"{row['tokens back']} tokens back", row["share"])
        for row in first_layer.draw_heads(pictures, of_seeds[0], _SOFTMAX, near=2)
    ]
    _draw_shares(beside, of_seeds)
    return rows


def _draw_shares(axes: Axes, of_seeds: Sequence[AttentionMaps]) -> None:
    published = torch.tensor(sorted(PUBLISHED[_SOFTMAX]))  # [H,2]
    places = torch.arange(1, len(published) + 1)
    for back, (color, label) in enumerate(((PALETTE[0], "itself"), (PALETTE[1], "previous"))):
        for seed, maps in enumerate(of_seeds):
            order = maps.mass[:, 0].argsort()
            across = places + 0.12 * (seed - (len(of_seeds) - 1) / 2)
            axes.errorbar(
                across, maps.mass[order, back], yerr=1.96 * maps.mass_error[order, back], fmt=".",
                ms=6, color=color, label=label if seed == 0 else None,
            )  # fmt: skip
        axes.plot(places, published[:, back], "o", mfc="none", ms=7, color=color)
    axes.set(ylim=(-0.05, 1.38), xticks=places.tolist(), yticks=[0, 0.5, 1], xlabel="head")
    axes.tick_params(labelsize=7)
    axes.set_title("shares", fontsize=8, pad=2)
    axes.legend(fontsize=7, loc="upper left", handletextpad=0.2, borderpad=0.1, labelspacing=0.2)


def _draw_weights(part: SubFigure, run: Run) -> list[dict[str, Any]]:
    part.suptitle("B: one linear layer and Proposition 1", fontsize=10)
    products = run.sequence_model.cpu().mixers[0].head_products()
    key_query, output_value = (x.detach() for x in products)
    sign = (
        _block(output_value, 0, _CURRENT).diagonal(dim1=-2, dim2=-1).mean(-1).sign()[:, None, None]
    )
    size = key_query.shape[-1] // len(_SLOTS)
    rows = []
    grid = part.subplots(2, len(key_query) + 1)
    for axes, products, (name, row) in zip(
        grid,
        (sign * key_query, sign * output_value),
        (("$W_k^T W_q$", _PREVIOUS), ("$P\\,W_v$", 0)),
        strict=True,
    ):
        step = torch.zeros(1, *products.shape[1:])
        _block(step, row, _CURRENT)[:] = torch.eye(size)
        titles = [f"{name}, head {h + 1}" for h in range(len(products))] + [f"{name}, Prop. 1"]
        for place, matrix, title in zip(axes, torch.cat([products, step]), titles, strict=True):
            draw_matrix(place, matrix, matrix.abs().max().item())
            mark_blocks(place, _SLOTS, len(matrix), named=True)
            place.set_title(title, fontsize=9, pad=3)
            rows += [
                _row(
                    "B", title.replace("$", ""), f"row {i + 1}", " ".join(f"{x:.4g}" for x in line)
                )
                for i, line in enumerate(matrix.tolist())
            ]
    return rows


def _row(panel: str, what: str, where: str, value: float | str) -> dict[str, Any]:
    return {"panel": panel, "what": what, "where": where, "value": value}
