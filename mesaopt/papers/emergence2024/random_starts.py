"""Training from drawn weights: figures 5 and 6 are alike."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from mesaopt.config import StartName
from mesaopt.papers.emergence2024.drawing import Rows, draw_matrix, matrix_rows
from mesaopt.papers.emergence2024.measure import DIM, LENGTH, Emergence, theory
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Report
from mesaopt.tasks import generator, initial_states
from mesaopt.theory.ar_process import Trajectory, Weights, descend, normal, population_loss

INITIAL_STDS = (0.01, 0.1, 0.3)
"""sigma_w; the paper's own values are not known to us."""

_FLOOR = 1e-9


@dataclass(frozen=True)
class RandomStarts:
    """Training all blocks on the population from weights of every sigma_w and seed."""

    law: StartName
    learning_rate: float
    run: Trajectory
    """With axes [step, sigma_w, seed]."""

    @property
    def excess(self) -> Float[np.ndarray, "step std seed"]:
        """Loss above the least of any diagonal layer, as a share of the targets' energy."""
        closed = theory(self.law)
        energy = DIM / 2 * (LENGTH - 2) * closed.k0
        return (self.run.loss - closed.minimal_loss) / energy

    @property
    def off_diagonal(self) -> Float[np.ndarray, "std seed"]:
        """Largest entry off the diagonals of V and K at the end, relative to the diagonals."""
        return self.run.last.off_diagonal

    @property
    def other_blocks(self) -> Float[np.ndarray, "std seed"]:
        """Largest entry of the other blocks at the end, relative to the diagonals of V and K."""
        last = self.run.last
        core = Weights(last.value_block, last.key_block)
        rest = last.moved(core.embedded(), -1.0)
        largest = np.maximum(
            np.abs(rest.output_value).max((-2, -1)), np.abs(rest.key_query).max((-2, -1))
        )
        on = [
            np.abs(np.diagonal(x, axis1=-2, axis2=-1)).max(-1)
            for x in (core.output_value, core.key_query)
        ]
        return largest / np.minimum(*on)


def train_from_random(
    measured: Emergence, law: StartName, report: Report, *, learning_rate: float, steps: int
) -> RandomStarts:
    """Train all blocks on the exact population.

    Args:
        measured: knows how many seeds.
        law: of x_1, at scale 1.
        report: told the steps done.
        learning_rate: of gradient descent.
        steps: of gradient descent.

    Returns:
        The run.
    """
    engine = population_loss(initial_states(law), dim=DIM, length=LENGTH, blocks="all")
    starts = [
        normal(DIM, std=std, random=generator(seed, f"weights/{std}"))
        for std in INITIAL_STDS
        for seed in range(measured.plan.weight_seeds)
    ]
    shape = (len(INITIAL_STDS), measured.plan.weight_seeds)
    start = Weights(
        np.concatenate([w.output_value for w in starts]).reshape(*shape, DIM, 2 * DIM),
        np.concatenate([w.key_query for w in starts]).reshape(*shape, 2 * DIM, 2 * DIM),
    )
    run = descend(
        engine,
        start,
        learning_rate=learning_rate,
        steps=steps,
        on_progress=report,
    )
    return RandomStarts(law, learning_rate, run)


def draw_random(
    measured: Emergence, trained: RandomStarts, figure: str, title: str, caption: str
) -> FigureResult:
    """Draw the trained matrices of one seed, and loss and off-diagonals of all.

    Args:
        measured: knows the plan.
        trained: the run.
        figure: its number.
        title: of the figure.
        caption: of the figure.

    Returns:
        The figure.
    """
    drawing = Figure(figsize=(7.6, 6.0))
    top, bottom = cast(np.ndarray, drawing.subfigures(2, 1, height_ratios=(1.25, 1)))
    rows: Rows = []
    grid = top.subplots(2, len(INITIAL_STDS), height_ratios=(2, 1))
    for column, std in enumerate(INITIAL_STDS):
        one = Weights(
            trained.run.last.output_value[column, 0], trained.run.last.key_query[column, 0]
        )
        for axes, name, matrix in (
            (grid[0, column], "$W^{KQ}$", one.key_query),
            (grid[1, column], "$W^{PV}$", one.output_value),
        ):
            draw_matrix(axes, matrix, f"{name}, σ = {std:g}", block=DIM)
            rows += matrix_rows(f"{name.strip('$')} sigma {std:g}", matrix)
    left, right = bottom.subplots(1, 2)
    for column, std in enumerate(INITIAL_STDS):
        color = PALETTE[column]
        excess = np.maximum(trained.excess[:, column], _FLOOR)
        for seed in range(excess.shape[1]):
            label = f"σ = {std:g}" if seed == 0 else None
            left.plot(excess[:, seed], color=color, lw=0.9, alpha=0.8, label=label)
        right.plot(
            [std] * excess.shape[1],
            np.maximum(trained.off_diagonal[column], _FLOOR),
            "o",
            color=color,
            ms=4,
        )
    left.set(yscale="log", xlabel="step of gradient descent", ylim=(_FLOOR, 30))
    left.set_title("loss above theory's least, as share of the energy")
    left.legend()
    right.set(xscale="log", yscale="log", xlabel="σ of the initial weights", ylim=(_FLOOR, 3))
    right.set_title("largest off-diagonal entry of V and K / diagonal")
    return FigureResult(
        id=f"emergence2024-fig{figure}",
        title=title,
        caption=caption,
        settings={
            "scale": measured.plan.scale,
            "weight seeds": measured.plan.weight_seeds,
            "steps": len(trained.run.loss) - 1,
            "learning rate": trained.learning_rate,
            "d": DIM,
            "T": LENGTH,
        },
        rows=rows,
        figure=drawing,
    )
