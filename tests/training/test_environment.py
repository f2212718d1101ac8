"""What a run notes about the machine and the code."""

import subprocess
from pathlib import Path

import pytest

from mesaopt.training import environment


@pytest.mark.parametrize(
    ("changed", "shows"),
    [
        ("mesaopt/training/environment.py", True),
        ("mesaopt/ops/exact.py", True),
        ("mesaopt/new.py", True),
        ("docs/page.md", False),
    ],
)
def test_the_commit_is_marked_where_any_file_of_the_package_differs(
    changed: str, shows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    tracked = [tmp_path / "mesaopt" / name for name in ("training/environment.py", "ops/exact.py")]
    for path in tracked:
        path.parent.mkdir(parents=True)
        path.touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(environment, "__file__", str(tracked[0]))
    clean = environment.describe()["git"]
    assert len(clean) == 40
    (tmp_path / changed).parent.mkdir(exist_ok=True)
    (tmp_path / changed).write_text("changed")
    assert environment.describe()["git"] == clean + ("+changes" if shows else "")
