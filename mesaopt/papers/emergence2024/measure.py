"""What the figures share: the plan, the starts, and losses on sequences that are drawn once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypedDict, cast

import numpy as np
from jaxtyping import Float

from mesaopt.config import ARProcessConfig, StartName
from mesaopt.papers.claims import STANDARD_ERRORS
from mesaopt.papers.plan import Measured, Plan, Report
from mesaopt.tasks import ARProcess, initial_states
from mesaopt.theory.ar_process import (
    LastToken,
    OneStep,
    QuadraticLoss,
    Weights,
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

SETTINGS: dict[tuple[StartName, float], tuple[float, int]] = {
    ("gaussian", 0.5): (1e-3, 200),
    ("gaussian", 1.0): (1e-4, 150),
    ("gaussian", 2.0): (2e-6, 200),
    ("sparse", 0.5): (3e-2, 200),
    ("sparse", 1.0): (1e-3, 200),
    ("sparse", 2.0): (1e-4, 120),
    ("full_one", 1.0): (5e-4, 200),
}
"""Learning rate, and the steps drawn, by law and scale: from the authors' plotting code."""


@dataclass(frozen=True, kw_only=True)
class EmergencePlan(Plan):
    """How much of everything; the paper has one seed, 10,000 sequences to train and as many to test.

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
        """See :meth:`mesaopt.papers.plan.Plan.with_seeds`."""
        return replace(self, seeds=seeds)


@dataclass(frozen=True)
class Sample:
    """One set of sequences from a law of scale 1, reduced to what the figures need."""

    train: QuadraticLoss
    """Loss on the training sequences."""
    test: LastToken
    """Predictions of the last state of the test sequences."""


@dataclass(frozen=True)
class Emergence(Measured):
    """Losses by law, each computed for the first figure that asks."""

    plan: EmergencePlan
    _samples: dict[StartName, list[Sample]] = field(default_factory=dict)
    _all_blocks: dict[StartName, QuadraticLoss] = field(default_factory=dict)

    def samples(self, law: StartName, report: Report) -> list[Sample]:
        """Draw the sets of sequences of a law, one per seed.

        Args:
            law: of x_1, at scale 1; others follow by rescaling.
            report: told the sets done.

        Returns:
            The sets.
        """
        if law not in self._samples:
            drawn = []
            for seed in range(self.plan.seeds):
                drawn.append(draw_sample(law, seed, self.plan.sequences, self.plan.test_sequences))
                report(seed + 1, self.plan.seeds)
            self._samples[law] = drawn
        return self._samples[law]

    def all_blocks(self, law: StartName) -> QuadraticLoss:
        """Give the loss of all blocks on training sequences of seed 0."""
        if law not in self._all_blocks:
            stream = sequences(_task(law), self.plan.all_blocks_sequences, seed=0)
            loss = sampled_loss(stream, blocks="all")
            self._all_blocks[law] = cast(QuadraticLoss, loss)
        return self._all_blocks[law]

    @cached_property
    def starts(self) -> Weights:
        """The three diagonal starts, side by side."""
        return diagonal_starts()


def draw_sample(law: StartName, seed: int, train: int, test: int) -> Sample:
    """Draw and reduce one set of sequences.

    Args:
        law: of x_1, at scale 1.
        seed: of the sequences.
        train: how many to train on.
        test: how many to test on.

    Returns:
        The set.
    """
    return Sample(
        train=cast(QuadraticLoss, sampled_loss(sequences(_task(law), train, seed=seed))),
        test=last_token(sequences(_task(law), test, seed=seed, split="test")),
    )


def diagonal_starts() -> Weights:
    """Give V = b I and K = a I for the three starts, side by side."""
    keys, values = (np.array(x)[:, None, None] * np.eye(DIM) for x in zip(*STARTS, strict=True))
    return Weights(values, keys)


def theory(law: StartName, scale: float = 1.0) -> OneStep:
    """Give the closed forms of a law at the paper's size."""
    return one_step(initial_states(law, scale=scale), dim=DIM, length=LENGTH)


def exact(law: StartName, scale: float = 1.0) -> QuadraticLoss:
    """Give the expected loss of a law at the paper's size."""
    return population_loss(initial_states(law, scale=scale), dim=DIM, length=LENGTH)


def settings(measured: Emergence) -> dict[str, object]:
    """Give the settings of a figure drawn from sets of sequences."""
    plan = measured.plan
    return {
        "scale": plan.scale,
        "sets of sequences": plan.seeds,
        "training sequences": plan.sequences,
        "test sequences": plan.test_sequences,
        "d": DIM,
        "T": LENGTH,
    }


def silent(done: int, total: int) -> None:
    """Report to nobody, where the sets of sequences are drawn already.

    Args:
        done: steps.
        total: of all.
    """


class Limits(TypedDict):
    """What a claim passes by."""

    low: float
    high: float
    basis: str


def around(expected: float, noise: float, count: int, why: str, tolerance: float = 0.0) -> Limits:
    """Give the interval around an expected number that noise explains.

    Args:
        expected: the number.
        noise: standard deviation of one measurement, known beforehand.
        count: measurements averaged.
        why: where the expected number comes from.
        tolerance: how far off the number itself may be.

    Returns:
        low, high and basis of a claim.
    """
    error = noise / count**0.5
    width = tolerance + STANDARD_ERRORS * error
    basis = f"{expected:.6g} {why}"
    if tolerance:
        basis += f", tolerance {tolerance:.2g}"
    basis += f", plus {STANDARD_ERRORS:g} standard errors of {error:.2g}"
    return Limits(low=expected - width, high=expected + width, basis=basis)


def standard_deviation(name: str, num_sequences: int) -> float:
    """Give the spread of a measured number over independent sets of sequences, known beforehand."""
    return _ROOT_SPREAD[name] / num_sequences**0.5


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


def _task(law: StartName) -> ARProcess:
    return ARProcess(ARProcessConfig(dim=DIM, length=LENGTH, start=law))


def mean_and_range(
    values: Sequence[Float[np.ndarray, "*shape"]],
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Give mean, smallest and largest over seeds."""
    stacked = np.stack(values)
    return stacked.mean(0), stacked.min(0), stacked.max(0)
