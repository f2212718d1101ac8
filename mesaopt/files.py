"""Files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from mesaopt.errors import RunError

TEMPORARY = ".part-"
"""Prefix of a file that is still being written; one left behind by a kill is harmless."""


def write(path: Path, content: str | bytes | Callable[[Path], None]) -> None:
    """Write a file under a temporary name, then rename it: a kill leaves the old file or the new one.

    Args:
        path: where the file is to appear; its folder is made if need be.
        content: text, bytes, or a function that writes to the path it is given.

    Raises:
        RunError: the disk is full or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write(path, "hello")
        >>> path.read_text()
        'hello'
    """
    # The name keeps its ending, because what writes a picture looks at it.
    temporary = path.with_name(TEMPORARY + path.name)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush(temporary)
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, by rename.

    Args:
        path: where the file is to appear.
        value: anything JSON can hold.

    Raises:
        RunError: the disk is full or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(path, {"steps": 3})
        >>> json.loads(path.read_text())
        {'steps': 3}
    """
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append one line and see it safely to the disk.

    Args:
        path: the file.
        line: without its line end.

    Raises:
        RunError: the disk is full or the file cannot be written to.
    """
    with explain_os_errors(path), path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: the file.

    Returns:
        Its text.

    Raises:
        RunError: the file is missing or is not text.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its value.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: is not JSON: {error}") from None


@contextlib.contextmanager
def only_one_process(folder: Path) -> Generator[None]:
    """Keep other processes from working in a folder; the system lets go of it when this one ends.

    Args:
        folder: which must exist.

    Raises:
        RunError: another process is working in it.

    Example:
        >>> import tempfile
        >>> with only_one_process(Path(tempfile.mkdtemp())):
        ...     print("alone")
        alone
    """
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself is locked: no file is left behind
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"{folder}: another process is working in this folder") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Generator[None]:
    """Say in one line what the disk refused.

    Args:
        path: what is being written.

    Raises:
        RunError: in place of an OSError.
    """
    try:
        yield
    except Exception as error:
        # Libraries that write files wrap the system's error in one of their own.
        full = "No space left" in str(error) or "os error 28" in str(error)
        if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            advice = "free some space and go on with --resume"
            raise RunError(f"{path}: the disk is full; {advice}") from error
        if isinstance(error, OSError):
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
