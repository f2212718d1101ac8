"""One linear layer while it trains: its weights and losses, and enough of it for a toy in the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from mesaopt import recipes
from mesaopt.analysis import Evaluation, in_context_loss
from mesaopt.looks import LOOKS
from mesaopt.papers.figure import Figure, Panel, stack
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.matrices import color_bar, draw_matrix, mark_blocks, sum_over_heads
from mesaopt.papers.rows import PanelData, Rows, split
from mesaopt.papers.uncovering2023.core_milestones import LSA_1
from mesaopt.papers.uncovering2023.curves import curve_row, look_of
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LEAST_SQUARES,
    Laboratory,
    gradient_step,
    least_squares,
    predictor_of,
    step_sizes,
)
from mesaopt.papers.uncovering2023.weights import gradient_sum, slot_names
from mesaopt.tasks import make_task
from mesaopt.theory import PUBLISHED_SETTINGS
from mesaopt.training import Run, RunFolder, load_run

_CHECKPOINTS = 19
_SEQUENCES = 2048
_SLOTS = ("current", "previous")
"""Slots of a token whose weights are shown; those of the other two stay next to nothing."""
_TOY = 2
"""Dimensions of the toy: the layer, with all other coordinates zero."""


@measurement
def checkpoints(lab: Laboratory) -> dict[int, Run]:
    """Load the first seed of LSA-1 at the first step, the last and some between, more of them early."""
    path = lab.trained(LSA_1)[0].path
    there = RunFolder(path).steps
    later = [step for step in there if step > 0]
    wanted = np.geomspace(later[0], later[-1], _CHECKPOINTS) if later else []
    steps = {there[0], *(min(later, key=lambda step: abs(step - at)) for at in wanted)}
    return {step: load_run(path, step=step, device="cpu") for step in sorted(steps)}


def _measure(lab: Laboratory) -> PanelData:
    runs = checkpoints(lab)
    size, ridge = step_sizes(lab).mean().item(), PUBLISHED_SETTINGS["fully-observed/ridge"].value
    predictors = {f"step {step}": predictor_of(run) for step, run in runs.items()}
    predictors |= {GRADIENT_STEP: gradient_step(size), LEAST_SQUARES: least_squares(ridge)}
    evaluation = Evaluation(num_sequences=_sequences(lab), progress=lab.on_progress)
    losses = in_context_loss(predictors, make_task(recipes.TASKS["linear"]), evaluation)
    rows: Rows = [
        curve_row("loss by position", name, position, value)
        for name, loss in losses.items()
        for position, value in zip(loss.positions, loss.curve.tolist(), strict=True)
    ]
    layer = layer_numbers(list(runs.values()))
    return PanelData(rows=rows, more={"steps": [*runs], "step_size": size, "ridge": ridge} | layer)


def _sequences(lab: Laboratory) -> int:
    return min(lab.plan.num_sequences, _SEQUENCES)


@torch.no_grad()
def layer_numbers(runs: Sequence[Run]) -> dict[str, Any]:
    """Give what a page needs to draw one linear layer at each checkpoint, and to run it in two dimensions.

    Every matrix is a text of numbers, row by row. Rows and columns go over the coordinates of the current
    state, then of the previous one, except the rows of what is written: they are those of the prediction.

    Args:
        runs: one for each checkpoint, of one training.

    Returns:
        By name: "scored" [2 D, 2 D] and "written" [D, 2 D], summed over heads, a text for each checkpoint;
        the same in the first two coordinates, head by head: "toy_scored" [head, 4, 4] and "toy_written"
        [head, 2, 4]; "dim", "heads", and "clip", at which values of the stream are cut off, or None.

    Example:
        >>> from mesaopt.zoo import load
        >>> numbers = layer_numbers([load("lsa-1")])
        >>> numbers["heads"], len(numbers["scored"]), len(numbers["scored"][0].split())
        (2, 1, 400)
    """
    config = runs[-1].config
    slots, dim = config.task.token_slots, config.task.dim
    sums = gradient_sum(slots, config.sequence_model.num_heads)
    shown, few = (_coordinates(slots, dim, count) for count in (dim, _TOY))
    texts: dict[str, list[str]] = {}
    for run in runs:
        heads = [products.numpy() for products in run.sequence_model.mixers[0].head_products()]
        scored, written = sum_over_heads(
            *heads, blocks=len(slots), scored=sums.scored, written=sums.written
        )
        numbers = {
            "scored": _text(scored[np.ix_(shown, shown)], 3),
            "written": _text(written[np.ix_(range(dim), shown)], 3),
            "toy_scored": _text(heads[0][:, few][:, :, few], 9),
            "toy_written": _text(heads[1][:, :_TOY][:, :, few], 9),
        }
        for name, text in numbers.items():
            texts.setdefault(name, []).append(text)
    return texts | {
        "dim": dim,
        "heads": sums.heads,
        "clip": config.sequence_model.activation_clip,
    }


def _coordinates(slots: Sequence[Any], dim: int, count: int) -> list[int]:
    """Give the places in a token of the first coordinates of its slots."""
    return [slots.index(slot) * dim + i for slot in _SLOTS for i in range(count)]


def _text(values: Any, digits: int) -> str:
    return " ".join(f"{x:.{digits}g}" for x in values.ravel().tolist())


def _draw(part: SubFigure, data: PanelData) -> None:
    """Draw what is scored at up to four checkpoints, and the losses at these."""
    curves, steps, dim = split(data.rows, "predictor"), data.more["steps"], data.more["dim"]
    texts = [np.array(text.split(), dtype=float) for text in data.more["scored"]]
    chosen, limit = _choose(steps, curves), np.abs(texts[-1]).max()
    above, below = part.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.25))[:, 0]
    places = above.subplots(1, len(chosen), squeeze=False)[0]
    for step, axes in zip(chosen, places, strict=True):
        matrix = texts[steps.index(step)].reshape(2 * dim, 2 * dim)
        color_bar(above, draw_matrix(axes, matrix, limit), axes)
        mark_blocks(
            axes, slot_names(("zero", "current", "previous"))[1:], 2 * dim, named=axes is places[0]
        )
        axes.set_title(f"step {step:,}", fontsize=9)
    axes = below.subplots()
    for number, step in enumerate(chosen, start=1):
        look = LOOKS["1 linear layer"].line(label=f"after step {step:,}", lw=0.6 + 0.5 * number)
        if number < len(chosen):
            look |= {"ls": (0, (number, 1)), "marker": None}
        _draw_curve(axes, curves[f"step {step}"], look)
    for name in (GRADIENT_STEP, LEAST_SQUARES):
        _draw_curve(axes, curves[name], look_of(name).line(label=name))
    axes.set(xlabel="position in the sequence", ylabel="in-context loss", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_curve(axes: Axes, rows: Rows, line: dict[str, Any]) -> None:
    axes.plot([row["place"] for row in rows], [row["loss"] for row in rows], **line)


def _choose(steps: list[int], curves: dict[str, Rows]) -> list[int]:
    """Choose the first checkpoint, the last, and those nearest to a third and two thirds of the loss."""
    means = [float(np.mean([row["loss"] for row in curves[f"step {step}"]])) for step in steps]
    wanted = [means[0] + share * (means[-1] - means[0]) for share in (1 / 3, 2 / 3)]
    nearest = {min(range(len(steps)), key=lambda i: abs(means[i] - at)) for at in wanted}
    return [steps[i] for i in sorted({0, len(steps) - 1, *nearest})]


TRAINING = Figure[Laboratory](
    name="training",
    title="Watch the layer learn, and try it",
    summary="one linear layer while it trains; in the report with a slider, and a plane to draw points in",
    message="Weights and losses move together: as a diagonal appears in the weights, the loss falls.",
    caption=(
        "Weights of the linear layer, summed over heads in units of the step size, and its loss by "
        "position, at checkpoints of one training. The diagonal in the block of the previous state (rows) "
        "and the current one (columns) says that the current state asks for previous states. As soon as "
        "it is there, the loss is that of one gradient step. The other slots of a token are left out: "
        "their weights stay next to nothing.\n\n"
        "Where the page may run its script, there is a slider over the checkpoints, and a plane to draw a "
        "sequence of points in. The layer in the plane is the trained one of ten dimensions, with eight "
        "coordinates at zero. One gradient step with a fixed step size has hardly moved after few "
        "points, and overshoots after many. Least squares needs three points that do not lie on a line "
        "through the middle. First seed."
    ),
    recipes=(LSA_1,),
    panels=(Panel(name="layer", measure=_measure, draw=_draw),),
    layout=stack(lambda data: 4.8),
    settings=lambda lab: {"test sequences": _sequences(lab)},
    widget="layer",
    seconds={"smoke": 2.0, "small": 4.0, "paper": 4.0},
)
