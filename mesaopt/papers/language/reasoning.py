"""Tasks of reasoning in a context: MAD, RegBench and parity, by mixer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from mesaopt.analysis.estimate import Estimate
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.language.drawing import (
    comparison_panel,
    comparison_settings,
    draw_methods,
    rows_of,
)
from mesaopt.papers.language.laboratory import (
    Laboratory,
    Outcome,
    Result,
    by_difficulty,
    mixer_settings,
    mixers,
    right_answers,
)
from mesaopt.papers.language.settings import comparison_seconds
from mesaopt.papers.rows import PanelData
from mesaopt.recipes.language import MIXERS
from mesaopt.tasks import Batch, RegBenchBatch
from mesaopt.theory import in_context_baum_welch, in_context_n_gram

_MAD = "mad-"
_FUZZY, _NOISY = "mad-fuzzy", "mad-noisy"
_LETTERS, _DISTANCE = 0, 1
_PARITY_STEPS = 10_000
"""Steps of the published training, after which parity is solved."""
_CHOSEN = (
    "Two layers with networks, whose mixers have the same width, heads, short convolutions and head norms; "
    "parameters are equal up to gates and ridges. Learning rates are chosen on validation sequences. "
)


def mad_comparisons(lab: Laboratory) -> list[str]:
    """List the tasks of MAD of a scale."""
    return [name for name in lab.settings.comparisons if name.startswith(_MAD)]


def _mean_difference(lab: Laboratory, first: str, second: str) -> Estimate:
    """Estimate how much more one mixer scores than another, in the mean over MAD without noisy recall."""
    tasks = [mixers(lab, name) for name in mad_comparisons(lab) if name != _NOISY]
    differences = [task[first].less(task[second]) for task in tasks]
    value = torch.tensor([one.value for one in differences]).mean()
    return Estimate.from_variances(
        value, *((one.error / len(differences)) ** 2 for one in differences)
    )


def _mad_claims(lab: Laboratory) -> Iterable[Claim]:
    yield Claim(
        name="mad-mesa-beats-gated-delta",
        figure="MAD",
        statement="Mean of the tasks of MAD, noisy recall left out: the mesa layer does better than the "
        "gated delta rule (difference of shares, mesanet - gated-delta)",
        measured=_mean_difference(lab, "mesanet", "gated-delta"),
        low=0.04,
        basis="76.1 and 71.0 % published for MesaNet's models, means of five tasks without noisy recall; "
        "four in a hundred count",
    )
    if _FUZZY in lab.settings.comparisons:
        fuzzy = mixers(lab, _FUZZY)
        yield Claim(
            name="mad-fuzzy-mesa-beats-gated-delta",
            figure="MAD",
            statement="Fuzzy recall: so it does by far (difference of shares, mesanet - gated-delta)",
            measured=fuzzy["mesanet"].less(fuzzy["gated-delta"]),
            low=0.05,
            basis="58.5 and 32.7 % published; five in a hundred count",
        )


mad = Figure(
    name="mad",
    title="The six tasks of MAD, by mixer",
    summary="eight mixers on the six tasks of the MAD benchmark",
    caption=(
        "Share of right answers, with 95 % intervals over seeds and test sequences; ticks are seeds. "
        "Compression has an auto-encoder: the same layers, whose last position gives all tokens back.\n\n"
        + _CHOSEN
        + "Published models are wider and trained for 200 epochs, and their scores are means over more "
        "settings of a task; the lengths of scale small are half of the published ones, but for "
        "memorization."
    ),
    trains=True,
    panels=(
        comparison_panel("mad-recall", "in-context recall"),
        comparison_panel(_FUZZY, "fuzzy recall"),
        comparison_panel(_NOISY, "noisy recall"),
        comparison_panel("mad-copying", "selective copying"),
        comparison_panel("mad-memory", "memorization"),
        comparison_panel("mad-compression", "compression"),
    ),
    layout=grid(columns=2, height=8.0),
    settings=lambda lab: comparison_settings(lab, "mad-recall"),
    claims=_mad_claims,
    seconds=comparison_seconds(_MAD),
)


@measurement
def automaton(lab: Laboratory, mixer: str) -> Result:
    """Give what one mixer comes to on automata: share of letters that may come, and distance."""
    comparison = lab.settings.comparisons["regbench"]
    prepare = mixer_settings(comparison, f"regbench-{mixer}", MIXERS[mixer])
    return lab.compare(comparison, {mixer: prepare}, _letters_and_distance)[mixer]


def _letters_and_distance(batch: Batch, prediction: Tensor) -> Float[Tensor, "sequence score"]:
    """Give the share of letters that may come, and the mean total variation distance, of each sequence."""
    assert isinstance(batch, RegBenchBatch)
    count = batch.counted.sum(1).clamp(min=1)
    distance = batch.total_variation(prediction).sum(1) / count
    return torch.stack([right_answers(batch, prediction), distance], dim=1)


@measurement
def learners(lab: Laboratory) -> dict[str, Result]:
    """Score what learns an automaton from a sequence without any training."""
    comparison = lab.settings.comparisons["regbench"]
    vocabulary = comparison.task.dim
    predictions: dict[str, Callable[[Batch], Tensor]] = {
        "3-gram": partial(in_context_n_gram, vocabulary=vocabulary, order=3),
        "Baum-Welch": partial(in_context_baum_welch, vocabulary=vocabulary),
    }
    results = {}
    for name, predict in predictions.items():
        scores = by_difficulty(predict, comparison, "test", _letters_and_distance)
        outcome = Outcome(validation=math.nan, scores=scores, parameters=0, seconds=0.0)
        results[name] = Result(rate=0.0, validation={}, outcomes=[outcome])
    return results


def automata(lab: Laboratory, score: int) -> dict[str, Result]:
    """Compare all mixers on automata, by one of the two scores."""
    results = {}
    for number, name in enumerate(MIXERS):
        with lab.part(number, len(MIXERS)):
            results[name] = _with_score(automaton(lab, name), score)
    return results


def _with_score(result: Result, score: int) -> Result:
    """Keep one score of each sequence; a training that diverged has no right letter, and distance 1."""
    outcomes = [
        one if one.scores is None else replace(one, scores=one.scores[..., score])
        for one in result.outcomes
    ]
    return replace(result, outcomes=outcomes, missing=float(score))


def _measure_automata(lab: Laboratory, *, score: int, what: str) -> PanelData:
    baselines = {name: _with_score(one, score) for name, one in learners(lab).items()}
    return PanelData(rows=rows_of(automata(lab, score) | baselines, what=what))


def _draw_automata(axes: Axes, data: PanelData, *, what: str, xlabel: str) -> None:
    draw_methods(axes, data.rows, xlabel=xlabel, what=what)


def _automata_panel(name: str, score: int, what: str, xlabel: str) -> Panel[Laboratory]:
    return Panel(
        name=name,
        measure=partial(_measure_automata, score=score, what=what),
        draw=partial(_draw_automata, what=what, xlabel=xlabel),
    )


def _regbench_claims(lab: Laboratory) -> Iterable[Claim]:
    results = automata(lab, _LETTERS)
    yield Claim(
        name="regbench-mesa-as-softmax",
        figure="RegBench",
        statement="The mesa layer learns automata in their context as well as softmax attention "
        "(difference of shares of possible letters, mesanet - softmax)",
        measured=results["mesanet"].less(results["softmax"]),
        low=-0.02,
        basis="on par in the figure of the MesaNet paper; two in a hundred count",
    )


regbench = Figure(
    name="regbench",
    title="RegBench, by mixer",
    summary="eight mixers on automata that are learned in their context",
    caption=(
        "Left: how often the most likely letter is one that the automaton allows. Right: total variation "
        "distance TV(p, q) = 1/2 sum_i |p_i - q_i| of the predicted distribution from that of the "
        "automaton, 0 at best and 1 at worst; the authors' code logs the sum, which is twice as much. "
        "95 % intervals over seeds and test sequences; ticks are seeds. Every sequence has an automaton of "
        "its own. Below, in grey, learners of one sequence without training: the letters that followed the "
        "last two before, and an automaton of 12 states that is fitted to the strings so far.\n\n"
        + _CHOSEN
    ),
    trains=True,
    panels=(
        _automata_panel("regbench", _LETTERS, "accuracy", "share of letters that may come"),
        _automata_panel("distance", _DISTANCE, "total_variation", "total variation distance"),
    ),
    layout=grid(columns=2, height=4.0),
    settings=lambda lab: comparison_settings(lab, "regbench"),
    claims=_regbench_claims,
    seconds=comparison_seconds("regbench"),
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
    signed = mixers(lab, "parity-signed")
    for name, words in (("gated-delta", "gated delta rule"), ("mesanet", "mesa layer")):
        yield Claim(
            name=f"parity-signs-help-{name}",
            figure="parity",
            statement=f"With forget gates between -1 and 1 the {words} answers more for strings longer "
            "than trained on than with gates between 0 and 1 (difference of shares)",
            measured=signed[name].less(mixers(lab, "parity")[name]),
            low=0.25,
            basis="a sign that flips can be kept; half the way from chance to all right counts",
        )
    if lab.settings.comparisons["parity-signed"].train.steps < _PARITY_STEPS:
        return
    yield Claim(
        name="parity-mesa-signed",
        figure="parity",
        statement="With forget gates between -1 and 1 the mesa layer solves it (share of right answers)",
        measured=signed["mesanet"].score(),
        low=0.95,
        basis="solved in the MesaNet paper, after 10,000 steps; 95 % counts",
    )


parity = Figure(
    name="parity",
    title="Parity of strings longer than trained on, by mixer",
    summary="eight mixers on parity, at lengths beyond those of training",
    caption=(
        "Share of right answers for longer strings than in training; one half is chance. 95 % intervals "
        "over seeds and test sequences; ticks are seeds. Left: gates of all mixers between 0 and 1, which "
        "cannot keep a sign that flips. Right: between -1 and 1, for mixers that forget.\n\n"
        + _CHOSEN
    ),
    trains=True,
    panels=(
        comparison_panel("parity", "gates between 0 and 1"),
        comparison_panel("parity-signed", "gates between -1 and 1"),
    ),
    layout=grid(columns=2, height=3.4),
    settings=lambda lab: comparison_settings(lab, "parity"),
    claims=_parity_claims,
    seconds=comparison_seconds("parity", "parity-signed"),
)
