"""Panels that several figures of this study share: right answers by mixer."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.config import MQARConfig
from mesaopt.looks import PALETTE
from mesaopt.papers.figure import Panel
from mesaopt.papers.language.laboratory import LOOKS, Laboratory, Result, mixers
from mesaopt.papers.rows import PanelData, Rows, split


def rows_of(results: dict[str, Result], *, what: str = "accuracy", **more: object) -> Rows:
    """Make rows of the models of methods: one for each seed, with their mean and what was chosen."""
    return [
        {
            "method": name,
            **more,
            "seed": seed,
            what: result.missing if outcome.scores is None else float(outcome.scores[0].mean()),
            "mean": result.score().value,
            "half_width_95": 1.96 * result.score().error,
            "learning_rate": result.rate or None,
            "parameters": outcome.parameters,
            "seconds": round(outcome.seconds, 1),
            "diverged": outcome.scores is None,
        }
        for name, result in results.items()
        for seed, outcome in enumerate(result.outcomes)
    ]


def legend_below(drawing: Drawing) -> None:
    """Name the lines of all panels in one legend below them, where it covers none."""
    handles = {}
    for axes in drawing.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawing.legend(handles.values(), handles, loc="outside lower center", ncols=4, handlelength=3.5)


def draw_methods(axes: Axes, rows: Rows, *, xlabel: str, what: str = "accuracy") -> None:
    """Draw the mean of each method with its 95 % interval, and each seed as a point, one below another."""
    given = split(rows, "method")
    for place, (name, seeds) in enumerate(given.items()):
        untrained = seeds[0]["learning_rate"] is None
        color = PALETTE[-1] if untrained else LOOKS.get(name, LOOKS["mesanet"]).color
        mean, half = seeds[0]["mean"], seeds[0]["half_width_95"]
        axes.barh(place, mean, height=0.62, color=color, alpha=0.35, lw=0)
        axes.errorbar(mean, place, xerr=half, color=color, lw=1.5, capsize=2.5)
        points = [row[what] for row in seeds]
        axes.plot(points, [place] * len(points), color=color, ls="", marker="|", ms=9)
    axes.set_yticks(range(len(given)), list(given))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(0, 1.02), xlabel=xlabel)


def methods_panel(
    name: str, title: str, measure: Callable[[Laboratory], PanelData | None]
) -> Panel[Laboratory]:
    """Make a panel of the rows that :func:`rows_of` gives."""

    def draw(axes: Axes, data: PanelData) -> None:
        draw_methods(axes, data.rows, xlabel="share of right answers")
        axes.set_title(title)

    return Panel(name=name, measure=measure, draw=draw)


def comparison_panel(comparison: str, title: str, *, name: str = "") -> Panel[Laboratory]:
    """Make a panel of all mixers in a comparison; it is left out where the scale does not have it."""

    def measure(lab: Laboratory) -> PanelData | None:
        if comparison not in lab.settings.comparisons:
            return None
        return PanelData(rows=rows_of(mixers(lab, comparison), comparison=comparison))

    return methods_panel(name or comparison, title, measure)


def pairs_in_words(task: MQARConfig) -> str:
    """Write the size of a recall task.

    Example:
        >>> pairs_in_words(MQARConfig(pairs=2, length=16, vocabulary=64))
        '2 pairs in 16 tokens, 64 different tokens'
    """
    return f"{task.pairs} pairs in {task.length} tokens, {task.vocabulary} different tokens"


def comparison_settings(lab: Laboratory, name: str) -> dict[str, object]:
    """Give the settings of a comparison for the line under its figure."""
    comparison = lab.settings.comparisons[name]
    return {
        "steps": comparison.train.steps,
        "sequences in a step": comparison.train.batch_size,
        "learning rates": ", ".join(f"{rate:g}" for rate in comparison.rates),
        "seeds": lab.plan.seeds,
        "test sequences": comparison.sequences,
    }
