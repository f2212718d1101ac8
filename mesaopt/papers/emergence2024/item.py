"""The study `emergence2024`: the theory of Zheng et al., computed, trained and checked."""

from typing import cast

from mesaopt.papers.emergence2024.condition import condition
from mesaopt.papers.emergence2024.contrast import contrast
from mesaopt.papers.emergence2024.diagonal_start import fig4
from mesaopt.papers.emergence2024.drawn_weights import fig5, fig6
from mesaopt.papers.emergence2024.full_one import fig7
from mesaopt.papers.emergence2024.laboratory import EmergencePlan, Laboratory
from mesaopt.papers.emergence2024.landscape import landscape
from mesaopt.papers.emergence2024.one_step import fig1, fig2, fig3
from mesaopt.papers.laboratory import Plan, Runs, Scale, Source
from mesaopt.papers.plan import Headline, Study


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


def _laboratory(plan: Plan, runs: Runs) -> Laboratory:
    return Laboratory(cast(EmergencePlan, plan), runs)


STUDY: Study[Laboratory] = Study(
    name="emergence2024",
    paper="emergence2024",
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
    laboratory=_laboratory,
    source=Source(
        title="On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability",
        authors="C. Zheng, W. Huang, R. Wang and others, 2024",
        url="https://arxiv.org/abs/2405.16845",
    ),
    headlines=(
        Headline(
            claim="gaussian-product",
            text="is the step size that training on Gaussian sequences ends in; theory says 0.1919",
        ),
        Headline(
            claim="gaussian-unexplained",
            text="of the energy stays unexplained on Gaussian sequences, however long it trains: two "
            "fifths by theory for long sequences",
        ),
        Headline(
            claim="sparse-recovery",
            text="is the largest loss on sparse sequences: these are recovered",
        ),
    ),
    figures=(fig1, fig2, fig3, fig4, fig5, fig6, fig7, condition, landscape, contrast),
)
