from dataclasses import replace

import numpy as np
import pytest
from mesaopt.papers.figures import style

from mesaopt.papers.emergence2024 import fig1, fig7
from mesaopt.papers.emergence2024.condition import paired_signs
from mesaopt.papers.emergence2024.emergence import EMERGENCE
from mesaopt.papers.emergence2024.measure import (
    SETTINGS,
    STARTS,
    Emergence,
    EmergencePlan,
    exact,
    theory,
)
from mesaopt.papers.plan import Results
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
    f"emergence2024/{name}"
    for name in (
        "gaussian-product",
        "gaussian-own-optimum",
        "gaussian-ratio",
        "gaussian-slope",
        "gaussian-unexplained",
        "full-one-product-sampled",
        "full-one-masked-product-sampled",
        "full-one-gap-sampled",
    )
}


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    """All parts, with next to no sequences."""
    measured = EMERGENCE.measure(TINY, {})
    with style():
        return {part.name: part.compute(measured, ignore) for part in EMERGENCE.parts}


def test_the_seven_figures_and_what_goes_beyond(results: dict[str, Results]) -> None:
    assert list(results) == [
        *(f"fig{n}" for n in range(1, 8)),
        *("condition", "landscape", "contrast"),
    ]
    figures = [figure for part in results.values() for figure in part.figures]
    assert [figure.id for figure in figures] == [f"emergence2024-{name}" for name in results]
    for figure in figures:
        assert len(figure.rows) > 30
        assert len({tuple(row) for row in figure.rows}) == 1, "rows with other keys"
        assert figure.settings["scale"] == "smoke"


def test_every_claim_can_fail_and_says_where_it_stands(results: dict[str, Results]) -> None:
    claims = [claim for part in results.values() for claim in part.claims]
    assert len({claim.id for claim in claims}) == len(claims) == 34
    for claim in claims:
        assert claim.low is not None or claim.high is not None
        assert claim.basis
        assert claim.figure
    assert all(part.claims for part in results.values())


def test_claims_without_noise_hold_whatever_the_number_of_sequences(
    results: dict[str, Results],
) -> None:
    claims = [claim for part in results.values() for claim in part.claims]
    assert {claim.id for claim in claims}.issuperset(NEEDS_SEQUENCES)
    failed = [c.id for c in claims if not c.passed and c.id not in NEEDS_SEQUENCES]
    assert failed == []


def test_another_law_is_not_taken_for_the_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(law: str, scale: float = 1.0):
        if law != "gaussian":
            return exact(law, scale)
        return population_loss(generalised_gaussian(1.9, scale), dim=5, length=100)

    monkeypatch.setattr(fig1, "exact", wrong)
    measured = Emergence(TINY, {})
    failed = {claim.id for claim in fig1._exact(measured) if not claim.passed}
    assert failed == {"emergence2024/limit", "emergence2024/engines"}


def test_a_mask_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fig7, "_KINDS", ("trained", "trained"))
    failed = {claim.id for claim in fig7._exact(Emergence(TINY, {})) if not claim.passed}
    assert failed == {"emergence2024/full-one-loss", "emergence2024/full-one-masked"}


def test_thresholds_shrink_with_sequences_and_sets() -> None:
    def width(plan: EmergencePlan) -> float:
        measured = Emergence(plan, {})
        measured._samples["gaussian"] = Emergence(TINY, {}).samples("gaussian", ignore)
        claim = next(c for c in fig1._gaussian(measured) if c.id.endswith("gaussian-product"))
        assert claim.low is not None
        assert claim.high is not None
        return claim.high - claim.low

    more = replace(TINY, sequences=200, test_sequences=200)
    assert width(more) == pytest.approx(width(TINY) / 2)
    assert width(more.with_seeds(8)) == pytest.approx(width(TINY) / 4)


def test_sequences_are_those_of_the_seed_and_are_drawn_once() -> None:
    measured = Emergence(TINY, {})
    first = measured.samples("full_one", ignore)
    assert measured.samples("full_one", ignore) is first
    again = Emergence(TINY, {}).samples("full_one", ignore)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.train.gram, b.train.gram)
    assert not np.array_equal(first[0].train.gram, first[1].train.gram)


def test_the_published_training_is_that_of_the_code() -> None:
    assert STARTS == ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
    curves = len(SETTINGS) * len(STARTS)
    assert curves == 21
    for (law, scale), _ in SETTINGS.items():
        assert exact(law, scale).dim == theory(law, scale).dim == 5


def test_paired_signs_vanish_at_power_one_and_not_at_three() -> None:
    law = paired_signs()
    assert law.probabilities.sum() == pytest.approx(1)
    ones = [float(law.moment(np.array([1, power]))) for power in range(1, 6)]
    np.testing.assert_allclose(ones, 0, atol=1e-15)
    assert float(law.moment(np.array([3, 3]))) == pytest.approx(2.25)
