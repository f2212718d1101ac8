"""Tasks of reasoning in a context: MAD, RegBench and parity, by mixer."""

from collections.abc import Iterable

import torch

from mesaopt.analysis.estimate import Estimate
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, grid
from mesaopt.papers.language.drawing import contest_panel, contest_settings
from mesaopt.papers.language.laboratory import Laboratory, mixers
from mesaopt.papers.language.settings import contest_seconds
from mesaopt.recipes.language import MIXERS

_MAD = "mad-"
_FUZZY = "mad-fuzzy"
_CHOSEN = (
    "Two layers with networks, whose mixers have the same width, heads, short convolutions and head norms; "
    "parameters are equal up to gates and ridges. Learning rates are chosen on validation sequences. "
)


def mad_contests(lab: Laboratory) -> list[str]:
    """List the tasks of MAD of a scale."""
    return [name for name in lab.settings.contests if name.startswith(_MAD)]


def _mean(lab: Laboratory, mixer: str) -> Estimate:
    """Estimate the mean of a mixer's scores over the tasks of MAD."""
    scores = [mixers(lab, name)[mixer].score() for name in mad_contests(lab)]
    value = torch.tensor([score.value for score in scores]).mean()
    errors = [(score.error / len(scores)) ** 2 for score in scores]
    return Estimate.from_variances(value, *errors)


def _mad_claims(lab: Laboratory) -> Iterable[Claim]:
    yield Claim(
        name="mad-mesa-beats-gated-delta",
        figure="MAD",
        statement="Mean of the tasks of MAD: the mesa layer does better than the gated delta rule "
        "(difference of shares, mesanet - gated-delta)",
        measured=_mean(lab, "mesanet") - _mean(lab, "gated-delta"),
        low=0.04,
        basis="76.1 and 71.0 % published for MesaNet's models, with compression; four in a hundred count",
    )
    if _FUZZY in lab.settings.contests:
        fuzzy = mixers(lab, _FUZZY)
        yield Claim(
            name="mad-fuzzy-mesa-beats-gated-delta",
            figure="MAD",
            statement="Fuzzy recall: so it does by far (difference of shares, mesanet - gated-delta)",
            measured=fuzzy["mesanet"].score() - fuzzy["gated-delta"].score(),
            low=0.05,
            basis="58.5 and 32.7 % published; five in a hundred count",
        )


mad = Figure(
    name="mad",
    title="Five tasks of MAD, by mixer",
    summary="eight mixers on five tasks of the MAD benchmark",
    caption=(
        "Share of right answers, with 95 % intervals over seeds and test sequences; ticks are seeds. "
        "Compression, the sixth task, needs a decoder that a language model does not have.\n\n"
        + _CHOSEN
        + "Published models are wider and trained for 200 epochs, and their scores are means over more "
        "settings of a task; the lengths of scale small are half of the published ones."
    ),
    panels=(
        contest_panel("mad-recall", "in-context recall"),
        contest_panel(_FUZZY, "fuzzy recall"),
        contest_panel("mad-noisy", "noisy recall"),
        contest_panel("mad-copying", "selective copying"),
        contest_panel("mad-memory", "memorization"),
    ),
    layout=grid(columns=2, height=8.0),
    settings=lambda lab: contest_settings(lab, "mad-recall"),
    claims=_mad_claims,
    seconds=contest_seconds(_MAD, entrants=len(MIXERS)),
)


def _regbench_claims(lab: Laboratory) -> Iterable[Claim]:
    entries = mixers(lab, "regbench")
    yield Claim(
        name="regbench-mesa-as-softmax",
        figure="RegBench",
        statement="The mesa layer learns automata in their context as well as softmax attention "
        "(difference of shares of possible letters, mesanet - softmax)",
        measured=entries["mesanet"].score() - entries["softmax"].score(),
        low=-0.02,
        basis="on par in the figure of the MesaNet paper; two in a hundred count",
    )


regbench = Figure(
    name="regbench",
    title="RegBench, by mixer",
    summary="eight mixers on automata that are learned in their context",
    caption=(
        "How often the most likely letter is one that the automaton allows, with 95 % intervals over seeds "
        "and test sequences; ticks are seeds. Every sequence has an automaton of its own.\n\n"
        + _CHOSEN
    ),
    panels=(contest_panel("regbench", ""),),
    layout=grid(height=3.4),
    settings=lambda lab: contest_settings(lab, "regbench"),
    claims=_regbench_claims,
    seconds=contest_seconds("regbench", entrants=len(MIXERS)),
)


def _parity_claims(lab: Laboratory) -> Iterable[Claim]:
    yield Claim(
        name="parity-mesa-unsolved",
        figure="parity",
        statement="Parity of longer strings than trained on stays unsolved by the mesa layer, whose forget "
        "gates are between 0 and 1 (share of right answers)",
        measured=mixers(lab, "parity")["mesanet"].score(),
        high=0.6,
        basis="one half is chance; solved in the MesaNet paper with gates between -1 and 1 alone",
    )


parity = Figure(
    name="parity",
    title="Parity of strings longer than trained on, by mixer",
    summary="eight mixers on parity, at lengths beyond those of training",
    caption=(
        "Share of right answers for longer strings than in training; one half is chance. 95 % intervals "
        "over seeds and test sequences; ticks are seeds. The gates of all mixers are between 0 and 1, "
        "which cannot keep a sign that flips.\n\n" + _CHOSEN
    ),
    panels=(contest_panel("parity", ""),),
    layout=grid(height=3.4),
    settings=lambda lab: contest_settings(lab, "parity"),
    claims=_parity_claims,
    seconds=contest_seconds("parity", entrants=len(MIXERS)),
)
