"""Figure 12: one fixed matrix for all sequences, the negative control."""

from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.controls import draw_control
from mesaopt.papers.uncovering2023.curves import ratio_claim
from mesaopt.papers.uncovering2023.laboratory import GRADIENT_STEP, LEAST_SQUARES, Laboratory


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Compare on one fixed matrix, draw, judge.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    comparison, figure = draw_control(
        laboratory,
        report,
        task="fixed",
        figure="12",
        title="Fig. 12: with one matrix for all sequences there is nothing to learn in context",
        caption=(
            "All sequences have the same matrix, which weights can hold: a model need not look "
            "at its context. One linear layer falls far below one step of gradient descent, from "
            "the first positions on, where no algorithm that learns in context can know "
            "anything. The paper shows a picture without numbers."
        ),
    )
    claims = [
        *ratio_claim(
            laboratory,
            comparison,
            "fig12-memorised",
            "Fig. 12",
            "One fixed matrix: one linear layer is far below one step of gradient descent (ratio of mean "
            "losses)",
            *("fixed-lsa-1", GRADIENT_STEP),
            high=0.2,
            basis="a fifth or less, as the paper's picture shows",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig12-before-the-context",
            "Fig. 12",
            "One fixed matrix: at positions 2 to 5 one linear layer knows more than least "
            "squares on the context can (ratio of losses)",
            *("fixed-lsa-1", LEAST_SQUARES),
            high=0.8,
            positions=slice(1, 5),
            basis="1 is what the context tells; a fifth less counts",
        ),
    ]
    return Results(figures=[figure], claims=claims)
