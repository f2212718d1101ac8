"""Figure 14: attention maps of the transformers' first layers."""

from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import first_layer
from mesaopt.papers.uncovering2023.laboratory import Laboratory

MODELS = ("tf-7", "tf-7-partial", "tf-7-nonlinear")


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
    results, _ = first_layer.results(
        *(laboratory, MODELS, report),
        number=14,
        title="Fig. 14: where the first layers of seven softmax layers look",
        caption=(
            "That figure 14 shows the transformers, and figure 15 the models with a mesa layer, is our "
            "reading; we have no numbers of either but for the first model, which figure 3 is held against."
        ),
    )
    return results
