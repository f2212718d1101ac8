"""Figures 8 and 18, drawn."""

import itertools
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mesaopt.papers.figures import INK, PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report, Results, Scale
from mesaopt.papers.uncovering2023.curves import settings_of
from mesaopt.papers.uncovering2023.few_shot import (
    ALGORITHMS,
    AS_PUBLISHED,
    EOS_SWITCH_AFTER,
    LABELS,
    ON_TOKENS,
    PAIRS,
    PREFIX,
    SEPARATOR,
    SEQUENCES,
    SWITCH_AFTER,
    TOKEN_NORM,
    TRUE_PAIRS,
    TUNING,
    ZERO_SEPARATOR,
    Curves,
    Measurement,
    Switch,
    least_squares_curves,
    measure,
    work,
)
from mesaopt.papers.uncovering2023.few_shot_claims import algorithm_claims, model_claims
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import FEW_SHOT

_SHOWN_COLORS = {PAIRS: PALETTE[0], SEPARATOR: PALETTE[1], PREFIX: PALETTE[2]}
_ALGORITHM_STYLES: dict[str, tuple[str, Any]] = {
    AS_PUBLISHED: (PALETTE[4], (0, (4, 2))),
    ON_TOKENS: (PALETTE[3], (0, (1, 1.5))),
    ZERO_SEPARATOR: (INK, (0, (1, 1.5))),
    TRUE_PAIRS: (PALETTE[5], (0, (1, 1.5))),
}
_PAIRS_DRAWN = 60

Rows = list[dict[str, Any]]


def seconds(plan: Plan) -> float:
    """Guess the time of one figure at a scale."""
    return {"smoke": 6.0, "small": 80.0, "paper": 3600.0}[plan.scale]


def compute(
    laboratory: Laboratory, report: Report, *, recipe: str, number: str, name: str
) -> Results:
    """Tune prompts for the runs of a recipe, score them beside least squares, draw, judge.

    Args:
        laboratory: the runs.
        report: told the steps of tuning and batches of test sequences done.
        recipe: of models trained on long sequences of the linear system.
        number: of the figure.
        name: what the models are.

    Returns:
        The figure and its claims.
    """
    scale: Scale = laboratory.plan.scale
    runs = laboratory.runs.get(recipe, [])
    total, done = len(ALGORITHMS) + work(len(runs), scale), itertools.count(1)

    def tick(_: int) -> None:
        report(next(done), total)

    algorithms = least_squares_curves(SEQUENCES[scale], tick)
    measured = measure(runs, scale, tick) if runs else None
    curves = ({} if measured is None else measured.curves) | algorithms
    figure, rows = draw(recipe, curves, measured)
    result = FigureResult(
        id=f"uncovering2023-fig{number}",
        title=f"Fig. {number}: {name}, used few-shot",
        caption=_caption(name),
        settings=settings_of(laboratory, (recipe,))
        | {"test sequences": SEQUENCES[scale]}
        | {f"tuning {key}": value for key, value in vars(TUNING[scale]).items()},
        rows=rows,
        figure=figure,
    )
    claims = [] if measured is None else model_claims(laboratory, number, recipe, measured)
    if number == "8":
        claims = [*algorithm_claims(laboratory, algorithms), *claims]
    return Results(figures=[result], claims=claims)


def _caption(name: str) -> str:
    return (
        f"Loss of the answer by the number of pairs seen. {name[0].upper() + name[1:]}, trained on linear "
        "systems and never on pairs, reads x_1, y_1, x_2, y_2, ...; or EOS, a learned vector, behind "
        "every pair; or 20 more in front. Circles are published, bands 95 % intervals, thin lines seeds "
        "of training. Least squares "
        "of every token on the one before takes (y_i, x_i+1) for an example too. Published are six steps "
        "of Newton's iteration towards its inverse, as we infer: exactly solved, with the ridge of 0.001 "
        "that is given, it would rise to 18. Best ridges are those on validation sequences. B: another "
        f"matrix after {SWITCH_AFTER} pairs; in the paper after 40, or {EOS_SWITCH_AFTER} with EOS. "
        "C: norm of EOS and of the prefix "
        "vectors (root mean square) while they are learned; the grey line is a token's."
    )


