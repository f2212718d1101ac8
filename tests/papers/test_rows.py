import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.errors import RunError
from mesaopt.papers.rows import read_table, table

values = st.none() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False)


@given(st.lists(st.tuples(values, values), min_size=1))
def test_numbers_survive_their_table_bit_for_bit(pairs: list[tuple]) -> None:
    rows = [{"a": a, "b": b} for a, b in pairs]
    again = read_table(table(rows))
    assert again == rows
    assert all(
        type(x) is type(y)
        for r, s in zip(rows, again, strict=True)
        for x, y in zip(r.values(), s.values(), strict=True)
    )


@pytest.mark.parametrize("text", ["lsa-1", 'a, "b"', "1e", "two\nlines", "0.5 0.25"])
def test_words_survive(text: str) -> None:
    assert read_table(table([{"name": text, "x": 1}])) == [{"name": text, "x": 1}]


def test_what_is_no_number_survives() -> None:
    (row,) = read_table(table([{"x": math.nan, "y": math.inf, "z": True}]))
    assert math.isnan(row["x"])
    assert (row["y"], row["z"]) == (math.inf, True)


def test_panels_with_keys_of_their_own_share_a_table() -> None:
    rows = [{"step": 1, "ridge": 0.5}, {"step": 1, "position": 2, "ratio": 1.5}]
    first, second = read_table(table(rows))
    assert first == rows[0] | {"position": None, "ratio": None}
    assert second == {"step": 1, "ridge": None, "position": 2, "ratio": 1.5}


@pytest.mark.parametrize("text", ["a,b\n1\n", "a\n1,2\n", "a\n" + "1" * 200_000])
def test_a_damaged_table_is_named_in_one_line(text: str) -> None:
    with pytest.raises(RunError, match=r"a\.csv: is damaged: ") as error:
        read_table(text, "a.csv")
    assert "\n" not in str(error.value)
