"""What figures 16, 22 and 23 share: sensitivity of the first layer to every token, while training."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mesaopt.analysis import Sensitivity, sensitivity
from mesaopt.papers.figures import INK, PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report
from mesaopt.papers.uncovering2023.curves import label_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import mean_and_error
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

PART = "blocks.0"
"""The stream behind the first layer."""

NEAR = 6
"""Tokens drawn by themselves, from the last one back; older ones are averaged."""

PUBLISHED: dict[str, tuple[float, ...]] = {
    "tf-7": (1.229, 1.007, 0.280, 0.036, 0.010, 0.008, 0.0036),
    "hybrid-mesa": (0.333, 0.323, 0.073, 0.011, 0.003, 0.001, 0.00005),
    "tf-7-partial": (0.873, 0.674, 0.462, 0.291, 0.133, 0.061, 0.003),
    "hybrid-mesa-partial": (0.166, 0.163, 0.173, 0.125, 0.073, 0.019, 0.001),
    "tf-7-nonlinear": (0.313, 0.0735, 0.027, 0.012, 0.009, 0.009, 0.002),
    "hybrid-mesa-nonlinear": (0.752, 0.504, 0.041, 0.002, 0.0002, 0.0001, 0.0003),
}
"""Sensitivity of the last position to tokens 50 ... 45 and the mean of older ones, at `PUBLISHED_STEP`."""

PUBLISHED_STEP = 2900
_CHECKPOINTS = {"smoke": 2, "small": 13, "paper": 16}
_SEQUENCES = {"smoke": (2, 4), "small": (16, 64), "paper": (64, 64)}  # while training, at the end


def seconds(plan: Plan, weight: float) -> float:
    """Guess the time a figure takes.

    Args:
        plan: says the scale.
        weight: of its models, 1 for a first layer of four heads.

    Returns:
        Seconds.
    """
    return {"smoke": 1.0, "small": 2.0 * weight, "paper": 15.0 * weight}[plan.scale]


@dataclass(frozen=True)
class Course:
    """How the sensitivity of one run went."""

    run: Run
    by_step: dict[int, Sensitivity]
    """At the last position, by optimiser step."""
    at_end: dict[int, Sensitivity]
    """Of the trained model, by position: the first, the middle, the last."""

    @property
    def last(self) -> Sensitivity:
        """At the end of training and of the sequence."""
        return self.at_end[max(self.at_end)]


def measure(
    laboratory: Laboratory, names: Sequence[str], report: Report
) -> dict[str, list[Course]]:
    """Differentiate the first layer of every run, at checkpoints and at the end.

    Args:
        laboratory: the runs.
        names: recipes, those there are.
        report: told the models differentiated.

    Returns:
        By recipe, one per seed.
    """
    runs = {name: laboratory.runs[name] for name in names if name in laboratory.runs}
    flat = [run for of_seeds in runs.values() for run in of_seeds]
    chosen = [
        spread(RunFolder(run.path).steps, _CHECKPOINTS[laboratory.plan.scale]) for run in flat
    ]
    done, total = itertools.count(1), sum(len(steps) + 1 for steps in chosen)
    few, many = _SEQUENCES[laboratory.plan.scale]
    courses: dict[str, list[Course]] = {name: [] for name in runs}
    for run, steps in zip(flat, chosen, strict=True):
        tokens = _tokens(run, many)
        last = tokens.shape[1]
        by_step, final = {}, {}
        for step in steps:
            model = load_run(run.path, step=step, device="cpu").model
            by_step[step] = sensitivity(model, tokens[:few], name=PART, position=last)
            report(next(done), total)
        for k in (1, last // 2, last):  # layers are causal: what comes later changes nothing
            final[k] = sensitivity(run.model.cpu(), tokens[:, :k], name=PART, position=k)
        report(next(done), total)
        courses[run.config.recipe].append(Course(run, by_step, final))
    return courses


def at_end(run: Run, plan: Plan) -> Sensitivity:
    """Differentiate the trained first layer at the last position alone.

    Args:
        run: of any recipe.
        plan: says the scale.

    Returns:
        The sensitivities.
    """
    tokens = _tokens(run, _SEQUENCES[plan.scale][1])
    return sensitivity(run.model.cpu(), tokens, name=PART, position=tokens.shape[1])


def _tokens(run: Run, count: int) -> Tensor:
    return make_task(run.config.task).sample(count, seed=0, split="test").tokens


def spread(steps: Sequence[int], count: int) -> list[int]:
    """Choose checkpoints, more of them early, where things happen, and that of the published numbers.

    Args:
        steps: of all checkpoints, ascending.
        count: how many at most, 2 or more.

    Returns:
        Some of them, ascending, the first and the last included.

    Example:
        >>> spread(range(0, 2501, 100), 6)
        [0, 100, 400, 900, 1600, 2500]
    """
    if not steps:
        return []
    wanted = [steps[-1] * (i / (count - 1)) ** 2 for i in range(count)]
    if steps[0] < PUBLISHED_STEP < steps[-1]:
        place = min(range(1, count - 1), key=lambda i: abs(wanted[i] - PUBLISHED_STEP), default=0)
        wanted[place] = PUBLISHED_STEP if place else wanted[place]
    return sorted({min(steps, key=lambda step: abs(step - place)) for place in wanted})


def draw(
    laboratory: Laboratory,
    courses: dict[str, list[Course]],
    *,
    number: int,
    title: str,
    caption: str,
) -> FigureResult:
    """Draw sensitivities while training, above, and by token at the end, below.

    Args:
        laboratory: knows the plan.
        courses: by recipe.
        number: of the figure.
        title: of the figure.
        caption: what is to be said besides what all of them have in common.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.6, 6.4))
    above, below = figure.subplots(2, len(courses), squeeze=False, sharey="row")
    rows = []
    for axes, (name, of_seeds) in zip(above, courses.items(), strict=True):
        rows += _draw_training(axes, name, of_seeds)
    for axes, (name, of_seeds) in zip(below, courses.items(), strict=True):
        rows += _draw_tokens(axes, name, of_seeds)
    above[0].set_ylabel("sensitivity of the last position")
    below[0].set_ylabel("sensitivity after training")
    figure.legend(
        *above[0].get_legend_handles_labels(), loc="outside upper center", ncols=7, handlelength=1.2,
        columnspacing=1.0, title="token", title_fontsize=8.5,
    )  # fmt: skip
    below[0].legend(loc="upper left", ncols=3, handlelength=1.0, columnspacing=0.8, fontsize=7.5)
    few, many = _SEQUENCES[laboratory.plan.scale]
    return FigureResult(
        id=f"uncovering2023-fig{number}",
        title=title,
        caption=(
            "Mean over coordinates l and test sequences of |d f_l / d s_t'|, the derivative of the "
            "stream behind the first layer by an input token, exact. Above: of the last position, "
            "by the tokens closest to it and by all older ones (their mean), at checkpoints; mean "
            "over seeds with each seed as a thin line, circles are the authors' numbers at step "
            f"{PUBLISHED_STEP}. Below: of the trained model, by token, for the first, middle and last "
            f"position, with 95 % bands over sequences. {caption}"
        ),
        settings={
            "scale": laboratory.plan.scale,
            "sequences while training": few,
            "sequences after training": many,
            "steps": {name: c[0].run.config.train.steps for name, c in courses.items()},
            "training seeds": {name: len(c) for name, c in courses.items()},
        },
        rows=rows,
        figure=figure,
    )


