"""Training as published, on sequences and on the population: what figures 1 to 3 draw."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mesaopt.config import StartName
from mesaopt.papers.emergence2024.measure import DIM, LENGTH, SETTINGS, Emergence, exact, theory
from mesaopt.papers.plan import Report
from mesaopt.tasks import initial_states
from mesaopt.theory.ar_process import (
    Engine,
    OffDiagonal,
    OneStep,
    QuadraticLoss,
    Trajectory,
    descend,
    population_loss,
)

Curve = Float[np.ndarray, "step start"]

_CONVERGED_AFTER = 10
"""Times as many steps as published: enough for every start, (ab)* is then reached to 1e-9."""


@dataclass(frozen=True)
class Curves:
    """The published training of one law from three starts; lists have one entry per set of sequences."""

    law: StartName
    scale: float
    theory: OneStep
    exact: Trajectory
    """On the population."""
    exact_last_loss: Curve
    """Half the squared error of the last token, in the population."""
    products: list[Curve]
    """Mean of Re(V_jj K_jj)."""
    last_losses: list[Curve]
    """Half the squared error of the last token of test sequences."""
    ratios: list[Curve]
    """Mean of prediction/target there, where the off-diagonal weights are masked."""


def train_as_published(measured: Emergence, law: StartName, scale: float, report: Report) -> Curves:
    """Train on every set of sequences, and on the population.

    Args:
        measured: the sets of sequences.
        law: of x_1.
        scale: of the law.
        report: told the sets drawn.

    Returns:
        The curves.
    """
    expected = _descend(exact(law, scale), measured, law, scale)
    last = population_loss(
        initial_states(law, scale=scale), dim=DIM, length=LENGTH, contexts="last"
    )
    products, last_losses, ratios = [], [], []
    for sample in measured.samples(law, report):
        train, test = sample.train.rescaled(scale), sample.test.rescaled(scale)
        plain = _descend(train, measured, law, scale)
        products.append(plain.product)
        last_losses.append(test.loss(plain.weights))
        ratios.append(test.ratio(_descend(train, measured, law, scale, "masked").weights))
    return Curves(
        law,
        scale,
        theory(law, scale),
        expected,
        _loss(last, expected),
        products,
        last_losses,
        ratios,
    )


def converge(
    engine: Engine,
    measured: Emergence,
    law: StartName,
    scale: float = 1.0,
    off_diagonal: OffDiagonal = "trained",
) -> Trajectory:
    """Train ten times as long as published.

    Args:
        engine: knows the loss.
        measured: knows the starts.
        law: of x_1, whose published step size is taken.
        scale: of the law.
        off_diagonal: trained or masked.

    Returns:
        The run.
    """
    return _descend(engine, measured, law, scale, off_diagonal, times=_CONVERGED_AFTER)


def _descend(
    engine: Engine,
    measured: Emergence,
    law: StartName,
    scale: float,
    off_diagonal: OffDiagonal = "trained",
    times: int = 1,
) -> Trajectory:
    learning_rate, steps = SETTINGS[law, scale]
    return descend(
        engine,
        measured.starts,
        learning_rate=learning_rate,
        steps=times * steps,
        off_diagonal=off_diagonal,
    )


def _loss(engine: QuadraticLoss, run: Trajectory) -> Curve:
    return engine.loss_and_gradient(run.weights)[0]
