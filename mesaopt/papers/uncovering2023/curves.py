"""What the comparison figures draw and claim alike."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from mesaopt.analysis import InContextLoss
from mesaopt.config import RunConfig
from mesaopt.papers.claims import STANDARD_ERRORS, Claim, interval
from mesaopt.papers.figures import PALETTE
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LEAST_SQUARES,
    OFFICIAL,
    Comparison,
    Laboratory,
)
from mesaopt.papers.uncovering2023.noise import variance_over_seeds, widened
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.recipes import RECIPES
from mesaopt.training import Run

Rows = list[dict[str, Any]]

_PUBLISHED_SEQUENCES = 1280
"""Test sequences behind a published curve: five batches of 256."""

FAITHFUL = 0.05
"""How far a faithful re-implementation may be from a published mean loss, as a share of it: another seed
of training moves most of them by 1 to 3 %."""

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


_COLORS = {
    "lsa-1": PALETTE[0],
    "lsa-2": PALETTE[1],
    "lsa-4": PALETTE[3],
    "lsa-6": "#a97c50",
    "lsa-6-key-40": "#7d5530",
    "mesa-1": PALETTE[2],
    "tf-3": PALETTE[1],
    "tf-7": PALETTE[0],
    "tf-12": PALETTE[3],
    "hybrid-mesa": PALETTE[2],
    GRADIENT_STEP: PALETTE[5],
    "3-layer steps": "#c77fb8",
    "steps on one observation": "#c77fb8",
    "steps on states": "#c77fb8",
}
_STEPS_COLOR = "#3aa6b9"
_LEAST_SQUARES_COLOR = PALETTE[4]


def color_of(name: str) -> str:
    """Give what a model or baseline is drawn in, in every panel.

    Example:
        >>> color_of("fixed-lsa-1") == color_of("lsa-1")
        True
    """
    name = _base_name(name)
    if name.startswith(LEAST_SQUARES):
        return _LEAST_SQUARES_COLOR
    return _COLORS.get(name, _STEPS_COLOR)


def _base_name(name: str) -> str:
    """Leave out the task, and whether the newest pair is."""
    for prefix in ("contracting-", "fixed-"):
        name = name.removeprefix(prefix)
    for suffix in ("-partial", "-nonlinear", OFFICIAL):
        name = name.removesuffix(suffix)
    return name


def label_of(name: str) -> str:
    """Say what a recipe is, whatever task it is trained on; other names stay as they are.

    Example:
        >>> label_of("contracting-lsa-2"), label_of("least squares")
        ('2 linear layers', 'least squares')
    """
    return LABELS.get(_base_name(name), name)


def draw_positions(axes: Axes, comparison: Comparison, names: Sequence[str]) -> Rows:
    """Draw loss by position: means with 95 % bands, seeds as thin lines, the authors' numbers as circles.

    Args:
        axes: where.
        comparison: the losses.
        names: recipes and baselines to draw, those there are; baselines without training are dashed.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    for name in (name for name in names if name in comparison.losses):
        loss, color = comparison.losses[name], color_of(name)
        positions = np.array(loss.positions)
        mean, half = loss.curve.numpy(), 1.96 * loss.curve_error.numpy()
        axes.fill_between(
            positions, np.maximum(mean - half, mean / 10), mean + half, color=color, alpha=0.2, lw=0
        )
        axes.plot(positions, mean, color=color, ls=_dashes(name, comparison), label=label_of(name))
        for one in comparison.seed_losses.get(name, []):
            axes.plot(positions, one.curve.numpy(), color=color, lw=0.5, alpha=0.5)
        panel = f"loss by position, {comparison.task} task"
        rows += [
            _row(panel, name, int(t), float(m), float(h))
            for t, m, h in zip(positions, mean, half, strict=True)
        ]
        published = CURVES[comparison.task].get(name)
        if published is not None and published.at:
            axes.plot(*zip(*published.at.items(), strict=True), "o", color=color, mfc="none", ms=4)
    axes.set(yscale="log", xlabel="position in the sequence", ylabel="in-context loss")
    axes.set_xlim(1, None)
    return rows


