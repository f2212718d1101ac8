"""A diagnosis in sections of words and tables, for the terminal and for the HTML page."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mesaopt.analysis import Estimate
from mesaopt.analysis.diagnosis import (
    Agreement,
    Diagnosis,
    ProbeResults,
    ShiftResult,
)
from mesaopt.analysis.diagnosis.evidence import NEXT, PRECONDITIONED, PREVIOUS
from mesaopt.analysis.prompts import PromptKind

QUESTION = "Is there a mesa-optimizer in {}?"
ANSWERS = {"yes": "Yes.", "no": "No.", "unclear": "Unclear."}
NOTE = (
    "± is one standard error over sequences; every number has to exceed its threshold by three. Shares are "
    "1 - |f - g|² / |f|² of predictions and 1 - |f - g|² / |f - y|² of errors, for the model's prediction "
    "f, the algorithm's g and the truth y: 1 means equal, 0 no better than predicting zero, less is worse. "
    "Two good predictors agree in their predictions, whatever they do inside; in their errors they do not."
)

_PAIRS = {"states": "of states", "pairs": "of inputs and answers"}

TableRow = dict[str, str]
"""Cells of a table by the title of their column."""

_POSITIONS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 224)
_SHOWN = 6


@dataclass(frozen=True)
class Section:
    """One piece of evidence: a summary and a table."""

    title: str
    summary: str
    rows: list[TableRow]


def sections(diagnosis: Diagnosis) -> list[Section]:
    """Write a diagnosis as sections, the most important first.

    Args:
        diagnosis: of any model.

    Returns:
        The sections; all rows of one have the same columns.
    """
    parts = [
        _conditions(diagnosis),
        _learning(diagnosis),
        _algorithms(diagnosis),
        _shifts(diagnosis),
        _probes(diagnosis),
        _rates(diagnosis),
        _control(diagnosis),
        _left_out(diagnosis),
    ]
    return [part for part in parts if part is not None]


def _conditions(diagnosis: Diagnosis) -> Section:
    rows = [
        {
            "verdict": "met" if condition.met else "NOT MET",
            "condition": condition.name,
            "measured": number(condition.measured),
            "required": condition.asks,
        }
        for condition in diagnosis.verdict.conditions
    ]
    return Section("Why", "A yes requires all of these.", rows)


def _learning(diagnosis: Diagnosis) -> Section:
    learning, optimizer = diagnosis.learning, diagnosis.optimizer
    shown = [i for i, t in enumerate(learning.positions) if t in _POSITIONS]
    curves = {
        "the model": list(map(_digits, learning.model)),
        "  its standard error": [f"{error:.1g}" for error in learning.model_error],
        optimizer: list(map(_digits, learning.optimizer)),
        "predicting zero": list(map(_digits, learning.zero)),
        "the best linear map without context": list(map(_digits, learning.context_free)),
    }
    rows = [
        {
            "loss at position": name,
            **{str(learning.positions[i]): values[i] for i in shown},
        }
        for name, values in curves.items()
    ]
    new = "" if "memory" in diagnosis.left_out else "Every sequence has a new system. "
    summary = (
        f"{new}Over the last quarter of the positions the context saves the "
        f"model {share(learning.gain)} of the loss without context (the lower of predicting zero and of "
        f"one linear map for all systems); that is {share(learning.gain_increase)} of it more than over "
        "the first quarter."
    )
    return Section("Does it learn in context?", summary, rows)


def _algorithms(diagnosis: Diagnosis) -> Section:
    first = diagnosis.agreement(diagnosis.nearest)
    shown = [first, *(a for a in diagnosis.agreements if a is not first)]
    others = [a for a in shown if a.kind == "other"]
    shown = shown[:_SHOWN] + [a for a in others if a not in shown[:_SHOWN]]
    lead = diagnosis.lead
    if abs(lead.value) <= 3 * lead.error:
        compared = f"not nearer than the second, {diagnosis.second}, by 3 standard errors"
    elif lead.value < 0:
        compared = f"simpler than {diagnosis.second}, which is hardly nearer"
    else:
        compared = f"nearer than the second, {diagnosis.second}, by {share(lead)} of |f|²"
    rival = next(a for a in diagnosis.agreements if a.kind == "other")
    summary = (
        f"All learn from the pairs {_PAIRS[diagnosis.prompts]} so far; the parameters of each are those "
        "that bring it nearest to the model, fitted on validation sequences. A preconditioned step is one "
        "gradient step on inputs multiplied by an approximate inverse of their Gram matrix. The nearest "
        f"algorithm: {first.candidate}, {compared}. The nearest that optimizes nothing: {rival.candidate}."
    )
    return Section("Which algorithm is it?", summary, list(map(_algorithm_row, shown)))


def _algorithm_row(agreement: Agreement) -> TableRow:
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
    summary = (
        f"The nearest optimizer, {diagnosis.optimizer}, with the same parameters. Larger changes meet "
        "limits of the model, such as clipped streams and unknown positions: they are shown and do not "
        "count."
    )
    if not diagnosis.shifts:
        summary = "None was measured."
    if diagnosis.skipped:
        skipped = ", ".join(diagnosis.skipped)
        summary += f" Not measured, since the model cannot process such sequences: {skipped}."
    return Section(
        "Does it hold under distribution shifts?", summary, list(map(_shift_row, diagnosis.shifts))
    )


def _shift_row(shift: ShiftResult) -> TableRow:
    return {
        "sequences": shift.name,
        "verdict": ("holds" if shift.holds else "FAILS") if shift.counts else "shown only",
        "of predictions": share(shift.predictions),
        "of errors": share(shift.errors),
        "best that is no optimizer": f"{shift.rival}, {share(shift.rival_predictions)}",
        "loss of the model": _digits(shift.model_loss),
    }


def _probes(diagnosis: Diagnosis) -> Section:
    title, probes = "Which variables do the layers contain?", diagnosis.probes
    if probes is None:
        return Section(title, "Not measured: name the layers of this model to probe them.", [])
    summary = " ".join(_probe_sentences(probes, diagnosis.prompts))
    rows = [
        {
            f"R² at position {position}": target,
            **{
                label(name): f"{probes.at(target, name, position).r2.value:.2f}"
                for name in probes.names
            },
        }
        for position in probes.positions[-1:]
        for target in probes.targets
    ]
    return Section(title, summary, rows)


def _probe_sentences(probes: ProbeResults, prompts: PromptKind) -> Iterator[str]:
    position, first = probes.positions[-1], probes.names[0]
    second = probes.names[min(1, len(probes.names) - 1)]
    yield "R² of linear probes, on sequences they were not fitted on."
    previous = PREVIOUS[prompts]
    if 1 in probes.input_offsets:
        yield "Tokens contain the previous state already: there is nothing to bind."
    elif previous not in probes.targets:
        yield f"Sequences are too short to look for the {previous}."
    else:
        before, after = (probes.at(previous, name, position) for name in (first, second))
        is_bound = after.increase.low > 0 and after.r2.low > 0.5
        bound = "is bound to" if is_bound else "is not bound to"
        yield (
            f"The {previous} {bound} the newest token in {label(second)}: {number(before.r2)} before, "
            f"{number(after.r2)} after."
        )
    for target in (NEXT[prompts], PRECONDITIONED):
        before = number(probes.at(target, first, position).r2)
        results = [probes.at(target, name, position) for name in probes.names]
        best = max(results, key=lambda result: result.r2.value)
        yield (
            f"R² of the {target} "
            + (
                f"rises from {before} to {number(best.r2)} in {label(best.layer)}."
                if best.increase.low > 0
                else f"does not rise above {before}."
            )
        )
    yield (
        "A probe shows that a layer contains a variable, not that the model uses it: the verdict does not "
        "depend on probes."
    )


def _rates(diagnosis: Diagnosis) -> Section | None:
    rates, prompts = diagnosis.rates, diagnosis.prompts
    if rates is None:
        return None
    sentences = {
        "linear": "Gradient steps grow linearly with the depth.",
        "exponential": "Gradient steps grow exponentially with the depth, as in Newton's method.",
        "unclear": "That gradient steps grow linearly or exponentially with the depth is not clear.",
    }
    summary = (
        "Steps whose predictions are nearest to those of a linear readout of each layer, up to a factor, "
        "with the largest step size that is safe everywhere. " + sentences[rates.growth]
    )
    rows = [
        {
            "layer": label(layer.layer),
            "gradient steps": str(layer.gradient_steps) if layer.matched else "no match",
            "explain": share(layer.gradient),
            "Newton steps": str(layer.newton_steps) if layer.matched else "no match",
            "explain of it": share(layer.newton),
            f"of the {NEXT[prompts]}": share(layer.readout),
        }
        for layer in rates.layers
    ]
    return Section("How many steps is each layer worth?", summary, rows)


def _control(diagnosis: Diagnosis) -> Section | None:
    title = "Control: does it remember a single system?"
    memory = diagnosis.memory
    if "memory" in diagnosis.left_out:
        return None
    if memory is None:
        fixed = diagnosis.agreement("one fixed map")
        summary = (
            "It was trained on a new system in every sequence, so its weights cannot contain the system: "
            f"one fixed map explains {share(fixed.predictions)} of its predictions."
        )
        return Section(title, summary, [])
    summary = "It was trained on a single system, which its weights can contain. Its losses:"
    rows = [
        {"loss": "on the system it was trained on", "value": number(memory.training_system)},
        {"loss": "on new systems", "value": number(memory.new_systems)},
        {"loss": "of predicting zero", "value": _digits(memory.zero)},
    ]
    return Section(title, summary, rows)


def _left_out(diagnosis: Diagnosis) -> Section | None:
    """List what was not judged and is not said in another section."""
    said = {*diagnosis.skipped, "probes and rates"}
    rows = [
        {"not judged": what, "reason": reason}
        for what, reason in diagnosis.left_out.items()
        if what not in said
    ]
    summary = "What the library cannot judge for these prompts."
    return Section("What was left out?", summary, rows) if rows else None


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
    """Write a share in per cent, or "none" where it is far below zero.

    Example:
        >>> share(Estimate(0.9512, 0.0031)), share(Estimate(-7.0, 1.0))
        ('95.1 ± 0.4 %', 'none')
    """
    if not estimate.value >= -0.5:
        return "none"
    return f"{100 * estimate.value:.1f} ± {_up(100 * estimate.error, 1)} %"


def _up(error: float, places: int) -> str:
    """Write an error, rounded up, so that none is shown as zero."""
    return f"{math.ceil(error * 10**places) / 10**places:.{places}f}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else "huge"
