"""Names, colours and the curves that figures of this paper share: loss by position, loss by step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes

from mesaopt.looks import DOTTED, LOOKS, Look
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Panel
from mesaopt.papers.plots import band, circles, few_steps, plain_log
from mesaopt.papers.rows import PanelData, Rows, split
from mesaopt.papers.uncovering2023.laboratory import (
    CONSTRUCTION,
    GRADIENT_STEP,
    LEAST_SQUARES,
    OFFICIAL,
    Laboratory,
    compare,
    network_note,
)
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.recipes import RECIPES

LABELS = {
    "lsa-1": "1 linear layer",
    "lsa-2": "2 linear layers",
    "lsa-4": "4 linear layers",
    "lsa-6": "6 linear layers",
    "lsa-6-key-40": "6 linear layers, heads of 40",
    "mesa-1": "1 mesa layer",
    "tf-3": "3 softmax layers",
    "tf-7": "7 softmax layers",
    "tf-12": "12 softmax layers",
    "hybrid-mesa": "softmax, then mesa",
}
_IDEAS = {
    "lsa-1": "1 linear layer",
    "lsa-2": "2 linear layers",
    "lsa-4": "4 linear layers",
    "lsa-6": "6 linear layers",
    "lsa-6-key-40": "6 linear layers, heads of 40",
    "mesa-1": "mesa",
    "tf-3": "3 softmax layers",
    "tf-7": "7 softmax layers",
    "tf-12": "12 softmax layers",
    "hybrid-mesa": "softmax, then mesa",
    CONSTRUCTION: "weights of gradient descent",
    GRADIENT_STEP: "gradient descent",
    "3-layer steps": "fewer preconditioned steps",
    "steps on one observation": "fewer preconditioned steps",
    "steps on states": "fewer preconditioned steps",
}
FAITHFUL = 0.05
"""Distance of a faithful re-implementation from a published mean loss, as a share of it: another seed of
training moves most of them by 1 to 3 %."""

_LATE_FAITHFUL = 0.25
"""The same of losses late in a sequence: five times that of a mean, to which they add little. It was set
before any of them was measured."""
_DOMINATED = 0.5
"""Share of the mean loss below which a late loss is not told by the mean."""


def color_of(name: str) -> str:
    """Give the colour of a model or an algorithm, the same in every panel.

    Example:
        >>> color_of("fixed-lsa-1") == color_of("lsa-1")
        True
    """
    return look_of(name).color


def look_of(name: str) -> Look:
    """Give the look of a model or an algorithm; without the newest pair, algorithms are dotted.

    Example:
        >>> look_of("lsa-1").marker, look_of("least squares, official").dashes == DOTTED
        ('s', True)
    """
    model = _model_of(name)
    steps = "least squares" if model.startswith(LEAST_SQUARES) else "preconditioned steps"
    look = LOOKS[_IDEAS.get(model, steps)]
    return replace(look, dashes=DOTTED) if name.endswith(OFFICIAL) else look


def label_of(name: str) -> str:
    """Describe a recipe's model, whatever its task; other names stay as they are.

    Example:
        >>> label_of("contracting-lsa-2"), label_of("least squares")
        ('2 linear layers', 'least squares')
    """
    return LABELS.get(_model_of(name), name)


def _model_of(name: str) -> str:
    """Give the name of a recipe's model on the linear task, or of an algorithm with all pairs."""
    return RECIPES[name].architecture if name in RECIPES else name.removesuffix(OFFICIAL)


def loss_by_position(
    task: str, *names: str, title: str = "", legend: dict[str, Any]
) -> Panel[Laboratory]:
    """Make a panel of loss by position: means with 95 % bands, seeds as thin lines, circles as published.

    Args:
        task: one that is compared.
        *names: recipes and algorithms, those there are; algorithms are dashed, published ones dotted.
        title: above it.
        legend: arguments of its legend; {} for none.

    Returns:
        The panel.
    """

    def measure(lab: Laboratory) -> PanelData:
        comparison = compare(lab, task)
        rows: Rows = []
        drawn = [name for name in names if comparison.has(name)]
        for name in drawn:
            loss = comparison.losses[name]
            half = 1.96 * loss.curve_error
            rows += [
                curve_row(f"loss by position, {task} task", name, position, mean, width)
                for position, mean, width in zip(
                    loss.positions, loss.curve.tolist(), half.tolist(), strict=True
                )
            ]
        by_seed = {
            name: [one.curve.tolist() for one in comparison.seed_losses[name]]
            for name in drawn
            if name in comparison.seed_losses
        }
        return PanelData(rows=rows, more={"seeds": by_seed})

    def draw(axes: Axes, data: PanelData) -> None:
        seeds = data.more["seeds"]
        for name, rows in split(data.rows, "predictor").items():
            positions = [row["place"] for row in rows]
            line = look_of(name).line(label=label_of(name))
            band(
                axes,
                positions,
                [row["loss"] for row in rows],
                [row["half_width_95"] for row in rows],
                **line,
            )
            for curve in seeds.get(name, []):
                axes.plot(positions, curve, color=line["color"], lw=0.5, alpha=0.5)
            if name in CURVES[task]:
                circles(axes, CURVES[task][name].at, line["color"])
        plain_log(axes)
        axes.set(xlabel="position in the sequence", ylabel="in-context loss")
        axes.set_xlim(1, None)
        axes.set_title(title)
        if legend:
            axes.legend(**legend)

    return Panel(name=title or f"loss by position, {task}", measure=measure, draw=draw)


