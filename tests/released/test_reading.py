"""The reader of pickles rebuilds arrays and does nothing else, whatever a file asks for."""

import io
import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released_files import (
    JAX_ARRAY,
    NDARRAY,
    RECONSTRUCT,
    Called,
    Name,
    Writer,
    jax_array,
    number,
    numpy_array,
    pickled,
)

from mesaopt.errors import RunError
from mesaopt.released import read_arrays

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def written(path: Path, content: Any) -> Path:
    data = content if isinstance(content, bytes) else pickled(content)
    file = path / "params.pkl"
    file.write_bytes(data)
    return file


def refusal(path: Path, content: Any) -> str:
    with pytest.raises(RunError) as error:
        read_arrays(written(path, content))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    return message


def test_arrays_are_rebuilt_by_the_keys_that_lead_to_them(tmp_path: Path) -> None:
    tree = {"params": {"a": {"kernel": ARRAY}, "b": ARRAY[0]}, "plain": numpy_array(ARRAY.T)}
    found = read_arrays(written(tmp_path, tree))
    assert list(found) == ["params/a/kernel", "params/b", "plain"]
    assert all(array.dtype == np.float32 for array in found.values())
    assert np.array_equal(found["params/a/kernel"], ARRAY)
    assert np.array_equal(found["params/b"], ARRAY[0])
    assert np.array_equal(found["plain"], ARRAY.T)


def test_the_format_of_the_test_is_that_of_numpy(tmp_path: Path) -> None:
    # NumPy itself rebuilds what the test writes, and what NumPy pickles is read, but for its new names.
    again = pickle.loads(pickled(numpy_array(ARRAY)))
    assert np.array_equal(again, ARRAY)
    data = pickle.dumps({"a": ARRAY}, protocol=4)
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    old = b"\x80\x04" + old[old.index(b"}") :]  # without the frame, whose length has changed
    assert np.array_equal(read_arrays(written(tmp_path, old))["a"], ARRAY)


