"""Figure 16: what the first layer depends on while training, fully observed systems."""

from collections.abc import Sequence

from torch import Tensor

from mesaopt.analysis import Sensitivity
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import sensitivities, sensitivity_claims
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.sensitivities import older, previous

MODELS = ("tf-7", "hybrid-mesa", "full-mesa-published")


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return sensitivities.seconds(plan, 3.0)


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
        number=16,
        title="Fig. 16: the first layer learns to look at the previous token",
        caption=(
            'What was published as "full-mesa" has a linear first layer; no numbers of it are known. '
            "The authors trained the two others for this figure at a learning rate of 7e-4; our runs "
            "are those of the other figures, at 8e-4 and 3e-4."
        ),
    )
    claims = sensitivity_claims.judge(laboratory, courses, ("tf-7", "hybrid-mesa"), 16)
    if {"hybrid-mesa", "full-mesa-published"} <= set(courses):
        softmax, linear = (
            binding([course.last for course in courses[name]])
            for name in ("hybrid-mesa", "full-mesa-published")
        )
        claims.append(
            sensitivity_claims.ratio_claim(
                laboratory,
                "fig16-full-mesa-binds-less",
                "Fig. 16",
                "The previous token stands out far more for a softmax first layer than for the linear one "
                'of "full-mesa" (its sensitivity over that of tokens older than the nearest six, ratio of '
                "the models)",
                (softmax, linear),
                low=10.0,
                basis='published is "no clear binding", without numbers, and 6000 for the softmax layer; '
                "10 counts",
            )
        )
    return Results(figures=[figure], claims=claims)


def binding(found: Sequence[Sensitivity]) -> Tensor:
    """Sensitivity to the previous token over the mean of older ones, [seed, sequence].

    Every seed has a mean of its own, so that the noise of means over seeds is in their spread.
    """
    return previous(found) / older(found).mean(1, keepdim=True)