def previous(found: Sequence[Sensitivity]) -> Tensor:
    """Sensitivity to the token before the position, [seed, sequence]."""
    return torch.stack([one.norms[:, one.position - 2] for one in found])


def older(found: Sequence[Sensitivity]) -> Tensor:
    """Mean sensitivity to tokens further back than the six nearest, [seed, sequence]."""
    return torch.stack([one.norms[:, : one.position - NEAR].mean(1) for one in found])


def label(name: str) -> str:
    """Say what a recipe is in a sentence about several tasks.

    Example:
        >>> label("hybrid-mesa-partial"), label("full-mesa-published")
        ('softmax, then mesa', 'linear, then mesa ("full-mesa")')
    """
    return {"full-mesa-published": 'linear, then mesa ("full-mesa")'}.get(name, label_of(name))


def _nearby(found: Sensitivity) -> list[float]:
    """The curve as it is drawn: nearest tokens from the last back, then the mean of older ones."""
    near = found.curve[found.position - NEAR : found.position].flip(0)
    return [*near.tolist(), older([found]).mean().item()]


def _draw_training(axes: Axes, name: str, courses: list[Course]) -> list[dict[str, Any]]:
    rows = []
    steps = list(courses[0].by_step)
    if not steps:
        return rows  # no folder of checkpoints
    values = torch.tensor(
        [[_nearby(found) for found in course.by_step.values()] for course in courses]
    )  # [seed,step,token]
    last = courses[0].last.position
    names = [str(last - back) for back in range(NEAR)] + ["older"]
    for place, token in enumerate(names):
        color = PALETTE[place] if place < NEAR else INK
        style = {"color": color, "ls": "solid" if place < NEAR else (0, (3, 2))}
        curve = values[:, :, place]
        axes.plot(steps, curve.mean(0), label=token, lw=1.5, **style)
        if len(courses) > 1:
            axes.plot(steps, curve.T, lw=0.4, alpha=0.5, **style)
        if name in PUBLISHED:
            axes.plot(PUBLISHED_STEP, PUBLISHED[name][place], "o", mfc="none", ms=4.5, color=color)
        rows += [
            _row("while training", name, step, token, one.item(), None)
            for step, one in zip(steps, curve.mean(0), strict=True)
        ]
    axes.set(yscale="log", title=label(name), xlabel="optimiser step", ylim=(2e-5, 4))
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return rows


def _draw_tokens(axes: Axes, name: str, courses: list[Course]) -> list[dict[str, Any]]:
    rows = []
    for color, position in zip(
        (PALETTE[1], PALETTE[2], PALETTE[0]), courses[0].at_end, strict=True
    ):
        norms = torch.stack([course.at_end[position].norms for course in courses])
        places = range(1, position + 1)
        mean, error = mean_and_error(norms)
        half = 1.96 * error
        axes.plot(places, mean, ".-", color=color, ms=4, lw=1, label=f"at {position}")
        axes.fill_between(
            places, (mean - half).clamp_min(1e-6), mean + half, color=color, alpha=0.25, lw=0
        )
        rows += [
            _row(
                f"after training, position {position}",
                name,
                courses[0].run.config.train.steps,
                t,
                m,
                h,
            )
            for t, m, h in zip(places, mean.tolist(), half.tolist(), strict=True)
        ]
    axes.set(yscale="log", xlabel="input token", ylim=(2e-5, 20))
    return rows


def _row(
    panel: str, name: str, step: int, token: str | int, value: float | None, half: float | None
) -> dict[str, Any]:
    numbers = {"step": step, "token": token, "sensitivity": value, "half_width_95": half}
    return {"panel": panel, "recipe": name} | numbers
