"""The documents of a corpus and which of them are held out."""

import contextlib
import importlib
import os
import sysconfig
import zlib
from collections.abc import Container, Generator, Iterator
from pathlib import Path
from typing import get_args

from mesaopt import files
from mesaopt.config import Split
from mesaopt.corpus.shards import INDEX, shard_name
from mesaopt.errors import ConfigError, RunError

SPLITS: tuple[Split, ...] = get_args(Split)
STDLIB = "stdlib"
"""Name of the corpus that every Python brings along: the sources of its standard library."""
HELD_OUT_PERCENT = 5
"""Of the documents, for validation, and as much for tests."""

Document = tuple[str, bytes]
"""The name of a document, its path within the corpus for a file, and its text."""


def split_of(name: str) -> Split:
    """Say whether a document is for training, validation or tests, by a hash of its name.

    The answer depends on nothing else: other documents of a corpus may come and go.

    Args:
        name: path within the corpus, parts divided by "/".

    Returns:
        "test" or "validation" for five of a hundred names each, else "train".

    Example:
        >>> split_of("json/decoder.py"), split_of("json/scanner.py")
        ('train', 'validation')
    """
    place = zlib.crc32(name.encode(errors="surrogateescape")) % 100  # a name may be no UTF-8
    if place < HELD_OUT_PERCENT:
        return "test"
    return "validation" if place < 2 * HELD_OUT_PERCENT else "train"


def are_cut(documents: list[Document]) -> bool:
    """Say whether every document is cut into parts, since by document one would be empty."""
    return {split_of(name) for name, _ in documents} != set(SPLITS)


def cuts_of(size: int) -> tuple[int, int]:
    """Say where a document is cut: the ends of training and of validation."""
    return size * (100 - 2 * HELD_OUT_PERCENT) // 100, size * (100 - HELD_OUT_PERCENT) // 100


def documents_of(source: str) -> list[Document]:
    """Read all documents of a corpus.

    Args:
        source: "stdlib"; a file; a folder, of which all files are read but hidden ones and those behind
            links to folders; or "hf:NAME", the column "text" of a data set that the package `datasets`
            loads.

    Returns:
        Names and texts, in the order of the names.

    Raises:
        ConfigError: there is no such file or folder, one cannot be read, or there is no text in it, but
            shards perhaps.

    Example:
        >>> "json/decoder.py" in dict(documents_of("stdlib"))
        True
    """
    if source.startswith("hf:"):
        documents = _rows_of(source)
    elif source == STDLIB:
        documents = list(_standard_library())
    else:
        documents = _files_of(source)
    if not any(text for _, text in documents):
        raise ConfigError(f"corpus={source!r}: is empty; must have a file with text in it")
    return documents


def _files_of(source: str) -> list[Document]:
    """Read a file, or a folder with all folders in it."""
    path = files.as_path(source)
    if not source or not files.exists(path):
        raise ConfigError(
            f"corpus={source!r}: there is no such file or folder; must be one, or 'stdlib'"
        )
    if not files.is_folder(path):
        return [(path.name, _read(path, source))]
    if files.exists(path / shard_name("train", 0)):
        wanted = (
            f"must be text, or all shards with their {INDEX}; prepare it again, in a new folder"
        )
        raise ConfigError(f"corpus={source!r}: has shards of tokens: {wanted}")
    names = sorted(_names_in(path, source))
    return [(name, _read(path / name, source)) for name in names]


def _names_in(folder: Path, source: str, *, without: Container[str] = ()) -> Iterator[str]:
    """List the files of a folder and of all folders in it, as paths from the folder; no hidden ones."""

    def refuse(error: OSError) -> None:
        with _named(source), files.explain_os_errors(Path(error.filename), "read"):
            raise error

    for at, folders, names in os.walk(folder, onerror=refuse):
        kept = (name for name in folders if name not in without and name != "__pycache__")
        folders[:] = [name for name in kept if not name.startswith(".")]
        inside = os.path.relpath(at, folder).replace(os.sep, "/")
        for name in names:
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}"


def _standard_library() -> Iterator[Document]:
    """Read the Python sources of the standard library, without packages that were installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    names = _names_in(root, STDLIB, without={"site-packages", "dist-packages"})
    for name in sorted(name for name in names if name.endswith(".py")):
        yield name, _read(root / name, STDLIB)


def _read(path: Path, source: str) -> bytes:
    with _named(source):
        return files.read_bytes(path)


@contextlib.contextmanager
def _named(source: str) -> Generator[None]:
    """Name the corpus in errors of its files."""
    try:
        yield
    except RunError as error:
        raise ConfigError(f"corpus={source!r}: {error}") from error


def _rows_of(source: str) -> list[Document]:
    """Read the column "text" of all rows of a data set of the package `datasets`."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(
            f"corpus={source!r}: needs the package datasets: pip install 'mesaopt[text]'"
        ) from None
    name = source.removeprefix("hf:")
    try:
        rows = datasets.load_dataset(name, split="train")
        return [(f"{name}/{i}", row["text"].encode()) for i, row in enumerate(rows)]
    except KeyError:
        raise ConfigError(f"corpus={source!r}: its rows have no 'text'") from None
    except Exception as error:  # whatever the network and the data set come up with
        raise ConfigError(f"corpus={source!r}: cannot be loaded: {error}") from error
