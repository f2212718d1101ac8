"""Figure 9: products of the weights of six linear layers, block by block."""

import torch
from torch import Tensor

from mesaopt.analysis import Compressed, compress
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import settings_of, trained_as_published
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import (
    KEY_QUERY,
    OUTPUT_VALUE,
    Picture,
    Row,
    draw_matrices,
)
from mesaopt.papers.uncovering2023.noise import variance_over_seeds
from mesaopt.papers.uncovering2023.published import KEY_QUERY_ENERGY
from mesaopt.training import Run

MODELS = ("lsa-6",)
_LAYERS = (1, 2, 4)
_OTHER_TRAINING = 0.05
"""How far another seed of training may move an energy; the published ones are of one network."""


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Draw the first seed's weights, judge the energy in their blocks over all seeds.

    Args:
        laboratory: the runs.
        report: told when it is done.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    runs = laboratory.runs.get(MODELS[0], [])
    if not runs:
        return Results(figures=[], claims=[])
    compressed = [compress(run.model.cpu()) for run in runs]
    energy = torch.stack([one.key_query_energy.mean(1) for one in compressed])  # [seed,layer]
    figure, rows = draw_matrices(layer_rows(runs[0], compressed[0], _LAYERS), height=1.6)
    written = torch.stack([one.output_value_energy.mean(1) for one in compressed])
    report(1, 1)
    result = FigureResult(
        id="uncovering2023-fig9",
        title="Fig. 9: the weights of six linear layers",
        caption=(
            "Layers 1, 2 and 4, a column per head: above, what scores a key token (rows) against a "
            "query token (columns), below, what turns a value token (columns) into what is written "
            "(rows). Blocks are the slots of a token: 0 empty, where the prediction grows, 1 and 2 "
            "the current state, 3 the previous one. Colours are shared within a row. Below each: "
            "the share of its squared entries that multiples of the identity in its 16 blocks "
            "explain. First seed; the settings have the mean share over heads and seeds, by layer."
        ),
        settings=settings_of(laboratory, MODELS)
        | {
            "share of W_k^T W_q": _by_layer(energy),
            "share of P W_v": _by_layer(written),
        },
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=_judge(laboratory, runs, energy))


def layer_rows(run: Run, compressed: Compressed, layers: tuple[int, ...]) -> list[Row]:
    """Lay out the two products of every head of some layers.

    Args:
        run: of linear layers on tokens made of slots.
        compressed: its model.
        layers: counted from 1.

    Returns:
        Two rows a layer, a picture per head.
    """
    slots = [str(slot) for slot in range(compressed.key_query.shape[-1])]
    mixers = run.sequence_model.cpu().mixers
    rows = []
    for layer in layers:
        named = f"layer {layer}\n" if len(mixers) > 1 else ""
        shares = compressed.key_query_energy, compressed.output_value_energy
        products = mixers[layer - 1].head_products()
        for name, matrices, share in zip((KEY_QUERY, OUTPUT_VALUE), products, shares, strict=True):
            pictures = [
                Picture(matrix, f"head {head + 1}", f"{share[layer - 1, head].item():.0%}")
                for head, matrix in enumerate(matrices)
            ]
            rows.append(Row(named + name, pictures, slots))
    return rows


def _by_layer(energy: Tensor) -> dict[str, str]:
    return {
        f"layer {layer}": f"{x:.2f}" for layer, x in enumerate(energy.mean(0).tolist(), start=1)
    }


def _judge(laboratory: Laboratory, runs: list[Run], energy: Tensor) -> list[Claim]:
    """The last layer beside the first four, and where trained as published, each by itself."""
    early, last = energy[:, :4].mean(1), energy[:, -1]
    ratio = torch.where(
        early > 0.5, last / early, 1.0
    )  # nothing to lose where there are no scalars
    claims = [
        laboratory.claim(
            "fig9-early-layers-are-scalars",
            "Fig. 9",
            "Multiples of the identity explain most of the squared weights that score keys against "
            "queries in layers 1 to 4 (mean share)",
            value=early.mean().item(),
            low=0.5 - standard_errors(early),
            basis="0.92 to 0.98 in the released weights; more than half counts",
        ),
        laboratory.claim(
            "fig9-last-layer-is-not",
            "Fig. 9",
            "They explain less of the sixth layer than of the first four (ratio of mean shares; 1 where "
            "they do not explain more than half of the first four)",
            value=ratio.mean().item(),
            high=0.8 + standard_errors(ratio),
            basis="0.38 to 0.58 in the released weights; half of the loss counts",
        ),
    ]
    if not trained_as_published(runs):
        return claims
    for layers, (low, high) in KEY_QUERY_ENERGY.items():
        share = energy[:, slice(layers[0] - 1, layers[-1])].mean(1)
        where = "-".join(map(str, layers))
        width = _OTHER_TRAINING + standard_errors(share)
        claims.append(
            laboratory.claim(
                f"fig9-energy-layer-{where}",
                "Fig. 9",
                f"Multiples of the identity explain {low} to {high} of the squared weights that score "
                f"keys against queries in layer {where} (mean over heads)",
                value=share.mean().item(),
                low=low - width,
                high=high + width,
                basis=f"the range over heads of the released weights, {_OTHER_TRAINING} for another "
                f"training, and {STANDARD_ERRORS:g} standard errors over seeds",
            )
        )
    return claims


def standard_errors(values: Tensor) -> float:
    """Give three standard errors of a mean over seeds; zero where one seed says nothing about them."""
    return STANDARD_ERRORS * variance_over_seeds(values).sqrt().item()
