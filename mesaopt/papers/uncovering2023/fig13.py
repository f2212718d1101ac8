"""Figure 13 (and 3B): the weights of one linear layer, both heads."""

import torch
from torch import Tensor

from mesaopt.analysis import Compressed, compress
from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.core_measure import slot_coefficients
from mesaopt.papers.uncovering2023.curves import settings_of, trained_as_published
from mesaopt.papers.uncovering2023.fig9 import layer_rows, standard_errors
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import draw_matrices
from mesaopt.training import Run

MODELS = ("lsa-1",)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Draw the first seed's weights; judge coefficients and energies over all seeds.

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
    coefficients = torch.stack([slot_coefficients(run) for run in runs])  # [seed,2,2,2]
    figure, rows = draw_matrices(layer_rows(runs[0], compressed[0], (1,)), height=2.6)
    report(1, 1)
    main = coefficients[:, 0, 1, 0]
    result = FigureResult(
        id="uncovering2023-fig13",
        title="Fig. 13: the weights of one linear layer",
        caption=(
            "Both heads: above, what scores a key token (rows) against a query token (columns), "
            "below, what turns a value token (columns) into what is written (rows). Blocks are the "
            "slots of a token: 0 the prediction, 1 empty, 2 the current state, 3 the previous one; "
            "colours are shared within a row, and below each picture is the share of its squared "
            "entries that multiples of the identity in its blocks explain. First seed. The authors "
            "trained the layer of this picture with batches of 2048 at a learning rate of 9e-5; this "
            "is lsa-1, with batches of 256 at 2e-4. Whether one coefficient stands out is judged here; "
            "`mesaopt reproduce core` compares its size with a gradient step's."
        ),
        settings=settings_of(laboratory, MODELS)
        | {"E[current, previous, current]": [float(f"{x:.4f}") for x in main.tolist()]},
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=_judge(laboratory, runs, compressed, coefficients))


def _judge(
    laboratory: Laboratory, runs: list[Run], compressed: list[Compressed], coefficients: Tensor
) -> list[Claim]:
    published = trained_as_published(runs)
    others = coefficients.clone()
    others[:, 0, 1, 0] = 0.0
    main = coefficients[:, 0, 1, 0]
    ratio = others.abs().flatten(1).amax(1) / main
    share = torch.stack(
        [torch.min(m.key_query_energy.mean(), m.output_value_energy.mean()) for m in compressed]
    )
    bound = 0.3 if published else 0.5
    return [
        laboratory.claim(
            "fig13-one-coefficient",
            "Fig. 13",
            "One effective coefficient stands out, E[current, previous, current]: the largest of the "
            "other seven is a small share of it (mean over seeds)",
            value=ratio.mean().item() if (main > 0).all() else float("inf"),
            high=bound + standard_errors(ratio),
            basis="below 0.01 against 0.0334 published"
            + ("" if published else "; half counts, trained for fewer steps"),
        ),
        laboratory.claim(
            "fig13-scalars",
            "Fig. 13",
            "Multiples of the identity explain most of the squared entries of W_k^T W_q and of P W_v (the "
            "smaller share, mean over heads and seeds)",
            value=share.mean().item(),
            low=0.5 - standard_errors(share),
            basis="0.79 and 0.992 in released weights, of another training; more than half counts",
        ),
    ]