class Command:
    """The classic: a pickle that runs a command when it is loaded."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda file: Command(os.system, f"touch {file}"), f"{os.name}.system"),
        (lambda file: Command(eval, f"open({str(file)!r}, 'w')"), "builtins.eval"),
        (lambda file: Command(exec, f"open({str(file)!r}, 'w')"), "builtins.exec"),
        (lambda file: Command(open, str(file), "w"), "io.open"),
        (lambda file: Command(getattr, {}, "clear"), "builtins.getattr"),
        (lambda _: Command(np.load, "x.npy"), "numpy.load"),
        (lambda _: Command(np.float64, 1.0), "numpy.float64"),
        (lambda _: Path("x"), "pathlib"),
        (lambda _: sys.exit, "sys.exit"),
    ],
)
def test_any_other_name_is_refused_and_nothing_is_called(
    tmp_path: Path, content: Any, name: str
) -> None:
    sentinel = tmp_path / "sentinel"
    for tree in (content(sentinel), {"params": content(sentinel)}):
        message = refusal(tmp_path, pickle.dumps(tree, protocol=4))
        assert f"needs {name}" in message
        assert "no part of an array: not read" in message
        assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    [
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy", "dtype\x1b[31m"),
        ("mesaopt.released.reading", "_NAMES"),
        ("jax._src.array", "ArrayImpl"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
    ],
)
def test_names_close_to_the_allowed_ones_are_refused(tmp_path: Path, name: tuple[str, str]) -> None:
    for protocol in (2, 4):
        file = io.BytesIO()
        Writer(file, protocol=protocol).dump({"a": Called(Name(*name), ())})
        message = refusal(tmp_path, file.getvalue())
        assert f"needs {name[0]}" in message
        assert message.isprintable()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": 1.5}, "holds a float in a, no float32 array"),
        ({"a": [ARRAY.tolist()]}, "holds a list in a"),
        ({"a": {"b": None}}, "holds a NoneType in a/b"),
        ({"a": {"b": {}}}, "holds a dict in a/b"),
        ({1: ARRAY}, "holds a dict in the file"),
        ("text", "holds a str in the file"),
        ({"a": jax_array(ARRAY, dtype=number("f8"))}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, dtype=number("i4"))}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, dtype=number("O8", "|"))}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, dtype=number("f4", ">"))}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, dtype="f4")}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, by_columns=True)}, "other numbers than float32"),
        ({"a": jax_array(ARRAY, shape=(2, 4))}, "do not fit its shape (2, 4)"),
        ({"a": jax_array(ARRAY, shape=(-2, -3))}, "do not fit its shape"),
        ({"a": jax_array(ARRAY, shape=(2.0, 3.0))}, "do not fit its shape"),
        ({"a": jax_array(ARRAY, shape=(10**30, 10**30))}, "do not fit its shape"),
        ({"a": jax_array(ARRAY, data="text")}, "do not fit its shape"),
        ({"a": jax_array(ARRAY, new=NDARRAY)}, "rebuilds an array by another function"),
        ({"a": jax_array(ARRAY, new=JAX_ARRAY)}, "rebuilds an array by another function"),
        ({"a": jax_array(ARRAY, new="eval")}, "rebuilds an array by another function"),
        ({"a": Called(RECONSTRUCT, ())}, "holds a _Array in a, no float32 array"),
        ({"a": number()}, "holds a _Number in a"),
        ({"a": RECONSTRUCT}, "holds a _Name in a"),
    ],
)
def test_anything_but_float32_arrays_in_dictionaries_is_refused(
    tmp_path: Path, tree: Any, message: str
) -> None:
    assert message in refusal(tmp_path, tree)


def test_a_dictionary_in_itself_or_many_times_over_is_refused_at_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    laughs: Any = {"a": jax_array(ARRAY)}
    for _ in range(8):
        laughs = dict.fromkeys(map(str, range(100)), laughs)
    for tree in (loop, laughs):
        file = io.BytesIO()
        Writer(file, protocol=4).dump(tree)
        assert "holds more than 1000 arrays" in refusal(tmp_path, file.getvalue())


def nested(levels: int) -> tuple:
    """Nest pairs of one and the same pair: 2^levels entries in a few bytes of a pickle."""
    pair: tuple = (1,)
    for _ in range(levels):
        pair = (pair, pair)
    return pair


@pytest.mark.parametrize(
    "array",
    [
        jax_array(ARRAY, shape=nested(18)),
        jax_array(ARRAY, dtype=number(nested(18))),
        jax_array(ARRAY, dtype=number("f4", nested(18))),
        jax_array(ARRAY, by_columns=nested(18)),
        jax_array(ARRAY, data=nested(18)),
    ],
    ids=["shape", "dtype", "order", "by_columns", "data"],
)
def test_a_few_bytes_claim_no_memory(tmp_path: Path, array: Any) -> None:
    file = written(tmp_path, {"a": array})
    assert file.stat().st_size < 1000
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match="not read|is damaged"):
            read_arrays(file)
        assert tracemalloc.get_traced_memory()[1] < 2**18  # all entries are 2^20 characters
    finally:
        tracemalloc.stop()


STATE_OF_A_FUNCTION = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(N}\x8c\x08__defa__K\x01stb."
GOOD = pickled({"params": {"a": ARRAY}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (STATE_OF_A_FUNCTION, "changes a function: not read"),
        (b"\x80\x04\x82\x01.", "needs extension 1"),
        (b"\x80\x04Pname\n.", "refers to something outside"),
        (b"\x80\x04K\x01Q.", "refers to something outside"),
        (b"", "is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is damaged"),
        (b"\x80\x04.", "is damaged"),
        (b"\x80\x04}r\xff\xff\xff\x7f0.", "is damaged"),  # a memo of 2**31 places
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "is damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00abc.", "is damaged"),
        (b"(" * 10**6 + b".", "is damaged"),
    ],
)
def test_damaged_and_crafted_bytes_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    assert "is damaged" in refusal(tmp_path, GOOD[: int(share * len(GOOD))])


def test_random_changes_never_do_more_than_refuse(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(GOOD)
        for place in random.integers(len(data), size=3):
            data[place] = random.integers(256)
        try:
            found = read_arrays(written(tmp_path, bytes(data)))
        except RunError:
            continue
        assert all(array.dtype == np.float32 for array in found.values())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing.pkl: there is no such file"):
        read_arrays(tmp_path / "nothing.pkl")
