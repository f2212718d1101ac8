"""The laboratory of Zheng et al.: plans, and the training that several figures share."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from mesaopt.analysis.estimate import Estimate
from mesaopt.config import ARProcessConfig, StartName
from mesaopt.papers import laboratory
from mesaopt.papers.laboratory import Plan, Scale, measurement
from mesaopt.progress import Progress
from mesaopt.tasks import ARProcess, initial_states
from mesaopt.theory.ar_process import (
    Engine,
    LastToken,
    OffDiagonal,
    OneStep,
    QuadraticLoss,
    Trajectory,
    Weights,
    descend,
    last_token,
    one_step,
    population_loss,
    sampled_loss,
    sequences,
)

DIM, LENGTH = 5, 100
"""d and T of every experiment of the paper."""

STARTS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
"""The initial (a, b) of K = a I and V = b I."""

TRAINING: dict[tuple[StartName, float], tuple[float, int]] = {
    ("gaussian", 0.5): (1e-3, 200),
    ("gaussian", 1.0): (1e-4, 150),
    ("gaussian", 2.0): (2e-6, 200),
    ("sparse", 0.5): (3e-2, 200),
    ("sparse", 1.0): (1e-3, 200),
    ("sparse", 2.0): (1e-4, 120),
    ("full_one", 1.0): (5e-4, 200),
}
"""Learning rate, and the steps drawn, by distribution and scale of x_1: from the authors' plotting code."""

CONVERGED = 10
"""Times as many steps as published: enough for every start, (ab)* is then reached to 1e-9."""

Curve = Float[np.ndarray, "step start"]


@dataclass(frozen=True, kw_only=True)
class EmergencePlan(Plan):
    """Amounts by scale; the paper has one seed, 10,000 sequences to train and as many to test.

    Example:
        >>> plan = EmergencePlan(
        ...     what="emergence2024", scale="smoke", seeds=2, sequences=8, test_sequences=8,
        ...     all_blocks_sequences=4, weight_seeds=2,
        ... )
        >>> plan.with_seeds(3).seeds
        3
    """

    seeds: int
    """Independent sets of training and test sequences."""
    sequences: int
    """Training sequences in a set."""
    test_sequences: int
    """Test sequences in a set."""
    all_blocks_sequences: int
    """Training sequences where all blocks are trained."""
    weight_seeds: int
    """Initial weights where they are drawn."""

    def with_seeds(self, seeds: int) -> "EmergencePlan":
        """Give the same plan with another number of sets of sequences."""
        return replace(self, seeds=seeds)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Amounts by scale that are no part of a plan."""

    steps_from_drawn_weights: int


SETTINGS: dict[Scale, Settings] = {
    "smoke": Settings(steps_from_drawn_weights=400),
    "small": Settings(steps_from_drawn_weights=1000),
    "paper": Settings(steps_from_drawn_weights=4000),
}


class Laboratory(laboratory.Laboratory):
    """The measurements of the second paper, which trains no recipes."""

    plan: EmergencePlan

    @property
    def settings(self) -> Settings:
        """The settings of the plan's scale."""
        return SETTINGS[self.plan.scale]


@dataclass(frozen=True)
class Sample:
    """One set of sequences with x_1 of scale 1, reduced to what the figures need."""

    train: QuadraticLoss
    """Loss on the training sequences."""
    test: LastToken
    """Predictions of the last state of the test sequences."""


@measurement
def samples(lab: Laboratory, start: StartName) -> list[Sample]:
    """Draw the sets of sequences of a distribution of x_1 at scale 1, one per seed."""
    drawn = []
    for seed in range(lab.plan.seeds):
        drawn.append(draw_sample(start, seed, lab.plan.sequences, lab.plan.test_sequences))
        lab.on_progress(Progress(seed + 1, lab.plan.seeds))
    return drawn


def draw_sample(start: StartName, seed: int, train: int, test: int) -> Sample:
    """Draw and reduce a set of `train` training and `test` test sequences."""
    task = task_of(start)
    return Sample(
        train=cast(QuadraticLoss, sampled_loss(sequences(task, train, seed=seed))),
        test=last_token(sequences(task, test, seed=seed, split="test")),
    )


def task_of(start: StartName) -> ARProcess:
    """Give the task at the paper's size."""
    return ARProcess(ARProcessConfig(dim=DIM, length=LENGTH, start=start))


def starts() -> Weights:
    """Give V = b I and K = a I for the three starts, stacked."""
    keys, values = (np.array(x)[:, None, None] * np.eye(DIM) for x in zip(*STARTS, strict=True))
    return Weights(values, keys)


def theory(start: StartName, scale: float = 1.0) -> OneStep:
    """Give the closed forms at the paper's size."""
    return one_step(initial_states(start, scale=scale), dim=DIM, length=LENGTH)


def exact(start: StartName, scale: float = 1.0) -> QuadraticLoss:
    """Give the expected loss at the paper's size."""
    return population_loss(initial_states(start, scale=scale), dim=DIM, length=LENGTH)


def train(
    engine: Engine,
    start: StartName,
    scale: float = 1.0,
    off_diagonal: OffDiagonal = "trained",
    *,
    times: int = 1,
) -> Trajectory:
    """Train from the three starts at the published step size, `times` as long as published."""
    learning_rate, steps = TRAINING[start, scale]
    return descend(
        engine,
        starts(),
        learning_rate=learning_rate,
        steps=times * steps,
        off_diagonal=off_diagonal,
    )


@dataclass(frozen=True)
class Curves:
    """The published training from three starts; lists have one entry per set of sequences."""

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


@measurement
def published_curves(lab: Laboratory, start: StartName, scale: float) -> Curves:
    """Train as published, on every set of sequences and on the population."""
    expected = train(exact(start, scale), start, scale)
    last = population_loss(
        initial_states(start, scale=scale), dim=DIM, length=LENGTH, contexts="last"
    )
    products, last_losses, ratios = [], [], []
    for sample in samples(lab, start):
        rescaled, test = sample.train.rescaled(scale), sample.test.rescaled(scale)
        plain = train(rescaled, start, scale)
        products.append(plain.product)
        last_losses.append(test.loss(plain.weights))
        ratios.append(test.ratio(train(rescaled, start, scale, "masked").weights))
    return Curves(
        theory=theory(start, scale),
        exact=expected,
        exact_last_loss=last.loss_and_gradient(expected.weights)[0],
        products=products,
        last_losses=last_losses,
        ratios=ratios,
    )


def sample_settings(lab: Laboratory) -> dict[str, Any]:
    """Give the settings of a figure drawn from sets of sequences."""
    return {
        "sets of sequences": lab.plan.seeds,
        "training sequences": lab.plan.sequences,
        "test sequences": lab.plan.test_sequences,
        "d": DIM,
        "T": LENGTH,
    }


def mean_of_sets(name: str, values: list[float], num_sequences: int) -> Estimate:
    """Estimate a mean over sets of sequences; its noise is known beforehand."""
    noise = _ROOT_SPREAD[name] / num_sequences**0.5
    return Estimate(float(np.mean(values)), noise / len(values) ** 0.5)


# Standard deviation over sets of sequences times the root of their number, from
# benchmarks/emergence_noise.py: 32 sets of 4,000 sequences each, of seeds that no reproduction uses.
_ROOT_SPREAD = {
    "gaussian product": 0.38,
    "gaussian ratio": 0.40,
    "gaussian slope": 1.34,
    "gaussian share": 0.85,
    "full-one product": 0.174,
    "full-one masked product": 0.206,
    "full-one gap": 0.0354,
}
