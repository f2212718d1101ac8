"""Figure 6C: softmax transformers on plain tokens, beside preconditioned steps."""

from matplotlib.figure import Figure

from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import (
    draw_positions,
    published_means,
    ratio_claim,
    settings_of,
)
from mesaopt.papers.uncovering2023.laboratory import LEAST_SQUARES, OFFICIAL, Laboratory

MODELS = ("tf-3", "tf-7")
_THREE, _SEVEN = "3-layer steps", "7-layer steps"


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Compare transformers with preconditioned steps, draw, judge.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    comparison = laboratory.comparison("linear", report)
    figure = Figure(figsize=(7.6, 4.0))
    axes = figure.subplots()
    names = ("tf-3", _THREE + OFFICIAL, _THREE, "tf-7", _SEVEN + OFFICIAL, _SEVEN, LEAST_SQUARES)
    rows = draw_positions(axes, comparison, names)
    figure.legend(loc="outside right center")
    result = FigureResult(
        id="uncovering2023-fig6c",
        title="Fig. 6C: softmax transformers beside preconditioned gradient steps",
        caption=(
            "Loss by position on plain tokens, which the first layer has to bind. Dashed (with "
            "all pairs) and dotted (without the newest): two and six preconditioning steps with "
            "the authors' step sizes and a gradient step after them, once without the newest "
            "pair, as published, and once with all pairs. Circles are the authors' own numbers."
        ),
        settings=settings_of(laboratory, MODELS, sequences=laboratory.plan.num_sequences),
        rows=rows,
        figure=figure,
    )
    claims = [
        *published_means(laboratory, comparison, "Fig. 6C", MODELS),
        *published_means(
            laboratory,
            comparison,
            "Fig. 6C",
            (_THREE + OFFICIAL, _SEVEN + OFFICIAL),
            tolerance=0.02,
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig6c-newest-pair",
            "Fig. 6C",
            "The published steps do better with the newest pair (ratio of mean losses, seven layers)",
            *(_SEVEN, _SEVEN + OFFICIAL),
            high=0.92,
            basis="0.2042/0.2275 = 0.898, and 2 %",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig6c-depth-helps",
            "Fig. 6C",
            "Seven softmax layers do better than three (ratio of mean losses)",
            *("tf-7", "tf-3"),
            high=1.0,
            basis="0.73 published; smaller counts",
        ),
    ]
    return Results(figures=[result], claims=claims)
