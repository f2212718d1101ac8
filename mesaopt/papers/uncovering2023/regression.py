"""Figures 5B and 20: least squares and softmax kernel regression by dimension and noise."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from mesaopt.analysis import Estimate, Evaluation, Predictor, in_context_loss, tune
from mesaopt.config import LinearSystemConfig
from mesaopt.looks import DOTTED, LOOKS
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.plots import circles
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import (
    LOSS_PER_DIMENSION,
    LOSS_PER_DIMENSION_SEQUENCES,
)
from mesaopt.progress import Progress
from mesaopt.tasks import Batch, LinearSystem
from mesaopt.theory import kernel_regression, ridge_least_squares

PUBLISHED_NOISE = 0.01
"""Noise of the systems of figure 5B, the only ones with published numbers."""
_NOISE = (PUBLISHED_NOISE, 0.1, 0.25, 0.5)
Point = tuple[str, int, float, float]
"""Predictor, dimension, loss per dimension and half the width of its 95 % interval."""
PREDICTORS = ("least squares", "least squares, official", "kernel regression")
_LOOKS = {
    PREDICTORS[0]: LOOKS["least squares"],
    PREDICTORS[1]: replace(LOOKS["least squares"], dashes=DOTTED),
    PREDICTORS[2]: LOOKS["kernel regression"],
}


@measurement
def regression_losses(lab: Laboratory, noise: float) -> Rows:
    """Score least squares and kernel regression on systems of one noise and of every dimension."""
    rows: Rows = []
    dimensions = lab.settings.regression_dimensions
    for done, dim in enumerate(dimensions, start=1):
        rows += score_regression(dim, noise, lab.settings.regression_sequences)
        lab.on_progress(Progress(done, len(dimensions)))
    return rows


def score_regression(dim: int, noise: float, num_sequences: int) -> Rows:
    """Tune the predictors on validation sequences and score them on test sequences."""
    task = LinearSystem(
        LinearSystemConfig(dim=dim, length=4 * dim, noise_std=noise, state_clip=1000.0)
    )

    def ridge(value: float) -> Predictor:
        return lambda batch: ridge_least_squares(batch.observed, ridge=value)

    def official(batch: Batch) -> Tensor:
        return ridge_least_squares(batch.observed, ridge=best_ridge, pairs="official")

    def temperature(value: float) -> Predictor:
        return lambda batch: kernel_regression(batch.observed, inverse_temperature=value)

    def best(family: Any, lowest: float) -> float:
        tuning = Evaluation(num_sequences=256, split="validation")
        bounds = (lowest, 100.0)
        return tune(
            family, task, bounds=bounds, spacing="log", tolerance=0.03, evaluation=tuning
        ).value

    best_ridge, best_temperature = best(ridge, 1e-4), best(temperature, 1e-2)
    predictors = (ridge(best_ridge), official, temperature(best_temperature))
    tuned = (best_ridge, best_ridge, best_temperature)
    losses = in_context_loss(
        dict(zip(PREDICTORS, predictors, strict=True)),
        task,
        Evaluation(num_sequences=num_sequences),
    )
    return [
        {
            "dim": dim,
            "noise": noise,
            "predictor": name,
            "loss": losses[name].mean / dim,
            "error": losses[name].mean_error / dim,
            "tuned": value,
        }
        for name, value in zip(PREDICTORS, tuned, strict=True)
    ]


def draw_regression(axes: Axes, points: Sequence[Point], *, published: bool) -> None:
    """Draw losses per dimension, a line for each predictor, and published ones as circles."""
    for name in PREDICTORS:
        mine = [numbers for predictor, *numbers in points if predictor == name]
        dims, losses, half_widths = zip(*mine, strict=True)
        look = _LOOKS[name]
        line = look.line(label=name, lw=1.3)
        axes.errorbar(dims, losses, yerr=half_widths, **line)
        if published:
            circles(axes, LOSS_PER_DIMENSION.get(name, {}), look.color, size=6)
    axes.set(xlabel="dimension", ylabel="loss per dimension")


def _noise_panel(noise: float) -> Panel[Laboratory]:
    def measure(lab: Laboratory) -> PanelData:
        return PanelData(rows=regression_losses(lab, noise))

    def draw(axes: Axes, data: PanelData) -> None:
        points = [(r["predictor"], r["dim"], r["loss"], 1.96 * r["error"]) for r in data.rows]
        draw_regression(axes, points, published=noise == PUBLISHED_NOISE)
        axes.set_title(f"noise {noise:g}")
        axes.set_ylim(0, None)

    return Panel(name=f"noise {noise:g}", measure=measure, draw=draw)


def _shared_legend(drawing: Drawing) -> None:
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3)


def _fig20_settings(lab: Laboratory) -> dict[str, Any]:
    return {
        "test sequences": lab.settings.regression_sequences,
        "dimensions": ", ".join(map(str, lab.settings.regression_dimensions)),
    }


def _fig20_claims(lab: Laboratory) -> Iterable[Claim]:
    both = 1 + lab.settings.regression_sequences / LOSS_PER_DIMENSION_SEQUENCES
    for name, published in LOSS_PER_DIMENSION.items():
        rows = [row for row in regression_losses(lab, PUBLISHED_NOISE) if row["predictor"] == name]
        for dim, row in ((row["dim"], row) for row in rows):
            yield Claim(
                name=f"fig20-{name.split(',')[0].replace(' ', '-')}-{dim}",
                figure="Fig. 5B",
                statement=f"Linear systems of dimension {dim}, noise 0.01: {name} has a loss of "
                f"{published[dim]:g} per dimension",
                # The error of the difference: the published number has its own sequences.
                measured=Estimate(row["loss"], row["error"] * both**0.5),
                published=published[dim],
                tolerance=0.03 * published[dim],  # they tune on test sequences
            )
    for noise in _NOISE:
        # The last dimension comes last.
        largest = {row["predictor"]: row["loss"] for row in regression_losses(lab, noise)}
        yield Claim(
            name=f"fig20-curse-{noise:g}",
            figure="Fig. 20",
            statement=f"Noise {noise:g}: at the largest dimension kernel regression is worse than least "
            "squares (ratio of losses)",
            measured=largest["kernel regression"] / largest["least squares, official"],
            low=1.0,
            basis="larger counts; 5.1 at dimension 60 and noise 0.01 in Fig. 5B",
        )


fig20 = Figure(
    name="fig20",
    title="Fig. 20: least squares and softmax kernel regression by dimension and noise",
    summary="least squares and kernel regression by dimension",
    caption=(
        "Loss per dimension on linear systems of four times as many states as dimensions, with 95 % "
        "intervals. The ridge and the inverse temperature are the best on validation sequences for every "
        "point; the authors took the best on test sequences. Circles are their numbers, known for noise "
        "0.01 only (Fig. 5B)."
    ),
    panels=tuple(map(_noise_panel, _NOISE)),
    layout=grid(2, height=5.6),
    finish=_shared_legend,
    settings=_fig20_settings,
    claims=_fig20_claims,
    seconds={"smoke": 4.0, "small": 40.0, "paper": 400.0},
)
