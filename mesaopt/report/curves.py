"""In-context losses of several predictors, drawn side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.analysis import InContextLoss
from mesaopt.looks import LOOKS, MARKERS, PALETTE, Look
from mesaopt.papers.plots import band, style
from mesaopt.report.page import plain, scale_of

_BASELINES = {
    "one gradient step": LOOKS["gradient descent"],
    "least squares": LOOKS["least squares"],
    "predict zero": LOOKS["no knowledge"],
}
# None of the colours of the algorithms.
_RUNS = (PALETTE[0], PALETTE[2], PALETTE[3], "#a8860f", "#1c8c9c", "#c2559a")
CAPTION = (
    "Loss by position on sequences that no run was trained on, the same for all curves of one panel, with "
    "95 % bands."
)


@dataclass(frozen=True)
class Panel:
    """Losses on the same sequences."""

    title: str
    losses: Mapping[str, InContextLoss]
    """By the name of the predictor."""
    reference: str = ""
    """Draw the differences from this one; the losses themselves if not given."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of predictors in the legend; their names if not given."""


def draw(panels: Sequence[Panel]) -> Figure:
    """Draw losses by position, a panel for each set of sequences.

    Args:
        panels: one or more.

    Returns:
        The figure.
    """
    with style():
        figure = Figure(figsize=(max(6.0, 5.0 * len(panels)), 4.2))
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_panel(axes, panel)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    looks = looks_of(panel.losses)
    for name, loss in panel.losses.items():
        if name == panel.reference:
            continue
        line = looks[name].line(label=plain(panel.labels.get(name, name)))
        if panel.reference:
            loss = loss - panel.losses[panel.reference]
        mean, half = loss.curve.numpy(), 1.96 * loss.curve_error.numpy()
        band(axes, loss.positions, mean, half, log=not panel.reference, **line)
    quantity = f"loss less that of {plain(panel.reference)}" if panel.reference else "loss"
    axes.set(title=plain(panel.title), xlabel="position in the sequence", ylabel=quantity)
    values = [value for loss in panel.losses.values() for value in loss.curve.tolist()]
    axes.set_yscale("linear" if panel.reference else scale_of(values))
    axes.legend()


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Give algorithms the look that they have in all figures, and runs one each."""
    runs = [name for name in names if name not in _BASELINES]
    own = (_RUNS[number % len(_RUNS)] for number in range(len(runs)))
    markers = (MARKERS[number % len(MARKERS)] for number in range(len(runs)))
    return _BASELINES | {
        name: Look(color, marker=marker)
        for name, color, marker in zip(runs, own, markers, strict=True)
    }
