"""Diagnoses of several runs: one table and one figure."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mesaopt.analysis import Diagnosis
from mesaopt.analysis.diagnosis import Rates
from mesaopt.analysis.diagnosis.drawing import draw_shares
from mesaopt.papers.plots import style
from mesaopt.report.diagnosis import share
from mesaopt.report.page import Page, Table

TITLE = "Is there a mesa-optimizer in these runs?"
NOTE = (
    "± is one standard error over sequences. Shares say how much of the model's predictions, and of its "
    "errors, the nearest algorithm explains. The rate is the number of gradient steps that the "
    "last layer is worth, and how it grows from layer to layer, where that is clear: linear as in gradient "
    "descent, exponential as in Newton's method. "
    "mesaopt diagnose with one run shows all of the evidence."
)
_CAPTION = (
    "Share of the predictions, and of the errors, of each model that the nearest optimizer explains, with "
    "95 % bars. The red line is the least share of predictions for a yes."
)


def rows(diagnoses: Mapping[str, Diagnosis]) -> list[dict[str, str]]:
    """Write a line for each diagnosis.

    Args:
        diagnoses: by the name of the run.

    Returns:
        Cells by the title of their column.
    """
    return [_row(name, diagnosis) for name, diagnosis in diagnoses.items()]


def page_of(diagnoses: Mapping[str, Diagnosis], commands: Sequence[str]) -> Page:
    """Make the page of diagnoses.

    Args:
        diagnoses: by the name of the run.
        commands: what to type next.

    Returns:
        The page: figure, answers and reasons.
    """
    reasons = [{"run": name, "reason": one.verdict.sentence} for name, one in diagnoses.items()]
    return Page(
        title=TITLE,
        lead=_count(diagnoses),
        figure=draw(diagnoses),
        caption=_CAPTION,
        tables=[Table("Answers", rows(diagnoses), NOTE), Table("Reasons", reasons)],
        commands=commands,
    )


def draw(diagnoses: Mapping[str, Diagnosis]) -> Figure:
    """Draw how much of each model the nearest optimizer explains.

    Args:
        diagnoses: by the name of the run.

    Returns:
        The figure, 8 inches wide.
    """
    named = [
        (f"{name}\n{one.verdict.answer}: {one.optimizer}", one.agreement(one.optimizer))
        for name, one in diagnoses.items()
    ]
    with style():
        figure = Figure(figsize=(8, 1.4 + 0.55 * len(diagnoses)))
        axes = figure.subplots()
        draw_shares(axes, named)
        axes.set(xlabel="share explained by the nearest optimizer")
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def _row(name: str, diagnosis: Diagnosis) -> dict[str, str]:
    nearest = diagnosis.agreement(diagnosis.nearest)
    return {
        "run": name,
        "answer": diagnosis.verdict.answer,
        "nearest algorithm": nearest.candidate,
        "of predictions": share(nearest.predictions),
        "of errors": share(nearest.errors),
        "rate": _rate(diagnosis.rates),
    }


def _rate(rates: Rates | None) -> str:
    """Say how many steps the last layer is worth, and how they grow with the depth."""
    if rates is None:
        return "not measured"
    steps = rates.layers[-1].gradient_steps
    if not rates.layers[-1].matched:
        return "no match"
    count = "1 gradient step" if steps == 1 else f"{steps} gradient steps"
    return count if rates.growth == "unclear" else f"{count}, {rates.growth} growth"


def _count(diagnoses: Mapping[str, Diagnosis]) -> str:
    answers = [diagnosis.verdict.answer for diagnosis in diagnoses.values()]
    parts = [f"{answers.count(a)} {a}" for a in ("yes", "no", "unclear") if a in answers]
    return f"{len(answers)} runs: {', '.join(parts)}."
