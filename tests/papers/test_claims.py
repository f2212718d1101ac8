import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.errors import RunError
from mesaopt.papers.claims import Claim, interval, read_claims, write_claims

numbers = st.floats(-1e6, 1e6)


def claim(value: float, low: float | None = None, high: float | None = None) -> Claim:
    return Claim(
        id="x",
        paper="uncovering2023",
        figure="Fig. 1",
        statement="it holds",
        scale="smoke",
        value=value,
        low=low,
        high=high,
        basis="a test",
    )


@given(value=numbers, low=st.none() | numbers, high=st.none() | numbers)
def test_a_claim_passes_within_its_limits(
    value: float, low: float | None, high: float | None
) -> None:
    expected = not ((low is not None and value < low) or (high is not None and value > high))
    assert claim(value, low, high).passed is expected


def test_what_is_no_number_fails() -> None:
    assert not claim(math.nan).passed
    assert not claim(math.nan, 0.0, 1.0).passed


@given(published=numbers, tolerance=st.floats(0, 1), noise=st.floats(0, 1))
def test_a_threshold_is_tolerance_and_three_standard_errors(
    published: float, tolerance: float, noise: float
) -> None:
    low, high, _ = interval(published, tolerance=tolerance, noise=noise)
    assert high - low == pytest.approx(2 * (tolerance + 3 * noise), abs=3e-6)
    assert (low + high) / 2 == pytest.approx(published, abs=1e-5)


def test_claims_survive_their_file(tmp_path: Path) -> None:
    claims = [claim(0.5, 0.0, 1.0), claim(math.nan, high=1.0), claim(2.0, high=1.0)]
    write_claims(tmp_path, claims)
    again = read_claims(tmp_path)
    assert again[0] == claims[0]
    assert again[2] == claims[2]
    assert [c.passed for c in again] == [True, False, False]


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"id": "x"}]', "["])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.json").write_text(text if text != "{}" else '{"id": 1}')
    with pytest.raises(RunError, match=r"claims\.json"):
        read_claims(tmp_path)
    with pytest.raises(RunError, match="mesaopt reproduce writes it"):
        read_claims(tmp_path / "elsewhere")