def learning_rows(lab: Laboratory, names: Iterable[str]) -> Rows:
    """Give test losses while training, for those recipes that have runs."""
    return [
        curve_row("test loss by step", f"{name}, seed {seed}", line["step"], line["test_loss"])
        for name in names
        for seed, run in enumerate(lab.trained(name))
        for line in run.metrics
    ]


def draw_learning(axes: Axes, rows: Rows, names: Iterable[str]) -> None:
    """Draw test losses while training, one line per seed."""
    curves = split(rows, "predictor")
    for name in names:
        seeds = [curve for key, curve in curves.items() if key.startswith(f"{name}, seed ")]
        for seed, curve in enumerate(seeds):
            axes.plot(
                [row["place"] for row in curve],
                [row["loss"] for row in curve],
                **look_of(name).line(label=label_of(name) if seed == 0 else None, lw=1.3),
            )
    plain_log(axes)
    few_steps(axes)
    axes.set(xlabel="optimiser step", ylabel="test loss")


def draw_levels(axes: Axes, levels: Mapping[str, float], **line: Any) -> None:
    """Draw mean losses of algorithms as horizontal lines."""
    for name, level in levels.items():
        axes.axhline(level, **look_of(name).line(label=name, **line))


def curve_row(
    panel: str, name: str, place: int, loss: float, half_width: float | None = None
) -> dict[str, Any]:
    """Write one number of a table; `place` is a position or a step, as the panel says."""
    numbers = {"place": place, "loss": loss, "half_width_95": half_width}
    return {"panel": panel, "predictor": name} | numbers


def published_means(
    lab: Laboratory, task: str, figure: str, names: Sequence[str], tolerance: float = FAITHFUL
) -> list[Claim]:
    """Judge mean losses by published ones; models only where they were trained as long.

    Where early positions make up most of a model's mean, at which nobody can know the system, late ones are
    judged as well.

    Args:
        lab: the runs.
        task: one that is compared.
        figure: the numbers' place in the paper.
        names: recipes and algorithms.
        tolerance: share of the published number that a faithful re-implementation may be off.

    Returns:
        One claim for each, or two; those of models without runs wait for them.
    """
    comparison = compare(lab, task)
    claims = []
    for name in names:
        if name not in CURVES[task] or not lab.as_published(name):
            continue
        published = CURVES[task][name].mean
        short = f"{task}-{name.replace(', ', '-').replace(' ', '-')}"
        claims.append(
            Claim(
                name=f"{short}-mean",
                figure=figure,
                statement=f"{task} task, {label_of(name)}: the mean loss is {published:g}",
                measured=comparison.mean(name) if comparison.has(name) else None,
                published=published,
                tolerance=tolerance * published,
                basis=network_note(lab, name),
                recipes=(name,) if name in RECIPES else (),
            )
        )
        if name in RECIPES and (late := _late_claim(lab, task, name, f"{short}-late", figure)):
            claims.append(late)
    return claims


def _late_claim(lab: Laboratory, task: str, recipe: str, name: str, figure: str) -> Claim | None:
    """Judge late positions of a model, if early ones make up most of its published mean loss."""
    curve = CURVES[task][recipe]
    at = {position: loss for position, loss in curve.at.items() if position > 20}
    late = sum(at.values()) / max(len(at), 1)
    if not at or late > _DOMINATED * curve.mean:
        return None
    note = network_note(lab, recipe)
    comparison, positions = compare(lab, task), [position - 1 for position in at]
    return Claim(
        name=name,
        figure=figure,
        statement=f"{task} task, {label_of(recipe)}: late in a sequence, at positions "
        f"{', '.join(map(str, at))}, the loss is {late:.3g}, where the mean is mostly that of early ones",
        measured=comparison.mean(recipe, positions) if comparison.has(recipe) else None,
        published=late,
        tolerance=_LATE_FAITHFUL * late,
        basis="another training moves late losses more than means" + (f"; {note}" if note else ""),
        recipes=(recipe,),
    )
