"""Figures 5B and 20: least squares and softmax kernel regression as dimension and noise grow."""

import functools
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mesaopt.analysis import Evaluation, InContextLoss, Predictor, in_context_loss, tune
from mesaopt.config import LinearSystemConfig
from mesaopt.papers.claims import interval
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import (
    KERNEL_PER_DIMENSION,
    LEAST_SQUARES_PER_DIMENSION,
)
from mesaopt.tasks import LinearSystem
from mesaopt.theory import kernel_regression, ridge_least_squares

_NOISE = (0.01, 0.1, 0.25, 0.5)
DIMENSIONS = {"smoke": (4, 10), "small": (4, 6, 10, 20, 40), "paper": (4, 6, 10, 20, 40, 60)}
_SEQUENCES = {"smoke": 256, "small": 256, "paper": 1024}


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return {"smoke": 4.0, "small": 40.0, "paper": 400.0}[plan.scale]


@dataclass(frozen=True)
class Point:
    """Losses per dimension of one predictor at one dimension and noise."""

    dim: int
    noise: float
    predictor: str
    loss: float
    error: float
    tuned: float
    """The ridge or the inverse temperature, found on validation sequences."""


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Tune and score both predictors everywhere, draw, judge.

    Args:
        laboratory: knows the plan; nothing is trained.
        report: told the points done.

    Returns:
        The figure and its claims.
    """
    scale = laboratory.plan.scale
    settings = [(noise, dim) for noise in _NOISE for dim in DIMENSIONS[scale]]
    points: list[Point] = []
    for done, (noise, dim) in enumerate(settings):
        points += measured(dim, noise, scale)
        report(done + 1, len(settings))
    claims = []
    for name, published in (
        ("least squares, official", LEAST_SQUARES_PER_DIMENSION),
        ("kernel regression", KERNEL_PER_DIMENSION),
    ):
        for point in points:
            if point.predictor != name or point.noise != 0.01:
                continue
            low, high, basis = interval(
                published[point.dim],
                tolerance=0.03 * published[point.dim],  # they tune on test sequences
                noise=point.error * 2**0.5,  # of the difference, or more: they have 640 sequences
            )
            claims.append(
                laboratory.claim(
                    f"fig20-{name.split(',')[0].replace(' ', '-')}-{point.dim}",
                    "Fig. 5B",
                    f"Linear systems of dimension {point.dim}, noise 0.01: {name} has a loss of "
                    f"{published[point.dim]:g} per dimension",
                    value=point.loss,
                    low=low,
                    high=high,
                    basis=basis,
                )
            )
    largest = max(DIMENSIONS[scale])
    at = {(p.predictor, p.noise, p.dim): p.loss for p in points}
    for noise in _NOISE:
        official = at["least squares, official", noise, largest]
        ratio = at["kernel regression", noise, largest] / official
        claims.append(
            laboratory.claim(
                f"fig20-curse-{noise:g}",
                "Fig. 20",
                f"Noise {noise:g}: at the largest dimension kernel regression is worse than least squares "
                "(ratio of losses)",
                value=ratio,
                low=1.0,
                basis="larger counts; 5.1 at dimension 60 and noise 0.01 in Fig. 5B",
            )
        )
    return Results(figures=[_draw(laboratory, points)], claims=claims)


@functools.cache
def measured(dim: int, noise: float, scale: str) -> tuple[Point, ...]:
    """Give the points of a dimension and noise, measured for the first figure that asks.

    Args:
        dim: of a state.
        noise: standard deviation of the process noise.
        scale: says on how many sequences.

    Returns:
        One point per predictor.
    """
    return tuple(measure(dim, noise, _SEQUENCES[scale]))


def measure(dim: int, noise: float, num_sequences: int) -> list[Point]:
    """Tune the predictors on validation sequences and score them on test sequences.

    Args:
        dim: of a state; sequences have four times as many.
        noise: standard deviation of the process noise.
        num_sequences: of each kind.

    Returns:
        One point per predictor.
    """
    task = LinearSystem(
        LinearSystemConfig(dim=dim, length=4 * dim, noise_std=noise, state_clip=1000.0)
    )

    def ridge(value: float) -> Predictor:
        return lambda batch: ridge_least_squares(batch.observed, ridge=value)

    def temperature(value: float) -> Predictor:
        return lambda batch: kernel_regression(batch.observed, inverse_temperature=value)

    tuning = Evaluation(num_sequences=256, split="validation")
    search = {"spacing": "log", "tolerance": 0.03, "evaluation": tuning}
    best_ridge = tune(ridge, task, bounds=(1e-4, 100.0), **search).value  # type: ignore[arg-type]
    best_temperature = tune(temperature, task, bounds=(1e-2, 100.0), **search).value  # type: ignore[arg-type]
    predictors: dict[str, tuple[Predictor, float]] = {
        "least squares": (ridge(best_ridge), best_ridge),
        "least squares, official": (
            lambda batch: ridge_least_squares(batch.observed, ridge=best_ridge, pairs="official"),
            best_ridge,
        ),
        "kernel regression": (temperature(best_temperature), best_temperature),
    }
    losses: dict[str, InContextLoss] = in_context_loss(
        {name: predict for name, (predict, _) in predictors.items()},
        task,
        Evaluation(num_sequences=num_sequences),
    )
    return [
        Point(dim, noise, name, losses[name].mean / dim, losses[name].mean_error / dim, tuned)
        for name, (_, tuned) in predictors.items()
    ]


def _draw(laboratory: Laboratory, points: list[Point]) -> FigureResult:
    figure = Figure(figsize=(7.6, 5.6))
    published = {
        "least squares, official": LEAST_SQUARES_PER_DIMENSION,
        "kernel regression": KERNEL_PER_DIMENSION,
    }
    axes_of = dict(zip(_NOISE, figure.subplots(2, 2).ravel(), strict=True))
    names = list(dict.fromkeys(p.predictor for p in points))
    for noise, axes in axes_of.items():
        for color, name in zip(PALETTE, names, strict=False):
            mine = [p for p in points if p.noise == noise and p.predictor == name]
            dims = [p.dim for p in mine]
            axes.errorbar(
                dims,
                [p.loss for p in mine],
                yerr=[1.96 * p.error for p in mine],
                color=color,
                label=name,
                marker="o",
                ms=3,
                lw=1.3,
            )
            if noise == 0.01 and name in published:
                values = published[name]
                axes.plot(values.keys(), values.values(), "o", color=color, mfc="none", ms=6)
        axes.set(title=f"noise {noise:g}", xlabel="dimension", ylabel="loss per dimension")
        axes.set_ylim(0, None)
    handles, labels = axes_of[0.01].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return FigureResult(
        id="uncovering2023-fig20",
        title="Fig. 20: least squares and softmax kernel regression by dimension and noise",
        caption=(
            "Loss per dimension on linear systems of four times as many states as dimensions, "
            "with 95 % intervals. The ridge and the inverse temperature are the best on "
            "validation sequences for every point; the authors took the best on test sequences. "
            "Circles are their numbers, known for noise 0.01 only (Fig. 5B)."
        ),
        settings={
            "scale": laboratory.plan.scale,
            "test sequences": _SEQUENCES[laboratory.plan.scale],
            "dimensions": ", ".join(map(str, np.unique([p.dim for p in points]))),
        },
        rows=[vars(point) for point in points],
        figure=figure,
    )
