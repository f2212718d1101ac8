"""The item `emergence2024`: the theory of Zheng et al., computed, trained and checked."""

from collections.abc import Callable
from typing import cast

from mesaopt.papers.emergence2024 import (
    condition,
    contrast,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7,
    landscape,
)
from mesaopt.papers.emergence2024.measure import Emergence, EmergencePlan
from mesaopt.papers.plan import Item, Part, Plan, Report, Results, Runs, Scale


def _plan(scale: Scale, *, seeds: int, m: int, all_blocks: int, weights: int) -> EmergencePlan:
    return EmergencePlan(
        what="emergence2024",
        scale=scale,
        seeds=seeds,
        sequences=m,
        test_sequences=m,
        all_blocks_sequences=all_blocks,
        weight_seeds=weights,
    )


def _measure(plan: Plan, runs: Runs) -> Emergence:
    return Emergence(cast(EmergencePlan, plan), runs)


def _part(
    name: str,
    summary: str,
    compute: Callable[[Emergence, Report], Results],
    seconds: Callable[[EmergencePlan], float],
) -> Part[Emergence]:
    return Part(name=name, summary=summary, compute=compute, seconds=seconds)


def _drawing(laws: int) -> Callable[[EmergencePlan], float]:
    """Guess the time to draw sets of sequences of some laws and to train on them."""
    return lambda plan: 3 + laws * plan.seeds * (1 + 5e-4 * plan.sequences)


EMERGENCE: Item[Emergence] = Item(
    name="emergence2024",
    title="When training finds the mesa-optimizer, and what it can recover",
    summary="theory of one trained layer of linear attention: closed forms, exact training, samples",
    introduction=(
        "One layer of linear attention is trained to predict the next state of x_{t+1} = W x_t, with W a "
        "diagonal unitary matrix, new in every sequence. Theory says what training ends in: two scalars a "
        "and b whose product is the step size of one step of gradient descent on the context. Every number "
        "below is computed three ways where it can be: in closed form, by training on the exact population "
        "(expectations by counting, no samples), and by training on sequences. The paper shows one set of "
        "sequences; here there are several, and their range is drawn. The numbers of theorems, sections "
        "and figures are as we know them from the paper's code and from summaries; they, and settings "
        "marked so, are not confirmed against its text."
    ),
    plans={
        "smoke": _plan("smoke", seeds=2, m=400, all_blocks=100, weights=2),
        "small": _plan("small", seeds=5, m=4000, all_blocks=400, weights=4),
        "paper": _plan("paper", seeds=10, m=10_000, all_blocks=4000, weights=8),
    },
    measure=_measure,
    parts=(
        _part(
            "fig1",
            "Gaussian and sparse x_1: the step size, and recovery",
            fig1.compute,
            _drawing(2),
        ),
        _part("fig2", "Gaussian x_1 at other scales", fig2.compute, lambda plan: 2 + plan.seeds),
        _part("fig3", "sparse x_1 at other scales", fig3.compute, lambda plan: 2 + plan.seeds),
        _part(
            "fig4",
            "the trained weight matrices",
            fig4.compute,
            lambda plan: 8 + 0.03 * plan.all_blocks_sequences,
        ),
        _part("fig5", "Gaussian x_1 from drawn weights", fig5.compute, lambda plan: 8),
        _part("fig6", "sparse x_1 from drawn weights", fig6.compute, lambda plan: 8),
        _part("fig7", "full-one x_1: with and without the mask", fig7.compute, _drawing(1)),
        _part("condition", "the moment condition, both ways", condition.compute, lambda plan: 3),
        _part("landscape", "what stays unexplained, by law", landscape.compute, lambda plan: 6),
        _part("contrast", "several steps, and the exact solve", contrast.compute, lambda plan: 8),
    ),
)
