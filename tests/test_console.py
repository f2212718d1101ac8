"""Tables in a terminal."""

import pytest

from mesaopt.console import print_table

ROW = {"model": "a", **{f"column {i}": "0.123 ± 0.001" for i in range(12)}}


def printed(capsys: pytest.CaptureFixture[str], rows: list[dict[str, str]]) -> list[list[str]]:
    print_table(None, rows)
    return [line.split() for line in capsys.readouterr().out.splitlines() if line]


@pytest.mark.parametrize("count", [1, 3])
def test_columns_that_do_not_fit_become_rows(
    count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, [ROW | {"model": f"m{i}"} for i in range(count)])
    assert lines[0] == ["model", *(f"m{i}" for i in range(count))]
    assert lines[1] == ["column", "0", *["0.123", "±", "0.001"] * count]
    assert len(lines) == 13


def test_tables_stay_as_they_are_where_they_fit_or_nothing_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, [{"a": "1", "b": "2"}]) == [["a", "b"], ["1", "2"]]
    assert printed(capsys, [{"a": "1"}]) == [["a"], ["1"]]
    many = [ROW | {"model": f"m{i}"} for i in range(20)]
    assert "m0" in [line[0] for line in printed(capsys, many)]


def test_rows_of_one_name_are_not_put_together(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, [ROW, ROW])
    assert [line[0] for line in lines].count("a") == 2
