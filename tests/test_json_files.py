from pathlib import Path

import pytest

from mesaopt import json_files
from mesaopt.errors import RunError


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such file"):
        json_files.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunError, match=r"bad\.json: is not JSON"):
        json_files.read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        (True, int, "True: must be a whole number"),
        (1.0, int, "1.0: must be a whole number"),
        (float("inf"), float, "inf: must be a finite number"),
        (True, float, "True: must be a finite number"),
        (None, str, "None: must be text"),
        ("a", (int, None), "'a': must be a whole number or null"),
        ({}, [str], "must be a list"),
        ([], {str: int}, "must be an object"),
        ({"a": 1}, {"b": int}, "b is missing"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, r"a.b\[1\]='x': must be a whole number"),
        ({"a": "x"}, {str: int}, "a='x': must be a whole number"),
    ],
)
def test_what_was_read_is_checked(value: object, wanted: object, message: str) -> None:
    with pytest.raises(RunError, match=f"^a.json: is damaged: .*{message}"):
        json_files.check(value, wanted, "a.json")
