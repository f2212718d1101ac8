"""Other laws of the matrix, for figures 11 and 12: the same models, the same baselines."""

from matplotlib.figure import Figure

from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report
from mesaopt.papers.uncovering2023.curves import draw_positions, settings_of
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LEAST_SQUARES,
    OFFICIAL,
    RECIPES,
    Comparison,
    Laboratory,
)


def draw_control(
    laboratory: Laboratory, report: Report, *, task: str, figure: str, title: str, caption: str
) -> tuple[Comparison, FigureResult]:
    """Compare the models of a task with its baselines and draw them.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.
        task: "contracting" or "fixed".
        figure: its number.
        title: of the figure.
        caption: of the figure.

    Returns:
        The losses and the figure.
    """
    comparison = laboratory.comparison(task, report)
    drawing = Figure(figsize=(7.6, 4.6))
    left, right = drawing.subplots(1, 2)
    one, *deep, mesa = RECIPES[task]
    rows = draw_positions(left, comparison, (one, GRADIENT_STEP))
    left.set_title("one layer and one gradient step")
    names = (*deep, mesa, "steps" + OFFICIAL, LEAST_SQUARES)
    rows += draw_positions(right, comparison, names)
    right.set_title("several layers, and algorithms")
    for axes in (left, right):
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    result = FigureResult(
        id=f"uncovering2023-fig{figure}",
        title=title,
        caption=caption,
        settings=settings_of(
            laboratory,
            RECIPES[task],
            sequences=laboratory.plan.num_sequences,
            **comparison.settings,
        ),
        rows=rows,
        figure=drawing,
    )
    return comparison, result
