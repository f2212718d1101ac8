"""A diagnosis in words and tables: what the terminal shows and the page is made of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mesaopt.analysis import Estimate
from mesaopt.analysis.diagnosis import Agreement, Diagnosis, Inside, Learning, Shift
from mesaopt.analysis.diagnosis.evidence import NEXT, PRECONDITIONED, steps_back

QUESTION = "Is there a mesa-optimizer in {}?"
ANSWERS = {"yes": "Yes.", "no": "No.", "unclear": "Unclear."}
NOTE = (
    "± is one standard error over sequences; every number has to clear its threshold by three. Shares are "
    "1 - |f - g|² / |f|² of predictions and 1 - |f - g|² / |f - y|² of errors, for the model's prediction "
    "f, the algorithm's g and the truth y: 1 is the same, 0 is no better than nothing, and less is worse. "
    "Two good predictors agree in what they predict, whatever they do; in their errors they do not."
)

Row = dict[str, str]

_POSITIONS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 224)
_SHOWN = 6


@dataclass(frozen=True)
class Section:
    """One piece of evidence: what it says, and the numbers."""

    title: str
    says: str
    rows: list[Row]


def sections(diagnosis: Diagnosis) -> list[Section]:
    """Lay a diagnosis out, in the order in which it convinces.

    Args:
        diagnosis: of any model.

    Returns:
        The sections; all rows of one have the same keys.
    """
    parts = [
        _conditions(diagnosis),
        _learning(diagnosis.learning, diagnosis.optimizer),
        _algorithms(diagnosis),
        _shifts(diagnosis),
        _inside(diagnosis.inside),
        _control(diagnosis),
    ]
    return [part for part in parts if part is not None]


def _conditions(diagnosis: Diagnosis) -> Section:
    rows = [
        {
            "": "met" if condition.met else "NOT MET",
            "condition": condition.name,
            "measured": number(condition.measured),
            "what is asked": condition.asks,
        }
        for condition in diagnosis.verdict.conditions
    ]
    return Section("Why", "All of these have to be met for a yes.", rows)


def _learning(learning: Learning, optimizer: str) -> Section:
    shown = [i for i, t in enumerate(learning.positions) if t in _POSITIONS]
    curves = {
        "the model": list(map(_digits, learning.model)),
        "  its standard error": [f"{error:.1g}" for error in learning.model_error],
        optimizer: list(map(_digits, learning.optimizer)),
        "predicting zero": list(map(_digits, learning.zero)),
        "the best map without context": list(map(_digits, learning.context_free)),
    }
    rows = [
        {
            "loss at position": name,
            **{str(learning.positions[i]): values[i] for i in shown},
        }
        for name, values in curves.items()
    ]
    says = (
        "Every sequence has a new system. Over the last quarter of the positions the model saves "
        f"{share(learning.gain)} of the loss of what knows no context, the better of zero and one map for "
        f"all; that is {share(learning.fall)} of it more than over the first quarter."
    )
    return Section("Does it learn in context?", says, rows)


def _algorithms(diagnosis: Diagnosis) -> Section:
    first = diagnosis.agreement(diagnosis.nearest)
    shown = [first, *(a for a in diagnosis.agreements if a is not first)]
    others = [a for a in shown if a.kind == "other"]
    shown = shown[:_SHOWN] + [a for a in others if a not in shown[:_SHOWN]]
    lead = diagnosis.lead
    if abs(lead.value) <= 3 * lead.error:
        told = f"not to be told apart from the next, {diagnosis.second}"
    elif lead.value < 0:
        told = f"simpler than {diagnosis.second}, which is hardly nearer"
    else:
        told = f"nearer than the next, {diagnosis.second}, by {share(lead)} of what it predicts"
    rival = next(a for a in diagnosis.agreements if a.kind == "other")
    says = (
        "All learn from the pairs of states seen so far; the parameters of each are those that bring it "
        "nearest to the model, on other sequences than these. A preconditioned step is one gradient step "
        f"from an input that a few iterations have brought closer to what least squares asks for. The "
        f"nearest: {first.candidate}, {told}. Of those that optimize nothing: {rival.candidate}."
    )
    return Section("Which algorithm is it?", says, list(map(_algorithm_row, shown)))


def _algorithm_row(agreement: Agreement) -> Row:
    fitted = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in agreement.parameters.items()
    )
    few = fitted if len(agreement.parameters) <= 2 else f"{agreement.num_parameters} numbers"
    return {
        "algorithm": agreement.candidate,
        "optimizer": "yes" if agreement.kind == "optimizer" else "",
        "of predictions": share(agreement.predictions),
        "of errors": share(agreement.errors),
        "its own loss": _digits(agreement.loss),
        "fitted": few
        or (f"{agreement.num_parameters} numbers" if agreement.num_parameters else ""),
    }


def _shifts(diagnosis: Diagnosis) -> Section:
    says = (
        f"Parameters kept as they are: {diagnosis.optimizer}. What a model was built for ends somewhere, "
        "at clipped streams and unknown positions: laws beyond that are shown and do not count."
    )
    if diagnosis.skipped:
        skipped = ", ".join(diagnosis.skipped)
        says += f" Not looked at, since the model cannot take such sequences: {skipped}."
    return Section("Does it carry over?", says, list(map(_shift_row, diagnosis.shifts)))


def _shift_row(shift: Shift) -> Row:
    return {
        "sequences": shift.law,
        "": ("holds" if shift.holds else "FAILS") if shift.counts else "shown only",
        "of predictions": share(shift.predictions),
        "of errors": share(shift.errors),
        "best that is no optimizer": f"{shift.rival}, {share(shift.rival_predictions)}",
        "loss of the model": _digits(shift.model_loss),
    }


def _inside(inside: Inside | None) -> Section:
    title = "What is inside?"
    if inside is None:
        says = "Not looked at: name the layers of this model to have them probed."
        return Section(title, says, [])
    says = " ".join(_findings(inside))
    rows = [
        {
            f"R² at position {position}": target,
            **{
                label(name): f"{inside.at(target, name, position).r2.value:.2f}"
                for name in inside.names
            },
        }
        for position in inside.positions[-1:]
        for target in inside.targets
    ]
    return Section(title, says, rows)


def _findings(inside: Inside) -> Iterator[str]:
    position, first = inside.positions[-1], inside.names[0]
    behind = inside.names[min(1, len(inside.names) - 1)]
    yield "What a linear probe reads off the stream, on sequences it was not fitted on."
    previous = steps_back(1)
    if 1 in inside.held:
        yield "Tokens show the previous state already: there is nothing to bind."
    elif previous not in inside.targets:
        yield "Sequences are too short to look for the previous state."
    else:
        before, after = (inside.at(previous, name, position) for name in (first, behind))
        is_bound = after.rise.low > 0 and after.r2.low > 0.5
        bound = "is bound to" if is_bound else "is not bound to"
        yield (
            f"The previous state {bound} the newest token in {label(behind)}: {number(before.r2)} before, "
            f"{number(after.r2)} after."
        )
    for target in (NEXT, PRECONDITIONED):
        before = number(inside.at(target, first, position).r2)
        found = [inside.at(target, name, position) for name in inside.names]
        best = max(found, key=lambda reading: reading.r2.value)
        yield (
            f"The {target} "
            + (
                f"becomes readable, from {before} to {number(best.r2)} in {label(best.layer)}."
                if best.rise.low > 0
                else f"does not become more readable than {before}."
            )
        )
    yield "Probes show what is there, not what is used: the verdict does not rest on them."


def _control(diagnosis: Diagnosis) -> Section | None:
    title = "The control: one system for all sequences"
    memory = diagnosis.memory
    if memory is None:
        fixed = diagnosis.agreement("one fixed map")
        says = (
            "Trained on new systems in every sequence, it can hold none in its weights: one fixed map "
            f"explains {share(fixed.predictions)} of its predictions."
        )
        return Section(title, says, [])
    says = (
        "Trained on one system, a model can hold it in its weights. On that one, and on new ones:"
    )
    rows = [
        {"loss": "on the system it was trained on", "": number(memory.taught)},
        {"loss": "on new systems", "": number(memory.fresh)},
        {"loss": "of predicting zero", "": _digits(memory.zero)},
    ]
    return Section(title, says, rows)


def label(layer: str) -> str:
    """Name a part of a model for a reader.

    Example:
        >>> label("blocks.0.input"), label("blocks.2"), label("encoder.3")
        ('input', 'layer 3', 'encoder.3')
    """
    if layer == "blocks.0.input":
        return "input"
    start, _, index = layer.partition(".")
    return f"layer {int(index) + 1}" if start == "blocks" and index.isdigit() else layer


def number(estimate: Estimate) -> str:
    """Write an estimate with its standard error.

    Example:
        >>> number(Estimate(0.9512, 0.0031))
        '0.951 ± 0.004'
    """
    if not math.isfinite(estimate.value) or estimate.value < -10:
        return "far below 0"
    places = 3 if estimate.error < 0.1 else 1
    return f"{estimate.value:.{places}f} ± {_up(estimate.error, places)}"


def share(estimate: Estimate) -> str:
    """Write a share in per cent; how far below zero one is does not matter.

    Example:
        >>> share(Estimate(0.9512, 0.0031)), share(Estimate(-7.0, 1.0))
        ('95.1 ± 0.4 %', 'none')
    """
    if not estimate.value >= -0.5:
        return "none"
    return f"{100 * estimate.value:.1f} ± {_up(100 * estimate.error, 1)} %"


def _up(error: float, places: int) -> str:
    """Write an error, rounded up: none is zero."""
    return f"{math.ceil(error * 10**places) / 10**places:.{places}f}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else "huge"
