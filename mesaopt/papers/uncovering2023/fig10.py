"""Figure 10: what scores keys against queries in seven softmax layers."""

from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import settings_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import KEY_QUERY, Picture, Row, draw_matrices
from mesaopt.training import Run

MODELS = ("tf-7",)
_LAYERS = (1, 2, 4, 7)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Draw the first seed's weights.

    Args:
        laboratory: the runs.
        report: told when it is done.

    Returns:
        The figure, of which the paper claims nothing in numbers; nothing without the runs.
    """
    runs = laboratory.runs.get(MODELS[0], [])
    if not runs:
        return Results(figures=[], claims=[])
    drawn = [_row(runs[0], layer) for layer in _LAYERS]
    figure, rows = draw_matrices(drawn, height=1.75)
    report(1, 1)
    result = FigureResult(
        id="uncovering2023-fig10",
        title="Fig. 10: the weights of seven softmax layers",
        caption=(
            "What scores a key token (rows) against a query token (columns) in layers 1, 2, 4 and 7, "
            "a column per head, first seed; colours are shared within a row, and the largest half "
            "percent of its entries has the last colour. In the first layer "
            "queries and keys also read where they stand, the second block: its corner at the lower "
            "right finds a token by its distance alone, and the number below each picture is its "
            "share of all squared entries. The stream behind the embedding has no slots, so there "
            "are no other blocks. The paper draws more layers, and says nothing of them in numbers."
        ),
        settings=settings_of(laboratory, MODELS),
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=[])


def _row(run: Run, layer: int) -> Row:
    model = run.sequence_model.cpu()
    scores = model.mixers[layer - 1].head_products()[0].detach()
    width = model.config.width
    placed = scores.shape[-1] > width
    shares = scores[:, width:, width:].square().sum((1, 2)) / scores.square().sum((1, 2))
    notes = [f"{share:.0%}" for share in shares.tolist()] if placed else [""] * len(scores)
    pictures = [
        Picture(matrix, f"head {head + 1}", note)
        for head, (matrix, note) in enumerate(zip(scores, notes, strict=True))
    ]
    blocks = ("stream", "position") if placed else ("stream",)
    return Row(f"layer {layer}\n{KEY_QUERY}", pictures, blocks, share=0.995)