def draw(recipe: str, curves: Curves, measured: Measurement | None) -> tuple[Figure, Rows]:
    """Draw one task, two tasks, and the learning of the prompts.

    Args:
        recipe: whose published numbers to draw.
        curves: losses by switch and predictor.
        measured: prompts of the runs; None if there are no runs.

    Returns:
        The figure and the numbers in it.
    """
    figure = Figure(figsize=(7.6, 6.2))
    (one, two), (learning, legend) = figure.subplots(2, 2)
    rows: Rows = []
    for axes, switch, title in (
        (one, "one task", "A: one task"),
        (two, "two tasks", "B: two tasks"),
    ):
        rows += _draw_curves(axes, cast(Switch, switch), curves)
        _draw_seeds(axes, cast(Switch, switch), measured)
        axes.set(title=title, xlabel="pairs seen before", ylabel="loss of the answer")
        axes.set_xlim(0, _PAIRS_DRAWN - 1)
        axes.set_ylim(0, 3.5)
    two.axvline(SWITCH_AFTER, color=PALETTE[5], lw=0.8)
    published = {**FEW_SHOT[recipe], AS_PUBLISHED: FEW_SHOT["least squares"][PAIRS]}
    for name, at in published.items():
        style = {"color": _color(name), "mfc": "none", "ms": 4, "clip_on": False}
        one.plot(*zip(*at.items(), strict=True), "o", **style)
    rows += _draw_learning(learning, measured)
    legend.axis("off")
    handles, labels = one.get_legend_handles_labels()
    circle = Line2D([], [], ls="none", marker="o", mfc="none", ms=4, color=INK)
    legend.legend([*handles, circle], [*labels, "published"], loc="center left")
    return figure, rows


def _draw_curves(axes: Axes, switch: Switch, curves: Curves) -> Rows:
    rows: Rows = []
    for (which, name), loss in curves.items():
        if which != switch:
            continue
        seen = torch.arange(_PAIRS_DRAWN)
        mean, half = loss.curve[:_PAIRS_DRAWN], 1.96 * loss.curve_error[:_PAIRS_DRAWN]
        color = _color(name)
        dashes = "solid" if name in LABELS else _ALGORITHM_STYLES[name][1]
        label = LABELS.get(name, name.replace(", ", ",\n", 1).replace(" with a", "\nwith a"))
        axes.fill_between(seen, mean - half, mean + half, color=color, alpha=0.2, lw=0)
        axes.plot(seen, mean, color=color, ls=dashes, label=label, lw=1.5)
        rows += [
            _row(switch, name, int(i), float(m), float(h))
            for i, m, h in zip(seen, mean, half, strict=True)
        ]
    return rows


def _draw_seeds(axes: Axes, switch: Switch, measured: Measurement | None) -> None:
    """Draw every training seed by itself, where there are several."""
    if measured is None or len(measured.seed_curves) == 1:
        return
    for of_seed, name in itertools.product(measured.seed_curves, LABELS):
        curve = of_seed[switch, name].curve[:_PAIRS_DRAWN]
        axes.plot(curve, color=_color(name), lw=0.5, alpha=0.5)


def _draw_learning(axes: Axes, measured: Measurement | None) -> Rows:
    """Draw the norms of the vectors while they are learned, one line per seed."""
    axes.set(
        title="C: while EOS and prefix are learned", xlabel="step", ylabel="norm", yscale="log"
    )
    axes.axhline(TOKEN_NORM, color=PALETTE[5], lw=0.8)
    if measured is None:
        return []
    rows: Rows = []
    for name, prompts in ((SEPARATOR, measured.separators), (PREFIX, measured.prompts)):
        for prompt in prompts:
            norms = prompt.norms.square().mean(1).sqrt()
            axes.plot(norms, color=_SHOWN_COLORS[name], lw=1.2)
            places = range(0, len(norms), max(1, len(norms) // 50))
            rows += [_row("norm by step", name, i, float(norms[i]), None) for i in places]
    return rows


def _color(name: str) -> str:
    return _SHOWN_COLORS[name] if name in LABELS else _ALGORITHM_STYLES[name][0]


def _row(
    panel: str, name: str, place: int, value: float, half_width: float | None
) -> dict[str, Any]:
    """One number of a table; `place` is pairs seen before or a step, as the panel says."""
    return {
        "panel": panel,
        "name": name,
        "place": place,
        "value": value,
        "half_width_95": half_width,
    }
