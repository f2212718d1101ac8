"""Figure 8: few-shot use of seven softmax layers, trained on next tokens."""

from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023 import few_shot_figures as few_shot
from mesaopt.papers.uncovering2023.laboratory import Laboratory

MODELS = ("tf-7-few-shot",)
seconds = few_shot.seconds


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Tune prompts for the models, score them beside least squares, draw, judge.

    Args:
        laboratory: the runs.
        report: told the steps of tuning and batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    return few_shot.compute(
        laboratory, report, recipe=MODELS[0], number="8", name="seven softmax layers"
    )
