import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesaopt import files
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


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such file"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunError, match=r"bad\.json: is not JSON"):
        files.read_json(tmp_path / "bad.json")


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
