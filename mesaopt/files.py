"""Writing files by rename, so that they appear whole or not at all; reading them with clear errors."""

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
"""Prefix of a file that is still being written; a file left behind by a kill does no harm."""


def write(path: Path, content: str | bytes | Callable[[Path], None]) -> None:
    """Write a file under a temporary name, then rename it.

    A kill leaves the old file or the new one, never a part of one.

    Args:
        path: of the file; its folder is made if it does not exist.
        content: text, bytes, or a function that writes to the path that it is called with.

    Raises:
        RunError: the disk is full or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write(path, "hello")
        >>> path.read_text()
        'hello'
    """
    # The name keeps its ending, because matplotlib chooses the format by it.
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
    """Write a value as indented JSON, by rename.

    Args:
        path: of the file.
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
    """Append one line, and return once it is on the disk.

    Args:
        path: of the file.
        line: without its line end.

    Raises:
        RunError: the disk is full or the file cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> append_line(path, "one")
        >>> append_line(path, "two")
        >>> path.read_text().split()
        ['one', 'two']
    """
    with explain_os_errors(path), path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: of the file.

    Returns:
        Its text.

    Raises:
        RunError: the file is missing or is not text.

    Example:
        >>> read_text(Path("no/such/file"))
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: no/such/file: there is no such file
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
        path: of the file.

    Returns:
        Its value.

    Raises:
        RunError: the file is missing or is not JSON.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(path, [1, 2])
        >>> read_json(path)
        [1, 2]
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: is not JSON: {error}") from None


@contextlib.contextmanager
def only_one_process(folder: Path) -> Generator[None]:
    """Lock a folder against other processes of this package; the lock ends with this process at the latest.

    Args:
        folder: an existing one.

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
    """Turn an error of the disk into a :class:`RunError` that says how to go on.

    Args:
        path: of the file that is being written.

    Raises:
        RunError: in place of an OSError.

    Example:
        >>> with explain_os_errors(Path("a.txt")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: a.txt: the disk is full; free some space and go on with --resume
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
