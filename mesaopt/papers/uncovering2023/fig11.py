"""Figure 11: contracting systems."""

from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.controls import draw_control
from mesaopt.papers.uncovering2023.curves import published_means, ratio_claim
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LEAST_SQUARES,
    RECIPES,
    Laboratory,
)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Compare on contracting systems, draw, judge.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    comparison, figure = draw_control(
        laboratory,
        report,
        task="contracting",
        figure="11",
        title="Fig. 11: contracting systems",
        caption=(
            "The matrix of each sequence has eigenvalues between 0.3 and 0.9 and is not normal, "
            "so that states grow before they shrink; they are clipped at 2. A few large "
            "sequences make the losses noisy. The ridge of least squares and the step size are "
            "tuned on validation sequences."
        ),
    )
    claims = [
        *published_means(
            laboratory, comparison, "Fig. 11", (*RECIPES["contracting"], GRADIENT_STEP)
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig11-one-layer",
            "Fig. 11",
            "Contracting: one linear layer is at one step of gradient descent (ratio of mean losses)",
            *("contracting-lsa-1", GRADIENT_STEP),
            low=0.93,
            high=1.03,
            basis="0.98 published, 5 % either way",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig11-two-layers",
            "Fig. 11",
            "Contracting: two linear layers do better than one step (ratio of mean losses)",
            *("contracting-lsa-2", GRADIENT_STEP),
            high=0.85,
            basis="0.44 published for 5000 steps; a quarter of the gain counts",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig11-mesa",
            "Fig. 11",
            "Contracting: the mesa layer does better than two linear layers (ratio of mean losses)",
            *("contracting-mesa-1", "contracting-lsa-2"),
            high=1.0,
            basis="0.39 published; smaller counts",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig11-mesa-beyond-least-squares",
            "beyond the paper",
            "Contracting: the mesa layer is no worse than least squares with the best ridge (ratio of mean "
            "losses)",
            *("contracting-mesa-1", LEAST_SQUARES),
            high=1.1,
            basis="no worse, and 10 %; published is 0.1536 without a tuned ridge beside it",
        ),
    ]
    return Results(figures=[figure], claims=claims)
