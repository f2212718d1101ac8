"""All dealings with the file system: writing by rename, reading, locks; errors are one line.

Files appear whole or not at all, in UTF-8 whatever the locale. Every refusal of the system is a
:class:`~mesaopt.errors.RunError` that names the path.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path

from mesaopt.errors import ConfigError, RunError, wrong_type

TEMPORARY = ".part-"
"""Prefix of a file that is still being written; a file left behind by a kill does no harm."""
_LOCK_EVERY_SECONDS = 0.2


def as_path(path: str | Path) -> Path:
    """Return a path as the user means it: `~` is the home folder, also in `--out=~/runs/x`.

    Args:
        path: as given.

    Returns:
        The path.

    Raises:
        TypeError: it is no path.
        ConfigError: there is no such home folder, or the path holds a null character.

    Example:
        >>> as_path("~/runs") == Path.home() / "runs"
        True
    """
    if not isinstance(path, str | os.PathLike):
        hint = ", such as its .path" if hasattr(path, "path") else ""
        raise wrong_type("path", path, f"a path{hint}")
    if "\0" in str(path):
        raise ConfigError(f"path={str(path)!r}: must be without null characters")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"path={str(path)!r}: there is no such home folder") from None


def write(path: Path, content: str | bytes | Callable[[Path], None]) -> None:
    """Write a file under a temporary name, then rename it.

    A kill leaves the old file or the new one, never a part of one. A link at the path is replaced, never
    followed.

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
    # A short name that nobody can know beforehand, with the ending, by which matplotlib chooses the format.
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8) + path.suffix[-16:])
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if exists(path) and not path.is_file() and not path.is_symlink():
            raise RunError(f"{path}: cannot be written: is a folder or a device; give a file")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(_encode(content) if isinstance(content, str) else content)
            _flush(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Append one line, and return once it is on the disk.

    Args:
        path: of the file, which may not be a link.
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
    with explain_os_errors(path):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o666), "ab") as file:
            file.write(_encode(line + "\n"))
            file.flush()
            os.fsync(file.fileno())


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Args:
        path: of the file.

    Returns:
        All that is in it.

    Raises:
        RunError: the file is missing, cannot be opened or is a folder, a pipe or a device.

    Example:
        >>> read_bytes(Path("no/such/file"))
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: no/such/file: there is no such file
    """
    with explain_os_errors(path, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RunError(f"{path}: is not a file")
        with open(descriptor, "rb") as file:
            return file.read()


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: of the file.

    Returns:
        Its text.

    Raises:
        RunError: the file is missing, cannot be opened or is not text.

    Example:
        >>> read_text(Path("no/such/file"))
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: no/such/file: there is no such file
    """
    try:
        return read_bytes(path).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: is damaged: is not text in UTF-8: {error}") from None


def exists(path: Path) -> bool:
    """Say whether there is a file or a folder; one that may not be looked at is an error, not absent.

    Args:
        path: of either.

    Returns:
        Whether there is one.

    Raises:
        RunError: the system does not tell.

    Example:
        >>> exists(Path("no/such/file"))
        False
    """
    with explain_os_errors(path, "read"):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def is_folder(path: Path) -> bool:
    """Say whether there is a folder.

    Args:
        path: of it.

    Returns:
        Whether there is one.

    Raises:
        RunError: the system does not tell.

    Example:
        >>> is_folder(Path("no/such/folder"))
        False
    """
    return exists(path) and path.is_dir()


def names(folder: Path) -> list[str]:
    """List the names in a folder, sorted; none where there is no folder.

    Args:
        folder: to be listed.

    Returns:
        Names of its files and folders, without those still being written.

    Raises:
        RunError: it cannot be read.

    Example:
        >>> names(Path("no/such/folder"))
        []
    """
    with explain_os_errors(folder, "read"):
        found = os.listdir(folder) if exists(folder) else []
    return sorted(name for name in found if not name.startswith(TEMPORARY))


