import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesaopt import files, json_files
from mesaopt.errors import RunError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the new")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        files.write(path, fail)
    assert path.read_text() == "old"


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: files.write(tmp_path / "a.txt", "text"),
        lambda: files.append_line(tmp_path / "b.txt", "line"),
    ):
        with pytest.raises(RunError, match="the disk is full; free some space") as error:
            write()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a.txt").exists()


def test_other_refusals_of_the_disk_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        files.write(tmp_path / "file" / "below.txt", "text")


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from mesaopt import files\n"
        "with files.only_one_process(pathlib.Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with files.only_one_process(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True)
    assert "another process is working in this folder" in second.stderr
    assert subprocess.run(command).returncode == 0


def test_a_name_of_the_longest_length_is_written(tmp_path: Path) -> None:
    files.write(tmp_path / ("x" * 255), "text")
    assert files.names(tmp_path) == ["x" * 255]
    with pytest.raises(RunError, match="File name too long"):
        files.write(tmp_path / ("x" * 256), "text")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.EROFS])
def test_every_operation_explains_the_system(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("open", "stat", "listdir", "unlink", "rename", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    for operation in (
        lambda: files.write(path, "text"),
        lambda: files.append_line(path, "line"),
        lambda: files.read_bytes(path),
        lambda: files.read_text(path),
        lambda: json_files.read(path),
        lambda: files.exists(path),
        lambda: files.is_folder(path),
        lambda: files.names(path),
        lambda: files.make_folder(path / "b"),
        lambda: files.move(path, path),
        lambda: files.remove(path),
        lambda: files.only_one_process(path).__enter__(),
    ):
        with pytest.raises(RunError, match=os.strerror(number)) as error:
            operation()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert "damaged" not in str(error.value)


def test_a_folder_that_cannot_be_locked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with (
        pytest.raises(RunError, match="cannot be locked: No locks available"),
        files.only_one_process(tmp_path),
    ):
        pass


def test_an_error_of_the_work_is_not_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="of the work"), files.only_one_process(tmp_path):
        raise BlockingIOError("of the work")


def test_links_folders_and_devices_are_not_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("important")
    link.symlink_to(target)
    with pytest.raises(RunError, match="cannot be written: is a link"):
        files.append_line(link, "more")
    files.write(link, "new")
    assert (target.read_text(), link.read_text()) == ("important", "new")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(RunError, match="is a folder or a device"):
            files.write(tmp_path / name, "text")
        with pytest.raises(RunError, match="is not a file"):
            files.read_text(tmp_path / name)


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "a.png", fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".safetensors", ""])
def test_the_temporary_file_has_the_ending_and_nobody_knows_its_name(
    tmp_path: Path, suffix: str
) -> None:
    seen: list[Path] = []
    for _ in range(2):
        files.write(tmp_path / f"a{suffix}", seen.append)
    assert seen[0] != seen[1]
    assert {path.suffix for path in seen} == {suffix}
    assert all(path.name.startswith(files.TEMPORARY) for path in seen)


IN_ASCII = r"""
import pathlib, sys
from mesaopt import files, json_files
path = pathlib.Path(sys.argv[1])
files.write(path, "\u00b1 \u00e9 ")
files.append_line(path, "\u00b2")
assert files.read_text(path) == "\u00b1 \u00e9 \u00b2\n"
assert path.read_bytes().decode("utf-8") == "\u00b1 \u00e9 \u00b2\n"
json_files.write(path, {"a": "\u00b1\udcff"})
assert json_files.read(path) == {"a": "\u00b1\udcff"}
"""


def test_text_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", IN_ASCII, str(tmp_path / "a")]
    subprocess.run(command, check=True, env=os.environ | ascii_only)


def test_whether_a_path_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files.require_writable(tmp_path / "a" / "b" / "c.html")
    for path, message in (
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "new" / ("x" * 256), "File name too long"),
    ):
        with pytest.raises(RunError, match=message):
            files.require_writable(path)
