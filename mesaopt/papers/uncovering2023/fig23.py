"""Figure 23: what the first layer depends on while training, nonlinear systems."""

from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import sensitivities, sensitivity_claims
from mesaopt.papers.uncovering2023.laboratory import RECIPES, Laboratory

MODELS = RECIPES["nonlinear"]


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return sensitivities.seconds(plan, 6.0)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Differentiate first layers, draw, judge.

    Args:
        laboratory: the runs.
        report: told the models differentiated.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    courses = sensitivities.measure(laboratory, MODELS, report)
    if not courses:
        return Results(figures=[], claims=[])
    figure = sensitivities.draw(
        laboratory,
        courses,
        number=23,
        title="Fig. 23: nonlinear systems, the first layer looks at the previous token",
        caption="The first layer holds attention and a hidden layer of 300.",
    )
    return Results(
        figures=[figure], claims=sensitivity_claims.judge(laboratory, courses, MODELS, 23)
    )
