"""Figure 5: softmax layers replaced by linear ones, and what softmax costs as dimension grows."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mesaopt.analysis import Linearization, linearize
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import INK, PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import fig20
from mesaopt.papers.uncovering2023.curves import settings_of, trained_as_published
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import variance_over_seeds
from mesaopt.papers.uncovering2023.published import (
    KERNEL_PER_DIMENSION,
    LEAST_SQUARES_PER_DIMENSION,
    LINEARISED,
)
from mesaopt.tasks import make_task
from mesaopt.training import Run

DIMENSIONS = (4, 6, 10, 20, 40, 60)
MODELS = tuple(f"tf-7-dim-{dim}" for dim in DIMENSIONS)
STEPS = {"smoke": 2, "small": 1000, "paper": 2000}
"""Of the distillation, by scale."""
_SEQUENCES = {"smoke": 256, "small": 2560, "paper": 10_240}
_ZERO_SEQUENCES = 256  # that the loss of predicting zero is measured on
_NOISE = 0.01  # of panel B
_OTHER_TRAINING = 0.15
"""How far another training may move a published ratio, as a share of it: theirs spread by 0.004 to 0.45."""
_COLORS = dict(zip(DIMENSIONS, PALETTE, strict=True))


_BASELINES = {"smoke": 3.0, "small": 15.0, "paper": 600.0}
"""Seconds of panel B, by scale."""
_STEP = {4: 0.03, 6: 0.04, 10: 0.07, 20: 0.5, 40: 1.4, 60: 2.5}
"""Seconds of a step of distillation on two cores, by dimension."""
_LEARNED = 0.5
"""Share of the loss of predicting zero below which a model has learned something."""


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    seeds = {training.recipe: training.seeds for training in plan.trainings}
    steps = sum(seeds.get(f"tf-7-dim-{dim}", 0) * _STEP[dim] for dim in DIMENSIONS)
    return _BASELINES[plan.scale] + STEPS[plan.scale] * steps


@dataclass(frozen=True)
class Ratios:
    """Losses with one layer linear, divided by those of the models as they were."""

    dim: int
    runs: list[Run]
    by_seed: Float[Tensor, "seed layer"]
    unexplained: Float[Tensor, "seed layer"]
    errors: Float[Tensor, " layer"]
    """Standard error of the mean: over test sequences, and over seeds where there are several."""
    losses: list[float]
    """Of the models as they were, by seed: a model that learned nothing loses nothing by being linear."""

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """Mean over seeds."""
        return self.by_seed.mean(0)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Linearise the layers of every model, tune and score the baselines, draw, judge.

    Args:
        laboratory: the runs.
        report: told the steps of distillation done.

    Returns:
        The figure and its claims. Those about panel B stand with figure 20.
    """
    ratios = _measure(laboratory, report)
    figure = Figure(figsize=(7.6, 3.7))
    left, right = figure.subplots(1, 2)
    rows = _draw_ratios(left, ratios) + _draw_baselines(right, laboratory)
    result = FigureResult(
        id="uncovering2023-fig5",
        title="Fig. 5: linear layers in the place of softmax layers, and the price of softmax",
        caption=(
            "A: each softmax layer by itself is replaced by a linear one that learned to imitate "
            "it, and the loss divided by that of the model as it was; lines are means, with 95 % "
            "intervals over test sequences and, where there are several, training seeds; dots are "
            "single seeds, circles the authors' means. The authors take 15,000 steps of AdamW at a "
            "constant rate; here inputs are whitened and the rate falls, to do with fewer "
            "steps. B: loss per dimension of ridge regression and of softmax kernel regression, as in "
            "Fig. 20 for noise 0.01; circles are the authors'."
        ),
        settings=settings_of(laboratory, MODELS, sequences=_SEQUENCES[laboratory.plan.scale])
        | {"steps of distillation": STEPS[laboratory.plan.scale]}
        | {f"loss, dimension {r.dim}": _in_words(r.losses) for r in ratios}
        | {f"missed, dimension {r.dim}": _in_words(r.unexplained.mean(0).tolist()) for r in ratios},
        rows=rows,
        figure=figure,
    )
    claims = [claim for one in ratios for claim in judge(laboratory, one)]
    return Results(figures=[result], claims=claims)


