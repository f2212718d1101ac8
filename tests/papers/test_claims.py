import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.analysis.estimate import Estimate
from mesaopt.errors import RunError
from mesaopt.papers.claims import Claim, read_claims, write_claims

numbers = st.floats(-1e6, 1e6)
noises = st.floats(0, 1)


def claim(measured: Estimate | float | None, **limits) -> Claim:
    return Claim(
        name="x",
        study="core",
        paper="uncovering2023",
        figure="Fig. 1",
        statement="it holds",
        scale="smoke",
        measured=measured,
        basis="a test",
        **limits,
    )


@given(value=numbers, low=st.none() | numbers, high=st.none() | numbers)
def test_a_claim_passes_within_its_limits(
    value: float, low: float | None, high: float | None
) -> None:
    expected = not ((low is not None and value < low) or (high is not None and value > high))
    assert claim(value, low=low, high=high).passed is expected


def test_what_is_no_number_fails() -> None:
    assert not claim(math.nan).passed
    assert not claim(math.nan, low=0.0, high=1.0).passed
    assert not claim(Estimate(math.nan, 0.1), low=0.0, high=1.0).passed


@given(published=numbers, tolerance=noises, noise=noises)
def test_a_threshold_is_tolerance_and_three_standard_errors(
    published: float, tolerance: float, noise: float
) -> None:
    measured = claim(Estimate(0.0, noise), published=published, tolerance=tolerance)
    low, high = measured.limits
    assert high - low == pytest.approx(2 * (tolerance + 3 * noise), abs=3e-6)
    assert (low + high) / 2 == pytest.approx(published, abs=1e-5)


@given(value=numbers, low=numbers, high=numbers, noise=noises)
def test_limits_are_widened_by_three_standard_errors(
    value: float, low: float, high: float, noise: float
) -> None:
    assert claim(value, low=low, high=high).limits == (low, high), "a number without an error"
    wide = claim(Estimate(value, noise), low=low, high=high)
    assert wide.limits == (low - 3 * noise, high + 3 * noise)
    assert claim(Estimate(value, noise), high=high).limits == (None, high + 3 * noise)


ORDER, NUMBER = {"low": 0.2}, {"published": 0.7, "tolerance": 0.5}


@pytest.mark.parametrize(
    ("value", "limits", "verdict"),
    [
        (0.7, ORDER, "holds"),
        (0.6, ORDER, "holds within noise"),  # nearer to the limit than three errors
        (0.3, NUMBER, "holds"),
        *(
            (value, limits, verdict)
            for limits in (ORDER, NUMBER)
            for value, verdict in (
                (0.1, "holds within noise"),
                (-0.2, "holds within noise"),
                (-0.3, "fails"),
            )
        ),
    ],
)
def test_what_noise_leaves_open_is_marked(
    value: float, limits: dict[str, float], verdict: str, tmp_path: Path
) -> None:
    judged = claim(Estimate(value, 0.15), **limits)
    assert judged.verdict == verdict
    write_claims(tmp_path, [judged])
    (again,) = read_claims(tmp_path)
    assert again.verdict == verdict
    file = tmp_path / "claims.json"
    file.write_text(file.read_text().replace('noise": true', 'noise": "no"'))
    if verdict == "holds within noise":
        with pytest.raises(RunError, match="within_noise='no': must be true or false"):
            read_claims(tmp_path)
    published = claim(judged.measured, published=0.2)
    assert published.verdict in ("holds", "fails"), "equal to a number means within noise"


@given(value=numbers, tolerance=noises)
def test_what_has_no_noise_does_not_hold_within_it(value: float, tolerance: float) -> None:
    assert claim(value, published=value + tolerance, tolerance=tolerance).verdict != (
        "holds within noise"
    )


def test_noise_that_grows_with_a_ratio_widens_by_a_factor() -> None:
    measured = claim(Estimate(50.0, 5.0), low=100.0, noise="factor")
    assert measured.limits[0] == pytest.approx(100 * math.exp(-0.3))
    assert measured.why == "a test, and a factor for 3 standard errors of 5"
    assert claim(Estimate(0.0, 0.0), low=100.0, noise="factor").limits == (100.0, None)
    for value, verdict in ((134.0, "holds within noise"), (136.0, "holds")):  # 100 exp(0.3) = 135
        assert claim(Estimate(value, value / 10), low=100.0, noise="factor").verdict == verdict


def test_the_sentence_about_noise_is_added_to_the_basis() -> None:
    assert claim(1.0, high=2.0).why == "a test"
    assert claim(Estimate(1.0, 0.25), high=2.0).why == "a test, plus 3 standard errors of 0.25"
    published = claim(Estimate(1.0, 0.25), published=1.5, tolerance=0.1)
    assert published.why == "1.5 published, a test, tolerance 0.1, plus 3 standard errors of 0.25"


def test_claims_survive_their_file(tmp_path: Path) -> None:
    claims = [
        claim(0.5, low=0.0, high=1.0),
        claim(math.nan, high=1.0),
        claim(2.0, high=1.0),
        claim(Estimate(1.1, 0.1), high=1.0),
        claim(Estimate(1.1, 0.01), published=1.0, tolerance=0.01),
    ]
    write_claims(tmp_path, claims)
    again = read_claims(tmp_path)
    assert again[0] == claims[0]
    assert again[2] == claims[2]
    assert [c.passed for c in again] == [True, False, False, True, False]
    assert [c.to_json() for c in again] == [c.to_json() for c in claims]


@pytest.mark.parametrize("noise", ["added", "factor"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.0])
@pytest.mark.parametrize("error", [math.nan, math.inf, 0.1])
def test_claims_about_what_is_no_number_can_be_read(
    value: float, error: float, noise: str, tmp_path: Path
) -> None:
    judged = [
        claim(Estimate(value, error), low=1.0, noise=noise),
        claim(Estimate(value, error), published=1.0, tolerance=0.5),
    ]
    write_claims(tmp_path, judged)
    assert [one.to_json() for one in read_claims(tmp_path)] == [one.to_json() for one in judged]
    assert not any(one.passed for one in judged)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"id": "x"}]', "["])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.json").write_text(text if text != "{}" else '{"id": 1}')
    with pytest.raises(RunError, match=r"claims\.json"):
        read_claims(tmp_path)
    with pytest.raises(RunError, match="mesaopt reproduce writes it"):
        read_claims(tmp_path / "elsewhere")
