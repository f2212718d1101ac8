"""The ridge that the mesa layer of the study `core` learns, and what it costs late in a sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.analysis import Evaluation, effective_ridges, in_context_loss
from mesaopt.analysis.diagnosis.candidates import fit_ridge
from mesaopt.analysis.diagnosis.model_target import ModelAsTarget
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.prompts import prompt_task
from mesaopt.layers import MesaLayer
from mesaopt.looks import DASHED, DOTTED, INK
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.plots import plain_log
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.papers.uncovering2023.core_milestones import MESA, milestones
from mesaopt.papers.uncovering2023.curves import color_of
from mesaopt.papers.uncovering2023.laboratory import (
    LATE,
    LEAST_SQUARES,
    Laboratory,
    compare,
    least_squares,
    predictor_of,
)
from mesaopt.progress import Progress
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

_CHECKPOINTS = 6
_FITTED = "fitted to its predictions"
_EFFECTIVE = "1 / lambda, in units of states"
_LEARNED = "1 / lambda, as learned"
_DASHES = {_FITTED: "solid", _EFFECTIVE: DASHED, _LEARNED: DOTTED}
"""All are ridges of the mesa layer, and have its colour."""


@dataclass(frozen=True)
class Ridges:
    """The ridges of a mesa layer after some training."""

    fitted: float
    """With which least squares on the states comes nearest to its predictions, as `diagnose` finds it."""
    learned: list[float]
    """1 / lambda, by head."""
    effective: list[float]
    """The same in units of the states: over the squared scale of the head's keys (geometric mean)."""


@measurement
def ridges(lab: Laboratory) -> list[dict[int, Ridges]]:
    """Measure the ridges of the mesa layer while it trains, one result per seed, by optimiser step."""
    runs = lab.trained(MESA)
    steps = _chosen_steps(runs[0])
    lab.on_progress(Progress(0, len(runs) * len(steps)))
    measured: list[dict[int, Ridges]] = []
    for run in runs:
        measured.append({})
        for step in steps:
            measured[-1][step] = _ridges(load_run(run.path, step=step, device="cpu"))
            lab.on_progress(Progress(sum(map(len, measured)), len(runs) * len(steps)))
    return measured


def _chosen_steps(run: Run) -> list[int]:
    """Choose checkpoints that are evenly spaced on a logarithmic axis, the last one among them."""
    there = [step for step in RunFolder(run.path).steps if step > 0]
    wanted = np.geomspace(there[0], there[-1], _CHECKPOINTS)
    return sorted({min(there, key=lambda step: abs(step - at)) for at in wanted})


@torch.no_grad()
def _ridges(run: Run) -> Ridges:
    config, layer = run.config.task, cast(MesaLayer, run.sequence_model.mixers[0])
    slot = config.token_slots.index("previous")
    effective = effective_ridges(layer, dim=config.dim, slot=slot).log().mean(1).exp()
    target = ModelAsTarget(prompt_task(make_task(config)), predictor_of(run))
    return Ridges(fit_ridge(target), layer.ridge.tolist(), effective.tolist())


def _measure_ridges(lab: Laboratory) -> PanelData:
    rows: Rows = []
    for seed, by_step in enumerate(ridges(lab)):
        for step, one in by_step.items():
            kinds = {_FITTED: [one.fitted], _EFFECTIVE: one.effective, _LEARNED: one.learned}
            rows += [
                {"what": kind, "seed": seed, "head": head, "step": step, "ridge": value}
                for kind, values in kinds.items()
                for head, value in enumerate(values, start=1)
            ]
    return PanelData(rows=rows)


def _draw_ridges(axes: Axes, data: PanelData) -> None:
    for kind, dashes in _DASHES.items():
        lines: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for row in data.rows:
            if row["what"] == kind:
                points = lines.setdefault((row["seed"], row["head"]), [])
                points.append((row["step"], row["ridge"]))
        for number, points in enumerate(lines.values()):
            style: dict[str, Any] = {"label": kind} if number == 0 else {}
            style |= {"marker": "P", "ms": 5} if kind == _FITTED else {"lw": 1.1}
            axes.plot(*zip(*points, strict=True), color=color_of(MESA), ls=dashes, **style)
    plain_log(axes)
    axes.set(xscale="log", xlabel="optimiser step", ylabel="ridge")
    axes.set_title("the ridge falls as long as it trains")
    axes.legend()


def _measure_ratios(lab: Laboratory) -> PanelData | None:
    """Tabulate the loss by position over that of least squares, at steps with a published loss."""
    steps = {step: losses for (recipe, step), losses in milestones(lab).items() if recipe == MESA}
    if not steps:
        return None
    exact = compare(lab, "core").losses[LEAST_SQUARES].curve
    rows: Rows = []
    for step, by_seed in steps.items():
        ratio = torch.stack([one.curve for one in by_seed]).mean(0) / exact
        rows += [
            {"step": step, "position": position, "ratio": value}
            for position, value in enumerate(ratio.tolist(), start=1)
        ]
    return PanelData(rows=rows)


