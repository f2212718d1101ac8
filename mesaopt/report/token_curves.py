"""Losses by position and accuracies of predictors on tokens, drawn side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.analysis import TokenScore
from mesaopt.looks import INK
from mesaopt.papers.plots import band, style
from mesaopt.report.curves import looks_of
from mesaopt.report.page import plain

CAPTION = (
    "Loss by position where all positions are scored (means over stretches that grow with it), and "
    "accuracy, on sequences that no run was trained on, with 95 % bands and intervals. Dotted: the best "
    "guess without the sequence."
)


@dataclass(frozen=True)
class Panel:
    """Scores on one task."""

    title: str
    scores: Mapping[str, Sequence[TokenScore]]
    """By the name of the predictor, one for each setting of the task."""
    guess: float | None = None
    """Accuracy of a guess without the sequence; None: not drawn."""


def draw(panels: Sequence[Panel]) -> Figure:
    """Draw losses by position where there are some, and accuracies.

    Args:
        panels: one or more.

    Returns:
        The figure, with a row for each panel.
    """
    curved = any(_curves(panel) for panel in panels)
    heights = [max(3.4, 0.8 + 0.3 * sum(map(len, panel.scores.values()))) for panel in panels]
    with style():
        figure = Figure(figsize=(10.0 if curved else 6.0, sum(heights)))
        rows = figure.subplots(
            len(panels),
            1 + curved,
            squeeze=False,
            height_ratios=heights,
            width_ratios=(3, 2)[-1 - curved :],
        )
        for row, panel in zip(rows, panels, strict=True):
            _draw_accuracies(row[-1], panel)
            has_curves = bool(_curves(panel))
            row[0 if has_curves else -1].set_title(plain(panel.title))
            if has_curves:
                draw_losses(row[0], panel)
            elif curved:
                row[0].set_axis_off()
    return figure


def draw_losses(axes: Axes, panel: Panel) -> None:
    """Draw the losses of a panel by position, later ones as means over stretches that grow with it.

    A band is as wide as those of single positions, whose errors are not independent.

    Args:
        axes: to draw on.
        panel: what to draw.
    """
    looks = looks_of(panel.scores)
    for name, curve in _curves(panel).items():
        parts = _stretches(len(curve))
        values = [fmean(curve[place - 1].value for place in part) for part in parts]
        half = [1.96 * fmean(curve[place - 1].error for place in part) for part in parts]
        places = [(part[0] * part[-1]) ** 0.5 for part in parts]
        band(axes, places, values, half, **looks[name].line(label=plain(name)))
    axes.set(xscale="log", xlabel="position in the text", ylabel="loss in nats")
    axes.legend()


def _stretches(length: int) -> list[range]:
    """Divide positions into stretches that are a seventh of their beginning long, the first of one each."""
    stretches, start = [], 1
    while start <= length:
        stop = min(start + 1 + start // 7, length + 1)
        stretches.append(range(start, stop))
        start = stop
    return stretches


def _curves(panel: Panel) -> dict[str, Sequence]:
    """Give the losses by position of those that have them."""
    scores = panel.scores.items()
    return {name: parts[0].curve for name, parts in scores if parts and parts[0].curve is not None}


def _draw_accuracies(axes: Axes, panel: Panel) -> None:
    """Draw a point for each predictor and setting, one below another."""
    looks, labels = looks_of(panel.scores), []
    for name, parts in panel.scores.items():
        for score in parts:
            half = 1.96 * score.accuracy.error
            color = looks[name].color
            axes.errorbar(score.accuracy.value, len(labels), xerr=half, fmt="o", color=color)
            labels.append(plain(f"{name}, {score.setting}" if score.setting else name))
    if panel.guess is not None:
        axes.axvline(panel.guess, color=INK, ls=":", lw=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.4, -0.6), xlabel="accuracy")
