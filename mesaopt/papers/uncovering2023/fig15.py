"""Figure 15: attention maps of the softmax layers in front of mesa layers."""

from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import first_layer
from mesaopt.papers.uncovering2023.laboratory import Laboratory

MODELS = ("hybrid-mesa", "hybrid-mesa-partial", "hybrid-mesa-nonlinear")


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return first_layer.seconds(plan, 5.0)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Average maps, draw, judge.

    Args:
        laboratory: the runs.
        report: told the sequences done.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    results, found = first_layer.results(
        *(laboratory, MODELS, report),
        number=15,
        title="Fig. 15: where the softmax layers in front of mesa layers look",
        caption=(
            "That figure 15 shows the models with a mesa layer, and figure 14 the transformers, is our "
            "reading."
        ),
    )
    every_head = first_layer.judge_every_head(laboratory, found, "hybrid-mesa", "fig15")
    return Results(figures=results.figures, claims=[*every_head, *results.claims])