def linearise_run(run: Run, scale: str, report: Report, done: int, total: int) -> Linearization:
    """Linearise the layers of a run's model.

    Args:
        run: of a model over sequences.
        scale: says how long.
        report: told the steps done, `done` of `total` before.
        done: see above.
        total: see above.

    Returns:
        Ratios and layers.
    """
    return linearize(
        run.model.cpu(),
        make_task(run.config.task),
        steps=STEPS[scale],
        num_sequences=_SEQUENCES[scale],
        seed=run.config.seed,
        on_progress=lambda step, _: report(done + step, total),
    )


def _measure(laboratory: Laboratory, report: Report) -> list[Ratios]:
    scale = laboratory.plan.scale
    chosen = {dim: laboratory.runs.get(f"tf-7-dim-{dim}", []) for dim in DIMENSIONS}
    total = STEPS[scale] * sum(map(len, chosen.values()))
    done, ratios = 0, []
    for dim, runs in chosen.items():
        found = []
        for run in runs:
            found.append(linearise_run(run, scale, report, done, total))
            done += STEPS[scale]
        if found:
            ratios.append(ratios_of(dim, runs, found))
    return ratios


def ratios_of(dim: int, runs: list[Run], found: list[Linearization]) -> Ratios:
    """Put seeds together.

    Args:
        dim: of a state.
        runs: one per seed.
        found: what came of each.

    Returns:
        Means and errors.
    """
    by_seed = torch.stack([one.ratios for one in found])
    variance = torch.stack([one.ratio_errors for one in found]).square().mean(0) / len(found)
    variance = variance + variance_over_seeds(by_seed)
    missed = torch.stack([one.unexplained for one in found])
    losses = [one.loss for one in found]
    return Ratios(dim, runs, by_seed, missed, variance.sqrt(), losses)