def _draw_ratios(axes: Axes, data: PanelData) -> None:
    steps = sorted({row["step"] for row in data.rows})
    for number, step in enumerate(steps, start=1):
        curve = [(row["position"], row["ratio"]) for row in data.rows if row["step"] == step]
        axes.plot(
            *zip(*curve, strict=True),
            label=f"step {step}",
            color=color_of(MESA),
            lw=0.6 + 1.8 * number / len(steps),
            ls=(0, (1 + number, 1)) if number < len(steps) else "solid",
        )
    axes.axhline(1, color=INK, lw=0.8)
    plain_log(axes)
    axes.set(xlabel="position in the sequence", ylabel="loss / that of least squares")
    axes.set_title("late positions are learned last")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _claims(lab: Laboratory) -> Iterable[Claim]:
    """Judge the ridge and the late positions of a mesa layer that was trained as published."""
    if (MESA, 4400) not in milestones(lab):
        return
    yield compare(lab, "core").claim(
        MESA,
        LEAST_SQUARES,
        LATE,
        name="mesa-1-late-positions",
        figure="beyond the paper",
        statement="Where the context determines W, at positions 11 to 50, the mesa layer is within a "
        "factor of ten of least squares (ratio of losses)",
        high=10.0,
        basis="no number of this layer is published; hybrid-mesa's are 12 times least squares at position "
        "11, and 3.4 to 5.3 times at 21 to 50",
    )
    last = [max(by_step.items())[1] for by_step in ridges(lab)]
    yield Claim(
        name="mesa-1-own-ridge",
        figure="beyond the paper",
        statement="There it is at a ridge problem of its own: least squares with the ridge fitted to it "
        "(ratio of losses, positions 11 to 50)",
        measured=_ratio_to_own_ridge(lab, [one.fitted for one in last]),
        recipes=(MESA,),
        low=0.5,
        high=2.0,
        basis="1 if all heads had the same ridge in every direction; a factor of two counts",
    )
    yield Claim(
        name="mesa-1-two-ridges",
        figure="beyond the paper",
        statement="The ridge fitted to its predictions is its 1 / lambda in units of the states, over the "
        "squared scale of its keys (ratio, mean over heads and seeds)",
        measured=mean(one.fitted / mean(one.effective) for one in last),
        recipes=(MESA,),
        low=0.5,
        high=2.0,
        basis="1 if outputs were not scaled; a learned scale above 1 makes up for shrinkage, and a factor "
        "of two counts",
    )
    yield Claim(
        name="mesa-1-ridge-falls",
        figure="beyond the paper",
        statement="That ridge falls while the layer trains (after training over before a fifth of it)",
        measured=mean(_fall(by_step) for by_step in ridges(lab)),
        recipes=(MESA,),
        high=0.5,
        basis="only late positions ask for a smaller ridge, and the noise for one of 0.001; half counts",
    )


def _ratio_to_own_ridge(lab: Laboratory, fitted: list[float]) -> Estimate:
    """Divide losses late in the sequence by those of least squares with the ridge of each seed."""
    task = make_task(lab.trained(MESA)[0].config.task)
    predictors = {str(seed): least_squares(ridge) for seed, ridge in enumerate(fitted)}
    evaluation = Evaluation(num_sequences=lab.plan.num_sequences, progress=lab.on_progress)
    own = in_context_loss(predictors, task, evaluation)
    ours = compare(lab, "core").seed_losses[MESA]
    above, below = (
        torch.stack([one.losses[:, LATE].mean(1) for one in losses])
        for losses in (ours, list(own.values()))
    )
    return Estimate.ratio(above, below)


def _fall(by_step: dict[int, Ridges]) -> float:
    """Divide the last fitted ridge by the last one in the first fifth of the training."""
    last = max(by_step)
    early = max((step for step in by_step if step <= last / 5), default=min(by_step))
    return by_step[last].fitted / by_step[early].fitted


def _finish(drawing: Drawing) -> None:
    for axes in drawing.axes:
        axes.set_xlim(left=1 if axes.get_xscale() == "linear" else None)


RIDGE = Figure[Laboratory](
    name="ridge",
    title="The mesa layer solves a ridge problem of its own",
    summary="the ridge of the mesa layer while training, and its losses late in a sequence",
    message="A mesa layer is least squares with a ridge, and training makes that ridge smaller.",
    caption=(
        "Left: three ridges of the mesa layer. Least squares comes nearest to its predictions with the "
        "first. The layer adds the third, 1 / lambda, to the Gram matrix of its keys, head by head. Keys "
        "grow, and next to larger keys the same ridge is smaller: divided by their squared scale it is "
        "the second. (The first is smaller still early on, because a larger output makes up for "
        "shrinkage.) Right: its loss over that of least squares with a ridge of 0.001. At positions 1 to "
        "10 a context has fewer pairs than W has columns, nobody can know W, and these make up 98 % of "
        "the mean loss: a mean near that of least squares says little about the other forty. There the "
        "layer is several times as far from the noise."
    ),
    recipes=(MESA,),
    panels=(
        Panel(name="ridges", measure=_measure_ridges, draw=_draw_ridges),
        Panel(name="ratios", measure=_measure_ratios, draw=_draw_ratios),
    ),
    layout=grid(2, height=3.6),
    finish=_finish,
    claims=_claims,
    seconds={"smoke": 3.0, "small": 10.0, "paper": 60.0},
)
