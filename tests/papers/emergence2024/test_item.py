"""The study of the second paper: its figures, its claims, and what its noise comes from."""

from dataclasses import replace

import numpy as np
import pytest
from laboratories import Computed, compute

from mesaopt.config import StartName
from mesaopt.papers.emergence2024 import full_one, one_step
from mesaopt.papers.emergence2024.condition import paired_signs
from mesaopt.papers.emergence2024.item import STUDY
from mesaopt.papers.emergence2024.laboratory import (
    STARTS,
    TRAINING,
    EmergencePlan,
    Laboratory,
    exact,
    samples,
    theory,
    train,
)
from mesaopt.papers.figure import Figure, judge
from mesaopt.tasks import generalised_gaussian
from mesaopt.theory.ar_process import population_loss

TINY = EmergencePlan(
    what="emergence2024",
    scale="smoke",
    seeds=2,
    sequences=50,
    test_sequences=50,
    all_blocks_sequences=10,
    weight_seeds=2,
)
# What 50 sequences cannot say, at thresholds made for 400.
NEEDS_SEQUENCES = {
    "gaussian-product",
    "gaussian-own-optimum",
    "gaussian-ratio",
    "gaussian-slope",
    "gaussian-unexplained",
    "full-one-product-sampled",
    "full-one-masked-product-sampled",
    "full-one-gap-sampled",
}


@pytest.fixture(scope="module")
def lab() -> Laboratory:
    """A laboratory with next to no sequences."""
    return Laboratory(TINY, {})


@pytest.fixture(scope="module")
def results(lab: Laboratory) -> dict[str, Computed]:
    """All figures."""
    return {figure.name: compute(figure, lab) for figure in STUDY.figures}


def test_the_seven_figures_and_what_goes_beyond(results: dict[str, Computed]) -> None:
    beyond = ["condition", "landscape", "contrast"]
    assert list(results) == [*(f"fig{n}" for n in range(1, 8)), *beyond]
    for result in results.values():
        assert len(result.rows) > 30
        assert len({tuple(row) for row in result.rows}) == 1, "rows with other keys"
        assert result.settings


def test_every_claim_can_fail_and_has_a_place_and_a_basis(results: dict[str, Computed]) -> None:
    claims = {name: claim for one in results.values() for name, claim in one.claims.items()}
    assert len(claims) == sum(len(one.claims) for one in results.values()) == 34
    for claim in claims.values():
        assert claim.limits != (None, None)
        assert claim.basis
        assert claim.figure
    assert all(one.claims for one in results.values())


def test_claims_without_noise_hold_whatever_the_number_of_sequences(
    results: dict[str, Computed],
) -> None:
    verdicts = {name: passed for one in results.values() for name, passed in one.verdicts.items()}
    assert set(verdicts) >= NEEDS_SEQUENCES
    assert {name for name, passed in verdicts.items() if not passed} <= NEEDS_SEQUENCES


def failed(figure: Figure, lab: Laboratory) -> set[str]:
    """Claims that fail, of those that are not about the number of sequences."""
    return {claim.name for claim in judge(figure, lab) if not claim.passed} - NEEDS_SEQUENCES


def with_samples_of(lab: Laboratory, plan: EmergencePlan = TINY) -> Laboratory:
    """A laboratory that has measured nothing but the sets of sequences, which are slow to draw."""
    other = Laboratory(plan, {})
    for start in ("gaussian", "sparse", "full_one"):
        other.remember(samples, start, value=samples(lab, start))
    return other


def test_another_distribution_is_not_taken_for_the_gaussian(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(start: str, scale: float = 1.0):
        if start != "gaussian":
            return exact(start, scale)
        return population_loss(generalised_gaussian(1.9, scale), dim=5, length=100)

    monkeypatch.setattr(one_step, "exact", wrong)
    assert failed(one_step.fig1, with_samples_of(lab)) == {"limit", "engines"}


def test_a_mask_that_does_nothing_is_noticed(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = full_one.train

    def unmasked(engine, start, scale=1.0, off_diagonal="trained", **more):
        return train(engine, start, scale, "trained", **more)

    monkeypatch.setattr(full_one, "train", unmasked)
    assert failed(full_one.fig7, with_samples_of(lab)) == {"full-one-loss", "full-one-masked"}


def test_thresholds_shrink_with_sequences_and_sets(lab: Laboratory) -> None:
    def width(plan: EmergencePlan, sets: int) -> float:
        other = with_samples_of(lab, plan)
        repeated = samples(lab, "gaussian") * (sets // 2)
        other.remember(samples, "gaussian", value=repeated)
        other.remember(one_step.distances, value=one_step.distances(lab))
        claims = {claim.name: claim for claim in judge(one_step.fig1, other)}
        low, high = claims["gaussian-product"].limits
        assert low is not None
        assert high is not None
        return high - low

    tiny = width(TINY, 2)
    more = replace(TINY, sequences=200, test_sequences=200)
    assert width(more, 2) == pytest.approx(tiny / 2)
    assert width(more, 8) == pytest.approx(tiny / 4)


def test_sequences_are_those_of_the_seed_and_are_drawn_once(lab: Laboratory) -> None:
    first = samples(lab, "full_one")
    assert samples(lab, "full_one") is first
    again = samples(Laboratory(TINY, {}), "full_one")
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.train.gram, b.train.gram)
    assert not np.array_equal(first[0].train.gram, first[1].train.gram)


def test_the_published_training_is_that_of_the_code() -> None:
    assert STARTS == ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
    assert len(TRAINING) * len(STARTS) == 21
    for start, scale in TRAINING:
        assert exact(start, scale).dim == theory(start, scale).dim == 5


def test_paired_signs_vanish_at_power_one_and_not_at_three() -> None:
    signs = paired_signs()
    assert signs.probabilities.sum() == pytest.approx(1)
    ones = [float(signs.moment(np.array([1, power]))) for power in range(1, 6)]
    np.testing.assert_allclose(ones, 0, atol=1e-15)
    assert float(signs.moment(np.array([3, 3]))) == pytest.approx(2.25)


def test_captions_have_the_numbers_of_exact_training() -> None:
    def short(start: StartName, scale: float) -> str:
        end = train(exact(start, scale), start, scale).product[-1, 0]
        return f"{100 * (1 - end / theory(start, scale).product):.2g} %"

    assert f"at T = 100 theory says {theory('gaussian').product:.4f}" in one_step.fig1.caption
    assert f"{short('sparse', 1.0)} short" in one_step.fig1.caption
    both = f"{short('gaussian', 0.5)} and {short('gaussian', 2.0)} short"
    assert both in one_step.fig2.caption