def draw_learning(axes: Axes, laboratory: Laboratory, names: Sequence[str]) -> Rows:
    """Draw test losses while training, one line per seed.

    Args:
        axes: where.
        laboratory: the runs.
        names: recipes to draw, those there are.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    for name in (name for name in names if name in laboratory.runs):
        for seed, run in enumerate(laboratory.runs[name]):
            steps = [line["step"] for line in run.metrics]
            losses = [line["test_loss"] for line in run.metrics]
            label = label_of(name) if seed == 0 else None
            axes.plot(steps, losses, color=color_of(name), label=label, lw=1.3)
            rows += [
                _row("test loss by step", f"{name}, seed {seed}", step, loss, None)
                for step, loss in zip(steps, losses, strict=True)
            ]
    axes.set(yscale="log", xlabel="optimiser step", ylabel="test loss")
    return rows


def settings_of(
    laboratory: Laboratory, names: Sequence[str], *, sequences: int | None = None, **more: Any
) -> dict[str, Any]:
    """Say what a figure was made from.

    Args:
        laboratory: the runs.
        names: recipes of the figure.
        sequences: test sequences behind its numbers; None for none.
        **more: to be added.

    Returns:
        For the line under the figure.
    """
    runs = {name: laboratory.runs[name] for name in names if name in laboratory.runs}
    return {
        "scale": laboratory.plan.scale,
        **({} if sequences is None else {"test sequences": sequences}),
        "steps": {name: trained[0].config.train.steps for name, trained in runs.items()},
        "training seeds": {name: len(trained) for name, trained in runs.items()},
        **{name: float(f"{value:.3g}") for name, value in more.items()},
    }


def published_means(
    laboratory: Laboratory,
    comparison: Comparison,
    figure: str,
    names: Sequence[str],
    *,
    tolerance: float = FAITHFUL,
) -> list[Claim]:
    """Judge mean losses against published ones; models only where they were trained as long.

    Args:
        laboratory: the runs.
        comparison: the losses.
        figure: where the numbers stand.
        names: recipes and baselines.
        tolerance: share of the published number that a faithful re-implementation may be off.

    Returns:
        One claim for each that can be judged.
    """
    claims = []
    for name in names:
        published = CURVES[comparison.task].get(name)
        if published is None or name not in comparison.losses:
            continue
        runs = laboratory.runs.get(name, [])
        if runs and not trained_as_published(runs):
            continue
        low, high, basis = interval(
            published.mean,
            tolerance=tolerance * published.mean,
            noise=_error_of_difference(comparison, name),
        )
        claims.append(
            laboratory.claim(
                f"{comparison.task}-{name.replace(', ', '-').replace(' ', '-')}-mean",
                figure,
                f"{comparison.task} task, {label_of(name)}: the mean loss is {published.mean:g}",
                value=comparison.losses[name].mean,
                low=low,
                high=high,
                basis=basis,
            )
        )
    return claims


def trained_as_published(runs: Sequence[Run]) -> bool:
    """Say whether there are runs, and all were trained as published.

    Args:
        runs: of any recipes.

    Returns:
        Whether each training differs from its recipe's in nothing but the test sequences.
    """
    return bool(runs) and all(_as_published(run.config) for run in runs)


def _as_published(config: RunConfig) -> bool:
    published = RECIPES[config.recipe].config.train
    return config.train == replace(
        published, evaluation_sequences=config.train.evaluation_sequences
    )


def ratio_claim(
    laboratory: Laboratory,
    comparison: Comparison,
    name: str,
    figure: str,
    statement: str,
    first: str,
    second: str,
    *,
    low: float | None = None,
    high: float | None = None,
    basis: str,
    positions: slice = slice(None),
) -> list[Claim]:
    """Judge the ratio of two predictors' losses on the same sequences, if both are there.

    Args:
        laboratory: knows the scale.
        comparison: the losses.
        name: short, unique.
        figure: where it stands.
        statement: what is claimed.
        first: predictor in the numerator.
        second: predictor in the denominator.
        low: smallest ratio that passes, before noise.
        high: largest ratio that passes, before noise.
        basis: where the limits come from.
        positions: places along the sequence that count.

    Returns:
        The claim; its limits are widened by three standard errors of the ratio, over test sequences and
        over training seeds where there are several.
    """
    if first not in comparison.losses or second not in comparison.losses:
        return []
    ratio, error = _ratio(comparison, first, second, positions)
    return [
        laboratory.claim(
            name,
            figure,
            statement,
            value=ratio,
            **widened(low, high, error),
            basis=f"{basis}, and {STANDARD_ERRORS:g} standard errors of {error:.2g}",
        )
    ]


def _error_of_difference(comparison: Comparison, name: str) -> float:
    """Standard error of our mean loss less theirs: test sequences of both, and our training seeds.

    Theirs is one training, whose own luck is in `FAITHFUL`.
    """
    losses = comparison.losses[name].losses.mean(1)
    sequences = losses.var() * (1 / len(losses) + 1 / _PUBLISHED_SEQUENCES)
    means = torch.tensor([one.mean for one in comparison.seed_losses.get(name, [])])
    return (sequences + variance_over_seeds(means)).sqrt().item()


def _ratio(
    comparison: Comparison, first: str, second: str, positions: slice
) -> tuple[float, float]:
    """Ratio of mean losses on the same sequences, and its standard error.

    Its variance is that over test sequences, and over the training seeds of both where there are several.
    """

    def mean_losses(loss: InContextLoss) -> Tensor:
        return loss.losses[:, positions].mean(1)

    a, b = (mean_losses(comparison.losses[name]) for name in (first, second))
    ratio = a.mean() / b.mean()
    variance = ((a - ratio * b).var() / b.mean() ** 2) / len(a)
    for name, slope in ((first, 1 / b.mean()), (second, ratio / b.mean())):
        seeds = [mean_losses(one).mean() for one in comparison.seed_losses.get(name, [])]
        variance = variance + slope**2 * variance_over_seeds(torch.tensor(seeds))
    return ratio.item(), variance.sqrt().item()


def _dashes(name: str, comparison: Comparison) -> Any:
    """Models are solid, baselines dashed, those without the newest pair dotted."""
    if name in comparison.seed_losses:
        return "solid"
    return (0, (1, 1.5)) if name.endswith(OFFICIAL) else (0, (4, 2))


def _row(
    panel: str, name: str, place: int, loss: float, half_width: float | None
) -> dict[str, Any]:
    """One number of a table; `place` is a position or a step, as the panel says."""
    numbers = {"place": place, "loss": loss, "half_width_95": half_width}
    return {"panel": panel, "predictor": name} | numbers
