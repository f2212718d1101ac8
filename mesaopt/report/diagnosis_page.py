"""A diagnosis as one HTML file with a figure."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt import files
from mesaopt.analysis import Diagnosis
from mesaopt.analysis.diagnosis.evidence import NEXT, PRECONDITIONED, PREVIOUS
from mesaopt.looks import LOOKS, Look, series
from mesaopt.papers.plots import plain_log, style
from mesaopt.report.diagnosis import ANSWERS, NOTE, QUESTION, label, sections
from mesaopt.report.html import page_templates
from mesaopt.report.page import inline_figure

_CAPTION = (
    "Left: loss by position on new sequences, with 95 % bands. Middle: share of "
    "the model that the nearest optimizer explains, with the same parameters, on the training distribution "
    "and under distribution shifts; grey names do not count. Right, where layers are known: R² of linear "
    "probes at the last position, by depth."
)
_CHIPS = {"yes": "good", "no": "bad", "unclear": ""}


def write_diagnosis(diagnosis: Diagnosis, path: Path, *, name: str) -> None:
    """Write a diagnosis as one HTML file that needs nothing but itself.

    Args:
        diagnosis: to be shown.
        path: of the file; folders above it are made.
        name: of the model.

    Raises:
        RunError: the disk is full.
    """
    page = (
        page_templates()
        .get_template("diagnosis.html.j2")
        .render(
            question=QUESTION.format(name),
            answer=ANSWERS[diagnosis.verdict.answer],
            chip=_CHIPS[diagnosis.verdict.answer],
            sentence=diagnosis.verdict.sentence,
            svg=inline_figure(draw(diagnosis), "diagnosis", "the evidence"),
            caption=_CAPTION,
            sections=sections(diagnosis),
            note=NOTE,
            count=f"{diagnosis.num_sequences:,}",
            version=version("mesaopt"),
        )
    )
    files.write(files.as_path(path), page)


def draw(diagnosis: Diagnosis) -> Figure:
    """Draw losses by position, agreement by distribution and probes by depth.

    Args:
        diagnosis: to be drawn.

    Returns:
        The figure, 10 inches wide.
    """
    with style():
        figure = Figure(figsize=(10, 4.1))
        losses, shifts, depth = figure.subplots(1, 3, width_ratios=(1, 1.15, 1))
        _draw_losses(losses, diagnosis)
        _draw_shifts(shifts, diagnosis)
        _draw_depth(depth, diagnosis)
    return figure


def _draw_losses(axes: Axes, diagnosis: Diagnosis) -> None:
    learning = diagnosis.learning
    positions, model = learning.positions, np.array(learning.model)
    half, trained = 1.96 * np.array(learning.model_error), LOOKS["trained model"]
    axes.plot(positions, learning.zero, **LOOKS["no knowledge"].line(label="predicting zero"))
    axes.plot(positions, learning.context_free, **series(3).line(label="best map without context"))
    axes.plot(
        positions,
        learning.optimizer,
        **_look(diagnosis.optimizer).line(label=_short(diagnosis.optimizer)),
    )
    axes.fill_between(
        positions,
        np.maximum(model - half, model / 10),
        model + half,
        color=trained.color,
        alpha=0.25,
    )
    axes.plot(positions, model, **trained.line(label="the model"))
    plain_log(axes)
    axes.set(xlabel="position in the sequence", ylabel="loss", title="On new sequences")
    _legend_below(axes)


def _draw_shifts(axes: Axes, diagnosis: Diagnosis) -> None:
    diagnosis.plot(axes)
    axes.set(title="Under distribution shifts")
    _legend_below(axes)


def _draw_depth(axes: Axes, diagnosis: Diagnosis) -> None:
    probes = diagnosis.probes
    axes.set(title="Probes of the layers", ylabel="R² of a linear probe", ylim=(-0.05, 1.05))
    if probes is None:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set(xticks=[])
        return
    places = np.arange(len(probes.names))
    for color, target in enumerate(
        (PREVIOUS[diagnosis.prompts], NEXT[diagnosis.prompts], PRECONDITIONED)
    ):
        if target not in probes.targets:
            continue
        scores = [probes.at(target, name, probes.positions[-1]).r2 for name in probes.names]
        half = [1.96 * score.error for score in scores]
        values = [max(score.value, 0.0) for score in scores]
        axes.errorbar(places, values, half, **series(color).line(label=target))
    short = [label(name).removeprefix("layer ") for name in probes.names]
    axes.set_xticks(places, short, rotation=0 if max(map(len, short)) < 6 else 60)
    axes.set(xlabel="after layer")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _look(optimizer: str) -> Look:
    return LOOKS["least squares" if "least squares" in optimizer else "gradient descent"]


def _short(name: str) -> str:
    return name.removesuffix(" iterations").replace("preconditioned step, ", "preconditioned, ")
