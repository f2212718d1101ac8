"""A reader of pickled parameters that rebuilds arrays and refuses everything else.

A pickle names functions and classes of any module and calls them while it is read. Here the names that
released parameters need stand for small objects of this module, and any other name ends the reading: no
function or class of NumPy, JAX or Python is ever called on a file's behalf.
"""

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesaopt import files
from mesaopt.errors import RunError, printable

_DEEPEST, _MOST_ARRAYS = 10, 1000


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read the arrays of a pickle of nested dictionaries, as JAX 0.4 writes its parameters.

    Args:
        path: of the file.

    Returns:
        float32 arrays by the keys that lead to them, such as "params/output_layer/kernel".

    Raises:
        RunError: the file is missing or damaged, needs a name other than the four of arrays, or holds
            something else than float32 arrays in dictionaries.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "len.pkl"
        >>> _ = path.write_bytes(pickle.dumps(len))
        >>> read_arrays(path)
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: ...len.pkl: needs builtins.len, which is no part of an array: not read
    """
    data = files.read_bytes(path)
    try:
        tree = _Reader(io.BytesIO(data)).load()
        arrays: dict[str, NDArray[np.float32]] = {}
        _collect(tree, (), arrays)
    except _RefusedError as refusal:
        raise RunError(f"{path}: {refusal}: not read") from None
    except Exception as error:  # whatever the interpreter of pickles makes of a damaged file
        raise RunError(f"{path}: is damaged: {printable(repr(error))[:120]}") from None
    return arrays


class _RefusedError(Exception):
    """Something in a file that is no part of arrays in dictionaries."""


class _Array:
    """An array of a file: empty at first, then filled by its state."""

    def __init__(self) -> None:
        self.values: NDArray[np.float32] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, number, by_columns, data = state
        if not isinstance(number, _Number) or number.code != "<f4" or by_columns:
            raise _RefusedError("holds an array of other numbers than float32, row by row")
        sizes = [size for size in shape if type(size) is int and size >= 0]
        if len(sizes) != len(shape) or type(data) is not bytes or len(data) != 4 * math.prod(sizes):
            # Not the shape itself: pairs of one and the same pair are short in a file, and not in words.
            given = repr(tuple(sizes))[:60]
            raise _RefusedError(f"holds an array whose data do not fit its shape {given}")
        self.values = np.frombuffer(data, "<f4").reshape(sizes)


class _Number:
    """The type of an array's numbers: its name, then, by its state, the order of its bytes."""

    def __init__(self, name: Any):
        self.code = name

    def __setstate__(self, state: Any) -> None:
        if type(state[1]) is not str or type(self.code) is not str:
            raise _RefusedError("holds a type of numbers that has no name")
        self.code = f"{state[1]}{self.code}"


class _Name:
    """A name that files may use: called, it makes what the name makes, and it holds nothing to change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("changes a function")


def _filled(new: Any, arguments: Any, state: Any, _: Any) -> _Array:
    if new is not _NEW_ARRAY:
        raise _RefusedError("rebuilds an array by another function than NumPy's")
    array = new(*arguments)
    array.__setstate__(state)
    return array


_NEW_ARRAY = _Name(lambda *_: _Array())
_NAMES = {
    "numpy.ndarray": _Name(lambda *_: _Array()),
    "numpy.dtype": _Name(lambda name, *_: _Number(name)),
    "numpy.core.multiarray._reconstruct": _NEW_ARRAY,
    "jax._src.array._reconstruct_array": _Name(_filled),
}


class _Reader(pickle._Unpickler):
    """The interpreter of pickles in Python: the one in C lets a few bytes claim all memory."""

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in _NAMES:
            raise _RefusedError(f"needs {printable(wanted)}, which is no part of an array")
        return _NAMES[wanted]

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("refers to something outside of it")

    def get_extension(self, code: int) -> None:
        raise _RefusedError(f"needs extension {code}, which is no part of an array")


def _collect(tree: Any, keys: tuple[str, ...], arrays: dict[str, NDArray[np.float32]]) -> None:
    """Gather the arrays of nested dictionaries by their keys, joined by slashes."""
    where = "/".join(keys) or "the file"
    if len(keys) > _DEEPEST or len(arrays) >= _MOST_ARRAYS:
        most = f"{_MOST_ARRAYS} arrays in {_DEEPEST} dictionaries, one in the other"
        raise _RefusedError(f"holds more than {most}")
    if isinstance(tree, _Array) and tree.values is not None:
        arrays["/".join(keys)] = tree.values
    elif type(tree) is dict and tree and all(type(key) is str for key in tree):
        for key, value in tree.items():
            _collect(value, (*keys, key), arrays)
    else:
        raise _RefusedError(
            f"holds a {type(tree).__name__} in {printable(where)}, no float32 array"
        )
