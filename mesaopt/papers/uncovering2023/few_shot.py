"""Figures 8 and 18: models of next tokens used few-shot, next to least squares.

What they draw and judge is measured in :mod:`mesaopt.papers.uncovering2023.prompts`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from torch import Tensor

from mesaopt.analysis import Estimate, InContextLoss, early_ascent, variance_over_seeds
from mesaopt.looks import DASHED, DOTTED, INK, PALETTE
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figure import Figure, Panel, Places, grid
from mesaopt.papers.laboratory import Scale
from mesaopt.papers.plots import band
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.papers.uncovering2023.compression import loss_ratio
from mesaopt.papers.uncovering2023.laboratory import (
    Comparison,
    Laboratory,
    average,
)
from mesaopt.papers.uncovering2023.prompts import (
    AS_PUBLISHED,
    ON_TOKENS,
    PAIRS,
    PREFIX,
    SEPARATOR,
    SWITCH_AFTER,
    TRUE_PAIRS,
    ZERO_SEPARATOR,
    PromptedRun,
    Switch,
    least_squares_curves,
    prompted_runs,
)
from mesaopt.papers.uncovering2023.published import (
    FEW_SHOT,
    FEW_SHOT_SECOND_TASK,
    FEW_SHOT_SEQUENCES,
    FEW_SHOT_SWITCHES,
)
from mesaopt.papers.uncovering2023.settings import TOKEN_NORM

LABELS = {PAIRS: "pairs alone", SEPARATOR: "with EOS", PREFIX: "with EOS and prefix"}
COLORS = {
    PAIRS: PALETTE[0],
    SEPARATOR: PALETTE[1],
    PREFIX: PALETTE[2],
    AS_PUBLISHED: PALETTE[4],
    ON_TOKENS: PALETTE[3],
    ZERO_SEPARATOR: INK,
    TRUE_PAIRS: PALETTE[5],
}
_PAIRS_DRAWN = 60
_STEPS_DRAWN = 50
_LOOSELY = 0.1
"""Distance of a faithful re-implementation from a published loss, as a share of it. Trained models are used
here on what they were not trained on, where seeds differ by more than on their own task."""
_CHOSEN = "the number of steps was chosen by these numbers, so that agreement is no test of it"


def _curves_panel(switch: Switch, title: str, recipe: str) -> Panel[Laboratory]:
    """Make a panel of losses by pairs seen: means with 95 % bands, seeds as thin lines if several."""

    def measure(lab: Laboratory) -> PanelData:
        runs = prompted_runs(lab, recipe)
        by_seed = {name: [run.curves[switch, name] for run in runs] for name in LABELS if runs}
        curves = {name: average(losses) for name, losses in by_seed.items()}
        algorithms = least_squares_curves(lab)
        curves |= {name: loss for (which, name), loss in algorithms.items() if which == switch}
        rows: Rows = []
        for name, loss in curves.items():
            numbers = zip(loss.curve.tolist(), (1.96 * loss.curve_error).tolist(), strict=True)
            rows += [_row(switch, name, i, *pair) for i, pair in enumerate(numbers)][:_PAIRS_DRAWN]
        seeds = {
            name: [loss.curve[:_PAIRS_DRAWN].tolist() for loss in losses]
            for name, losses in by_seed.items()
            if len(losses) > 1
        }
        return PanelData(rows=rows, more={"seeds": seeds})

    def draw(axes: Axes, data: PanelData) -> None:
        for name, rows in itertools.groupby(data.rows, key=itemgetter("name")):
            numbers = map(itemgetter("place", "value", "half_width_95"), rows)
            places, means, half = zip(*numbers, strict=True)
            band(axes, places, means, half, **_line(name))
            for curve in data.more["seeds"].get(name, []):
                axes.plot(curve, color=COLORS[name], lw=0.5, alpha=0.5)
        axes.set(title=title, xlabel="pairs seen before", ylabel="loss of the answer")
        axes.set_xlim(0, _PAIRS_DRAWN - 1)
        axes.set_ylim(0, 3.5)
        if switch == "one task":
            _draw_published(axes, recipe)
        else:
            axes.axvline(SWITCH_AFTER, color=PALETTE[5], lw=0.8)

    return Panel(name=switch, measure=measure, draw=draw)


def _line(name: str) -> dict[str, Any]:
    if name in LABELS:
        dashes: Any = "solid"
    else:
        dashes = DASHED if name == AS_PUBLISHED else DOTTED
    label = LABELS.get(name, name.replace(", ", ",\n", 1).replace(" with a", "\nwith a"))
    return {"color": COLORS[name], "ls": dashes, "label": label, "lw": 1.5}


def _draw_published(axes: Axes, recipe: str) -> None:
    """Draw published losses as circles, named where no curve of ours has their colour."""
    drawn = axes.get_legend_handles_labels()[1]
    published = FEW_SHOT[recipe] | {AS_PUBLISHED: FEW_SHOT["least squares"][PAIRS]}
    for name, losses in published.items():
        own = LABELS.get(name)
        label = None if own is None or own in drawn else f"{own}, published"
        circle = {"color": COLORS[name], "mfc": "none", "ms": 4, "clip_on": False}
        axes.plot(list(losses), list(losses.values()), "o", label=label, **circle)


def _learning_panel(recipe: str) -> Panel[Laboratory]:
    """Make a panel of the norms of EOS and of the prefix while they are learned, a line per seed."""

    def measure(lab: Laboratory) -> PanelData | None:
        runs, rows = prompted_runs(lab, recipe), []
        if not runs:
            return None
        for name in (SEPARATOR, PREFIX):
            for prompt in (run.separator if name == SEPARATOR else run.prefix for run in runs):
                norms = prompt.norms.square().mean(1).sqrt().tolist()  # [step]
                steps = range(0, len(norms), max(1, len(norms) // _STEPS_DRAWN))
                rows += [_row("norm by step", name, step, norms[step], None) for step in steps]
        return PanelData(rows=rows, more={"seeds": len(runs)})

    def draw(axes: Axes, data: PanelData) -> None:
        axes.set(
            title="C: while EOS and prefix are learned", xlabel="step", ylabel="norm", yscale="log"
        )
        axes.axhline(TOKEN_NORM, color=PALETTE[5], lw=0.8)
        for name, rows in itertools.groupby(data.rows, key=itemgetter("name")):
            points = list(map(itemgetter("place", "value"), rows))
            for curve in np.split(np.array(points), data.more["seeds"]):
                axes.plot(*curve.T, color=COLORS[name], lw=1.2)

    return Panel(name="norm by step", measure=measure, draw=draw)


def _row(
    panel: str, name: str, place: int, value: float, half_width: float | None
) -> dict[str, Any]:
    """Write one number of a table; `place` is pairs seen before or a step, as the panel says."""
    numbers = {"place": place, "value": value, "half_width_95": half_width}
    return {"panel": panel, "name": name} | numbers


def _layout(panels: Sequence[PanelData]) -> Places:
    """Lay three panels out as a square, or two beside one another with room for a legend below."""
    return grid(2, height=6.2 if len(panels) > 2 else 4.6)(panels)


def _legend(drawing: Drawing) -> None:
    """Draw the legend in the place of a fourth panel, or below two."""
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    circle = Line2D([], [], ls="none", marker="o", mfc="none", ms=4, color=INK)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (0.57, 0.27)}
    if len(drawing.axes) < 3:
        place = {"loc": "outside lower center", "ncols": 2}
    drawing.legend([*handles, circle], [*labels, "published"], **place)


def _settings(lab: Laboratory) -> dict[str, Any]:
    tuning = {f"tuning {name}": value for name, value in vars(lab.settings.prompts).items()}
    return {"test sequences": lab.settings.few_shot_sequences} | tuning


def _algorithm_claims(lab: Laboratory) -> Iterable[Claim]:
    losses = {
        name: loss
        for (which, name), loss in least_squares_curves(lab).items()
        if which == "one task"
    }
    comparison = Comparison("few-shot", losses, {}, {})
    for seen in (4, 10, 59):
        yield _published_claim(
            [losses[AS_PUBLISHED].losses[:, seen]],
            FEW_SHOT["least squares"][PAIRS][seen],
            name=f"fig8-least-squares-at-{seen}",
            figure="Fig. 8",
            statement="Six Newton steps towards least squares are the published baseline",
            seen=seen,
            basis=_CHOSEN,
        )
    yield _ascent_claim(
        [losses[AS_PUBLISHED]],
        name="fig8-least-squares-ascent",
        figure="Fig. 8",
        statement="The loss of least squares, as published, rises at first",
        basis=_CHOSEN,
    )
    yield _no_ascent_claim(
        losses[TRUE_PAIRS],
        name="fig8-true-pairs-no-ascent",
        figure="Fig. 8",
        statement="Least squares on the true pairs never rises: the ascent is due to the others",
    )
    yield _no_ascent_claim(
        losses[ON_TOKENS],
        name="fig8-best-ridge-no-ascent",
        figure="beyond the paper",
        statement="With the best ridge least squares does not rise, whatever the pairs",
    )
    yield comparison.claim(
        ZERO_SEPARATOR,
        ON_TOKENS,
        name="fig8-zero-separator-helps-least-squares",
        figure="beyond the paper",
        statement="A zero between the pairs helps least squares (ratio of mean losses)",
        high=1.0,
        basis="smaller counts",
    )
    yield comparison.claim(
        TRUE_PAIRS,
        ZERO_SEPARATOR,
        name="fig8-true-pairs-are-better",
        figure="beyond the paper",
        statement="True pairs alone are better than pairs with a zero between them (ratio of mean losses)",
        high=1.0,
        basis="smaller counts",
    )


def _model_claims(
    lab: Laboratory, number: int, recipe: str, peak: tuple[int, float]
) -> Iterable[Claim]:
    """Judge what a trained model does; `peak` has the place of its highest loss, and a tolerance there."""
    runs, figure = prompted_runs(lab, recipe), f"Fig. {number}"
    by_seed = {name: [run.curves["one task", name] for run in runs] for name in LABELS}
    norms = [run.prefix.separator.norm().item() for run in runs if run.prefix.separator is not None]
    settings = lab.settings.prompts
    yield _ascent_claim(
        by_seed[PAIRS],
        name=f"fig{number}-ascent",
        figure=figure,
        statement="On pairs alone the loss rises at first",
    )
    yield Claim(
        name=f"fig{number}-separator-helps",
        figure=figure,
        statement="EOS between the pairs helps (ratio of mean losses)",
        measured=_ratio_of_prompts(by_seed[SEPARATOR], by_seed[PAIRS]),
        high=0.95,
        basis="about 0.8 published; a quarter of the gain counts",
    )
    yield Claim(
        name=f"fig{number}-prefix-helps",
        figure=figure,
        statement="A prefix helps at the first ten pairs (ratio of mean losses)",
        measured=_ratio_of_prompts(by_seed[PREFIX], by_seed[SEPARATOR], slice(0, 10)),
        high=0.97,
        basis="about 0.9 published; a quarter of the gain counts",
    )
    yield Claim(
        name=f"fig{number}-separator-is-small",
        figure=figure,
        statement="The learned EOS is next to zero (its norm, the largest of all seeds)",
        measured=max(norms, default=None),
        high=settings.separator_norm,
        basis=f"0.01 published, after 5000 steps; {settings.separator_norm:.2g} counts after "
        f"{settings.steps}, {settings.separator_norm / TOKEN_NORM:.0%} of a token's norm",
    )
    yield from _switch_claims(number, runs)
    if lab.as_published(recipe):
        yield from _published_claims(number, recipe, runs, peak)


def _ratio_of_prompts(
    with_more: Sequence[InContextLoss],
    with_less: Sequence[InContextLoss],
    positions: slice = slice(None),
) -> Estimate | None:
    """Compare the losses of the same models, seed by seed, with two prompts; None without models."""
    pairs = list(zip(with_more, with_less, strict=True))
    return loss_ratio(pairs, positions) if pairs else None


def _claims_of_model(lab: Laboratory, number: int, recipe: str, **settings: Any) -> list[Claim]:
    claims = _model_claims(lab, number, recipe, **settings)
    return [replace(claim, recipes=(recipe,)) for claim in claims]


def _switch_claims(number: int, runs: Sequence[PromptedRun]) -> Iterable[Claim]:
    """Judge that with EOS the loss jumps at the switch, and falls again."""
    losses = [run.curves["two tasks", SEPARATOR].losses for run in runs]
    yield _positive_claim(
        _mean([one[:, SWITCH_AFTER] - one[:, SWITCH_AFTER - 1] for one in losses]),
        name=f"fig{number}-switch-jump",
        figure=f"Fig. {number}",
        statement="With EOS the loss jumps where the task changes (difference of losses)",
    )
    yield _positive_claim(
        _mean([one[:, SWITCH_AFTER] - one[:, -1] for one in losses]),
        name=f"fig{number}-switch-relearning",
        figure=f"Fig. {number}",
        statement="With EOS the loss falls again after the change (difference of losses)",
    )


def _published_claims(
    number: int, recipe: str, runs: Sequence[PromptedRun], peak: tuple[int, float]
) -> Iterable[Claim]:
    """Judge models that were trained as long as published by the published numbers."""
    ends = [(name, 59, _LOOSELY) for name in LABELS]
    for name, seen, tolerance in ((PAIRS, *peak), *ends):
        yield _published_claim(
            [run.curves["one task", name].losses[:, seen] for run in runs],
            FEW_SHOT[recipe][name][seen],
            name=f"fig{number}-{name}-at-{seen}",
            figure=f"Fig. {number}",
            statement=f"The model {LABELS[name]}",
            seen=seen,
            tolerance=tolerance,
        )
    low, high = FEW_SHOT_SECOND_TASK
    yield _published_claim(
        [run.curves["two tasks", SEPARATOR].losses[:, SWITCH_AFTER] for run in runs],
        (low + high) / 2,
        name=f"fig{number}-second-task",
        figure=f"Fig. {number}",
        statement=f"The second task starts near {low} to {high}, with EOS",
        seen=SWITCH_AFTER,
        tolerance=_LOOSELY,
        basis=f"the middle of {low} to {high}, with EOS after {FEW_SHOT_SWITCHES[SEPARATOR]} pairs; ours "
        f"is after {SWITCH_AFTER}",
    )


def _published_claim(
    losses: Sequence[Tensor],
    published: float,
    *,
    statement: str,
    seen: int,
    tolerance: float = 0.0,
    **claim: Any,
) -> Claim:
    """Judge losses [sequence] of every seed, with some pairs seen, by a published mean."""
    return Claim(
        statement=f"{statement}: {published:g} with {seen} pairs seen",
        measured=_mean(losses, compared_with=FEW_SHOT_SEQUENCES),
        published=published,
        tolerance=tolerance * published,
        **claim,
    )


def _mean(losses: Sequence[Tensor], *, compared_with: int | None = None) -> Estimate | None:
    """Average losses [sequence] over seeds; the error counts both, and the sequences of another mean."""
    if not losses:
        return None
    samples = torch.stack(list(losses))
    ours, theirs = Estimate.of(samples), samples.mean(0).var() / (compared_with or math.inf)
    return Estimate.from_variances(ours.value, ours.error**2, theirs.item())


def _ascent_claim(curves: Sequence[InContextLoss], *, statement: str, **claim: Any) -> Claim:
    """Judge that losses rise above the first one, over seeds."""
    ascents = list(map(early_ascent, curves))
    if not ascents:
        return _positive_claim(
            None, statement=f"{statement} (height above the first loss)", **claim
        )
    heights = torch.tensor([ascent.height for ascent in ascents])
    errors = torch.tensor([ascent.error for ascent in ascents])
    sequences, seeds = errors.square().mean().item(), variance_over_seeds(heights).item()
    height = sum(ascent.height for ascent in ascents) / len(ascents)
    places = ", ".join(str(ascent.position - 1) for ascent in ascents)
    return _positive_claim(
        Estimate.from_variances(height, sequences, seeds),
        statement=f"{statement} (height above the first loss, with {places} pairs seen)",
        **claim,
    )


def _positive_claim(measured: Estimate | None, *, basis: str = "", **claim: Any) -> Claim:
    """Judge that a number is positive by more than noise."""
    if measured is None:
        return Claim(measured=None, low=0.0, basis=basis or "more than noise", **claim)
    noise = f"more than {STANDARD_ERRORS:g} standard errors of {measured.error:.2g}"
    return Claim(
        measured=measured.value,
        low=STANDARD_ERRORS * measured.error,
        basis=f"{noise}; {basis}" if basis else noise,
        **claim,
    )


def _no_ascent_claim(loss: InContextLoss, *, statement: str, **claim: Any) -> Claim:
    ascent = early_ascent(loss)
    return Claim(
        statement=f"{statement} (height above the first loss)",
        measured=Estimate(ascent.height, ascent.error),
        high=0.0,
        basis="no more than noise",
        **claim,
    )


def _caption(models: str) -> str:
    return (
        f"Loss of the answer by the number of pairs seen. {models} was trained on linear systems and never "
        "on pairs. It reads x_1, y_1, x_2, y_2, ... alone, with a learned vector (EOS) behind every pair, "
        "or with EOS and 20 learned vectors in front (prefix). Circles are published numbers, bands 95 % "
        "intervals, thin lines training seeds. Least squares of every token on the one before it takes "
        "(y_i, x_i+1) for an example too. The published curve is, as we infer, six steps of Newton's "
        "iteration towards its inverse: solved exactly, with the ridge of 0.001, it would rise to 18. "
        f"Best ridges are those on validation sequences. B: another matrix after {SWITCH_AFTER} pairs; in "
        f"the paper after {FEW_SHOT_SWITCHES[PAIRS]}, or {FEW_SHOT_SWITCHES[SEPARATOR]} with EOS. C: root "
        "mean square norm of EOS and of the prefix vectors while they are learned; the grey line is a "
        "token's."
    )


def _panels(recipe: str) -> tuple[Panel[Laboratory], ...]:
    return (
        _curves_panel("one task", "A: one task", recipe),
        _curves_panel("two tasks", "B: two tasks", recipe),
        _learning_panel(recipe),
    )


_SECONDS: dict[Scale, float] = {"smoke": 6.0, "small": 80.0, "paper": 3600.0}


fig8 = Figure(
    name="fig8",
    title="Fig. 8: seven softmax layers, used few-shot",
    summary="few-shot use of seven softmax layers",
    caption=_caption("A model of seven softmax layers"),
    recipes=("tf-7-few-shot",),
    needs_runs=False,
    panels=_panels("tf-7-few-shot"),
    layout=_layout,
    finish=_legend,
    settings=_settings,
    claims=lambda lab: [
        *_algorithm_claims(lab),
        # A tenth of the peak's 1.918 would let the 1.667 of predicting nothing pass.
        *_claims_of_model(lab, 8, "tf-7-few-shot", peak=(4, 0.05)),
    ],
    seconds=_SECONDS,
)

fig18 = Figure(
    name="fig18",
    title="Fig. 18: a softmax layer and a mesa layer, used few-shot",
    summary="few-shot use of a softmax and a mesa layer",
    caption=_caption("A model of a softmax layer and a mesa layer"),
    recipes=("hybrid-mesa-few-shot",),
    needs_runs=False,
    panels=_panels("hybrid-mesa-few-shot"),
    layout=_layout,
    finish=_legend,
    settings=_settings,
    claims=lambda lab: _claims_of_model(lab, 18, "hybrid-mesa-few-shot", peak=(5, _LOOSELY)),
    seconds=_SECONDS,
)