def require_writable(path: Path) -> None:
    """Check that a file or folder can be made, before the work whose result it will hold.

    Args:
        path: of it; the folders above it need not exist.

    Raises:
        RunError: a name is too long, or the folder above does not allow it.

    Example:
        >>> import tempfile
        >>> require_writable(Path(tempfile.mkdtemp()) / "a" / "b.html")
    """
    with explain_os_errors(path):
        above = path.absolute().parent
        while not exists(above):
            above = above.parent
        longest = os.pathconf(above, "PC_NAME_MAX")
        if any(
            len(os.fsencode(part)) > longest for part in path.absolute().relative_to(above).parts
        ):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if not above.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def require_free(folder: Path) -> None:
    """Check that a folder is new or empty, before the work whose results it will hold.

    Args:
        folder: to write into; if it does not exist, it must be possible to make it.

    Raises:
        RunError: it holds files, is a file itself, or cannot be made.

    Example:
        >>> import tempfile
        >>> require_free(Path(tempfile.mkdtemp()))
    """
    if not exists(folder):
        require_writable(folder)
    elif not is_folder(folder) or names(folder):
        raise RunError(f"{folder}: exists already: must be a new or an empty folder")


def inside(folder: Path, *names: str) -> Path:
    """Return the path of something in a folder, and refuse one that leads out of it by a link.

    Args:
        folder: that may come from anyone.
        names: of the folders below it and of the file.

    Returns:
        The path.

    Raises:
        RunError: it leads out of the folder.

    Example:
        >>> inside(Path("results"), "..", "notes.txt")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: results/../notes.txt: leads out of the folder: must be in it, and no link
    """
    path = folder.joinpath(*names)
    with explain_os_errors(path, "read"):
        home, found = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([home, found]) != home:
        raise RunError(f"{path}: leads out of the folder: must be in it, and no link")
    return path


def make_folder(path: Path) -> None:
    """Make a new folder, and those above it.

    Args:
        path: of the folder, which may not exist yet.

    Raises:
        RunError: there is something already, or it cannot be made.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a" / "b"
        >>> make_folder(path)
        >>> path.is_dir()
        True
    """
    with explain_os_errors(path):
        path.mkdir(parents=True)


def move(path: Path, target: Path) -> None:
    """Rename a file or a folder.

    Args:
        path: of it.
        target: its new path, in the same folder.

    Raises:
        RunError: it cannot be renamed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> write(path, "hello")
        >>> move(path, path.with_name("b"))
        >>> names(path.parent)
        ['b']
    """
    with explain_os_errors(path):
        path.rename(target)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is none.

    Args:
        path: of it; a link is removed, not what it leads to.

    Raises:
        RunError: it cannot be removed.

    Example:
        >>> remove(Path("no/such/file"))
    """
    with explain_os_errors(path, "removed"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one_process(path: Path, *, wait: float = 0.0) -> Generator[None]:
    """Lock a path against other processes of this package; the lock ends with this process at the latest.

    Args:
        path: an existing folder, or a file: a network file system passes the locks of files on to other
            machines, but not those of folders.
        wait: seconds to wait for a process that works there now, such as one that is being killed.

    Raises:
        RunError: another process is working there, or it cannot be locked.

    Example:
        >>> import tempfile
        >>> with only_one_process(Path(tempfile.mkdtemp())):
        ...     print("alone")
        alone
    """
    until = time.monotonic() + wait
    with explain_os_errors(path, "locked"):
        # The path itself: no file is left behind.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        while not _is_locked(path, descriptor):
            if time.monotonic() >= until:
                where = "folder" if path.is_dir() else "file"
                raise RunError(f"{path}: another process is working in this {where}")
            time.sleep(_LOCK_EVERY_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _is_locked(path: Path, descriptor: int) -> bool:
    """Try to lock an open file, and say whether it is locked now."""
    with explain_os_errors(path, "locked"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def explain_os_errors(path: Path, done: str = "written") -> Generator[None]:
    """Turn an error of the system into a :class:`RunError` that says how to go on.

    Args:
        path: of the file.
        done: what is tried with it: "written", "read", "removed", "locked".

    Raises:
        RunError: in place of an OSError.

    Example:
        >>> with explain_os_errors(Path("a.txt")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: a.txt: the disk is full; free some space and try again
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        raise RunError(f"{path}: {_problem(number, error, done)}") from error


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error; libraries that write files wrap it in errors of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if "No space left" in str(error):
        return errno.ENOSPC
    found = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
    if found:
        return int(found[1] or found[2])
    return errno.EIO if isinstance(error, OSError) else None


def _problem(number: int, error: Exception, done: str) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and try again"
    if number == errno.ENOENT and done == "read":
        return "there is no such file"
    if number == errno.ELOOP and done == "written":
        return "cannot be written: is a link"
    return f"cannot be {done}: {getattr(error, 'strerror', None) or os.strerror(number)}"


def _encode(text: str) -> bytes:
    r"""Encode text; a name that is not UTF-8 becomes \udcff and the like, which JSON reads back."""
    return text.encode(errors="backslashreplace")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