def _draw_ratios(axes: Axes, ratios: list[Ratios]) -> list[dict[str, Any]]:
    rows = []
    for one in ratios:
        color, layers = _COLORS[one.dim], range(1, len(one.mean) + 1)
        half = 1.96 * one.errors
        label = f"dimension {one.dim}"
        axes.errorbar(layers, one.mean, yerr=half, color=color, label=label, lw=1.3)
        for seed in one.by_seed:
            axes.plot(layers, seed, ".", color=color, ms=4)
        if one.dim in LINEARISED:
            axes.plot(layers, LINEARISED[one.dim], "o", color=color, mfc="none", ms=6)
        rows += [
            _row("A, ratio of losses", "one layer linear", one.dim, layer, float(mean), float(h))
            for layer, mean, h in zip(layers, one.mean, half, strict=True)
        ]
    axes.axhline(1, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.set(title="A: one layer made linear", xlabel="layer", ylabel="loss / loss with softmax")
    axes.set_yscale("log")
    axes.set_yticks([1, 1.5, 2, 3, 4, 6], labels=["1", "1.5", "2", "3", "4", "6"])
    axes.minorticks_off()
    axes.set_ylim(min(0.95, axes.get_ylim()[0]), None)
    if ratios:
        axes.legend()
    return rows


def _draw_baselines(axes: Axes, laboratory: Laboratory) -> list[dict[str, Any]]:
    scale = laboratory.plan.scale
    published = {
        "least squares": {},
        "least squares, official": LEAST_SQUARES_PER_DIMENSION,
        "kernel regression": KERNEL_PER_DIMENSION,
    }
    points = [p for dim in fig20.DIMENSIONS[scale] for p in fig20.measured(dim, _NOISE, scale)]
    rows = []
    for color, (name, values) in zip(PALETTE, published.items(), strict=False):
        mine = [p for p in points if p.predictor == name]
        dims, half = [p.dim for p in mine], [1.96 * p.error for p in mine]
        axes.errorbar(
            dims, [p.loss for p in mine], yerr=half, color=color, label=name, marker="o", ms=3
        )
        axes.plot(list(values.keys()), list(values.values()), "o", color=color, mfc="none", ms=6)
        rows += [
            _row("B, loss per dimension", name, p.dim, None, p.loss, h)
            for p, h in zip(mine, half, strict=True)
        ]
    axes.set(title="B: without training", xlabel="dimension", ylabel="loss per dimension")
    axes.set_ylim(0, 0.155)
    axes.legend(loc="upper left")
    return rows


def _row(
    panel: str, name: str, dim: int, layer: int | None, value: float, half_width: float
) -> dict[str, Any]:
    where = {"panel": panel, "what": name, "dimension": dim, "layer": layer}
    return where | {"value": value, "half_width_95": half_width}


def judge(laboratory: Laboratory, ratios: Ratios) -> list[Claim]:
    """Judge the order of the layers, and published ratios where trained as published, and not in vain.

    Args:
        laboratory: knows the scale.
        ratios: of one dimension.

    Returns:
        The claims.
    """
    claims = _order(laboratory, ratios)
    published = LINEARISED.get(ratios.dim)
    if published is None or not trained_as_published(ratios.runs):
        return claims
    if max(ratios.losses) > _LEARNED * zero_loss(ratios.runs[0]):
        return claims
    for layer, (value, error, wanted) in enumerate(
        zip(ratios.mean.tolist(), ratios.errors.tolist(), published, strict=True), start=1
    ):
        width = _OTHER_TRAINING * wanted + STANDARD_ERRORS * error
        claims.append(
            laboratory.claim(
                f"fig5-dim-{ratios.dim}-layer-{layer}",
                "Fig. 5A",
                f"Dimension {ratios.dim}: with layer {layer} linear the loss is at most {wanted:g} times "
                "as large",
                value=value,
                high=wanted + width,
                basis=f"{wanted:g} published, {_OTHER_TRAINING:.0%} for another training, and "
                f"{STANDARD_ERRORS:g} standard errors of {error:.2g}; layers that were distilled better "
                "lose less",
            )
        )
    return claims


def zero_loss(run: Run) -> float:
    """Give the mean test loss of predicting zero on the task of a run."""
    batch = make_task(run.config.task).sample(_ZERO_SEQUENCES, seed=0, split="test")
    return batch.losses(torch.zeros_like(batch.targets)).mean().item()


def _order(laboratory: Laboratory, ratios: Ratios) -> list[Claim]:
    """The first layer, which binds tokens, needs its softmax; later ones do not, and ever less."""
    mean, errors, dim = ratios.mean, ratios.errors, ratios.dim
    rest = errors[1:].max()  # at least the error of a mean over later layers
    first, second, later = (mean[0], errors[0]), (mean[1], errors[1]), (mean[2:].mean(), rest)
    largest = mean[1:].max(), rest
    ordered, ordered_noise = _quotient(first, largest)
    share, share_noise = _quotient(later, first)
    deeper, deeper_noise = _quotient(second, later)
    widened = f"counts, and {STANDARD_ERRORS:g} standard errors"
    return [
        laboratory.claim(
            f"fig5-dim-{dim}-first-layer",
            "Fig. 5A",
            f"Dimension {dim}: no layer needs its softmax as much as the first, which binds tokens (its "
            "ratio of losses over the largest other)",
            value=ordered,
            low=1.1 - ordered_noise,
            basis=f"1.31, 1.51, 1.58 and 2.33 published for dimensions 4, 6, 10, 20; 1.1 {widened}",
        ),
        laboratory.claim(
            f"fig5-dim-{dim}-later-layers",
            "Fig. 5A",
            f"Dimension {dim}: layers 3 to 7 lose little by being linear (mean of their ratios of losses "
            "over that of the first)",
            value=share,
            high=0.75 + share_noise,
            basis=f"0.56, 0.54, 0.48 and 0.33 published; 0.75 {widened}",
        ),
        laboratory.claim(
            f"fig5-dim-{dim}-second-layer",
            "Fig. 5A",
            f"Dimension {dim}: the second layer loses more than those behind it (its ratio of losses over "
            "their mean)",
            value=deeper,
            low=1.05 - deeper_noise,
            basis=f"1.36, 1.23, 1.32 and 1.30 published; 1.05 {widened}",
        ),
    ]


def _quotient(above: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Divide two numbers with errors; give three standard errors of the result too."""
    (a, error_a), (b, error_b) = above, below
    relative = ((error_a / a) ** 2 + (error_b / b) ** 2).sqrt()
    return (a / b).item(), STANDARD_ERRORS * (a / b * relative).item()


def _in_words(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
