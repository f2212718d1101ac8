"""The claims of figures 16, 22 and 23: what first layers come to depend on."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.uncovering2023.curves import trained_as_published
from mesaopt.papers.uncovering2023.first_layer import task_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import mean_and_error
from mesaopt.papers.uncovering2023.sensitivities import (
    PUBLISHED,
    PUBLISHED_STEP,
    Course,
    label,
    older,
    previous,
)
from mesaopt.recipes import RECIPES
from mesaopt.training import Run

FAITHFUL = 0.3
"""How far a faithful re-implementation may be, as a share: one training, whose streams have a scale of
their own, and for the fully observed task another learning rate (7e-4 published, 8e-4 in the recipe)."""


def judge(
    laboratory: Laboratory, courses: dict[str, list[Course]], names: Sequence[str], number: int
) -> list[Claim]:
    """Judge whether first layers come to depend on the tokens next to a position, and on no others.

    Args:
        laboratory: knows the plan.
        courses: by recipe.
        names: recipes of which the paper says so.
        number: of the figure.

    Returns:
        The claims.
    """
    claims = []
    for name in (name for name in names if name in courses):
        end = [course.last for course in courses[name]]
        before = [next(iter(course.by_step.values()), course.last) for course in courses[name]]
        claims += [
            ratio_claim(
                laboratory,
                f"fig{number}-{name}-onset",
                f"Fig. {number}",
                f"{_what(name)}: the first layer learns to depend on the previous token "
                "(sensitivity to it after and before training, ratio)",
                (previous(end), previous(before)),
                low=100.0,
                basis=f"{_published_onset(name, previous(before))}; 100 counts",
            ),
            ratio_claim(
                laboratory,
                f"fig{number}-{name}-binds",
                f"Fig. {number}",
                f"{_what(name)}: after training the previous token counts for more than those older than "
                "the nearest six (ratio of sensitivities)",
                (previous(end), older(end)),
                low=10.0,
                basis=f"{PUBLISHED[name][1] / PUBLISHED[name][-1]:.0f} published, at least 37 for all "
                "models; 10 counts",
            ),
            *_published(laboratory, courses[name], name, number),
        ]
    return claims


def ratio_claim(
    laboratory: Laboratory,
    name: str,
    figure: str,
    statement: str,
    pair: tuple[Tensor, Tensor],
    *,
    low: float,
    basis: str,
) -> Claim:
    """Judge a ratio of means that should be large.

    Args:
        laboratory: knows the plan.
        name: short, unique.
        figure: where it stands.
        statement: what is claimed.
        pair: numerator and denominator, [seed, sequence] each.
        low: smallest ratio that passes, before noise.
        basis: where it comes from.

    Returns:
        The claim; its limit is lowered by three standard errors over sequences and seeds, as shares of the
        ratio, whose noise grows with it.
    """
    (above, above_error), (below, below_error) = (mean_and_error(values) for values in pair)
    share = torch.hypot(above_error / above, below_error / below)
    share = share.nan_to_num(0.0, posinf=0.0).item()  # where nothing depends on anything
    return laboratory.claim(
        name,
        figure,
        statement,
        value=(above / below).item(),
        low=low * math.exp(-STANDARD_ERRORS * share),
        basis=f"{basis}, and {STANDARD_ERRORS:g} standard errors of {share:.1%}",
    )


def _what(name: str) -> str:
    return f"{label(name)}, {task_of(name)} task"


def _published_onset(name: str, before: Tensor) -> str:
    """Say what the published sensitivity is and how many times that of the initial weights."""
    published = PUBLISHED[name][1]
    theirs = ", 2500 times that of theirs, 0.0004" if name == "tf-7" else ""
    ours = (published / before.mean()).item()
    return f"{published:g} published, {ours:.0f} times that of our initial weights{theirs}"


def _published(
    laboratory: Laboratory, courses: list[Course], name: str, number: int
) -> list[Claim]:
    """Hold the two nearest tokens against published numbers, where there is a model of the same age."""
    if not trained_as_published([_as_if_complete(course.run) for course in courses]):
        return []
    near = [
        next((found for step, found in course.by_step.items() if step == PUBLISHED_STEP), None)
        for course in courses
    ]
    if name == "hybrid-mesa" or None in near:  # the authors' has more than twice our learning rate
        return []
    claims = []
    for back in (0, 1):
        values = torch.stack([one.norms[:, one.position - 1 - back] for one in near if one])
        (value, error), wanted = mean_and_error(values), PUBLISHED[name][back]
        width = FAITHFUL * wanted + STANDARD_ERRORS * error.item()
        claims.append(
            laboratory.claim(
                f"fig{number}-{name}-{'previous' if back else 'self'}",
                f"Fig. {number}",
                f"{_what(name)}: after {PUBLISHED_STEP} steps the sensitivity of the last position to "
                f"token {50 - back} is {wanted:g}",
                value=value.item(),
                low=wanted - width,
                high=wanted + width,
                basis=f"{wanted:g} published, {FAITHFUL:.0%} either way, and {STANDARD_ERRORS:g} standard "
                f"errors of {error:.2g}",
            )
        )
    return claims


def _as_if_complete(run: Run) -> Run:
    """The run with the steps of its recipe: up to a step it does not matter how many follow."""
    train = replace(run.config.train, steps=RECIPES[run.config.recipe].config.train.steps)
    return replace(run, config=replace(run.config, train=train))
