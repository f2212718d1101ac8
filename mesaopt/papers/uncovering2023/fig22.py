"""Figure 22: what the first layer depends on while training, partially observed systems."""

from collections.abc import Sequence

import torch

from mesaopt.analysis import Sensitivity
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import sensitivities, sensitivity_claims
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import mean_and_error
from mesaopt.papers.uncovering2023.sensitivities import label

_PAIRS = {"tf-7-partial": "tf-7", "hybrid-mesa-partial": "hybrid-mesa"}
MODELS = (*_PAIRS, *_PAIRS.values())


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return sensitivities.seconds(plan, 12.0)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Differentiate first layers, draw, judge.

    Args:
        laboratory: the runs.
        report: told the models differentiated.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    courses = sensitivities.measure(laboratory, tuple(_PAIRS), report)
    if not courses:
        return Results(figures=[], claims=[])
    figure = sensitivities.draw(
        laboratory,
        courses,
        number=22,
        title="Fig. 22: partially observed, the first layer looks at several tokens",
        caption="One observation is less than a state: several in a row are needed to tell it.",
    )
    claims = sensitivity_claims.judge(laboratory, courses, tuple(_PAIRS), 22)
    for name in courses:
        observed = [
            sensitivities.at_end(run, laboratory.plan)
            for run in laboratory.runs.get(_PAIRS[name], [])
        ]
        if not observed:
            continue
        claims.append(
            _binds_more(laboratory, name, [course.last for course in courses[name]], observed)
        )
    return Results(figures=[figure], claims=claims)


def _binds_more(
    laboratory: Laboratory,
    name: str,
    hidden: Sequence[Sensitivity],
    observed: Sequence[Sensitivity],
) -> Claim:
    (many, many_error), (few, few_error) = (
        mean_and_error(torch.stack([one.breadth for one in found])) for found in (hidden, observed)
    )
    error = torch.hypot(many_error, few_error).item()
    return laboratory.claim(
        f"fig22-{name}-binds-more",
        "Fig. 22",
        f"{label(name)}: the first layer depends on more tokens where states are partially observed than "
        "where they are seen (effective numbers of tokens, difference)",
        value=(many - few).item(),
        low=1.0 - STANDARD_ERRORS * error,
        basis=f"{_published_breadth(name):.2g} and {_published_breadth(_PAIRS[name]):.2g} by the published "
        f"means; one token more counts, and {STANDARD_ERRORS:g} standard errors of {error:.2g}",
    )


def _published_breadth(name: str) -> float:
    """(sum c)^2 / sum c^2 of the published means, the 44 older tokens alike."""
    *near, older = sensitivities.PUBLISHED[name]
    return (sum(near) + 44 * older) ** 2 / (sum(c**2 for c in near) + 44 * older**2)
