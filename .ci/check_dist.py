"""Compare a wheel and a source archive with the files in git.

    python .ci/check_dist.py dist

A file of the package that is missing in either is an error, and so is one that does not belong there.
"""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(folder: Path) -> None:
    """Check what is in a folder, or end with the differences."""
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]
    compare(wheel, in_wheel(wheel), tracked(settings["wheel"]["packages"]))
    compare(
        archive, in_archive(archive), tracked(["pyproject.toml", *settings["sdist"]["include"]])
    )


def tracked(paths: list[str]) -> set[str]:
    """List the files in git below some paths."""
    command = ["git", "ls-files", "-z", "--", *paths]
    return set(filter(None, subprocess.check_output(command, cwd=ROOT, text=True).split("\0")))


def in_wheel(path: Path) -> set[str]:
    """List the files of a wheel but those about the wheel itself."""
    return {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}


def in_archive(path: Path) -> set[str]:
    """List the files of a source archive but those that the build adds."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return names - {"PKG-INFO", ".gitignore"}


def compare(path: Path, found: set[str], wanted: set[str]) -> None:
    """End with the files that are missing, and those that do not belong there."""
    if found != wanted:
        missing, foreign = sorted(wanted - found), sorted(found - wanted)
        sys.exit(f"{path.name}: missing: {missing}; not in git: {foreign}")
    print(f"{path.name}: {len(found)} files, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
