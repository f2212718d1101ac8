"""A results folder with a damaged file, or with files that do not belong to it."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import exit_status

from mesaopt.papers.plan import Study

DAMAGED = {
    "config.json": ["", "[]", "3", "null"],
    "claims.json": ["", "{}", "[3]"],
    "meta.json": ["", "[]", "{}"],
    "DONE": ["", "[]", "{}"],
    "figures/index.json": ["", "[]", "{}"],
}


def resume(folder: Path) -> int:
    arguments = ("reproduce", "core", "--scale", "smoke", "--out", str(folder), "--device", "cpu")
    return exit_status(*arguments, "--resume")


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_damage_in_finished_results_is_one_line_and_status_2(
    results: Path,
    tmp_path: Path,
    tiny_core: Study,
    name: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    (folder / name).write_text(text)
    assert resume(folder) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert name in shown.err or "differ" in shown.err


PARTS = ["", "[]", "{}", "null", '{"figures": 3, "claims": [], "seconds": 1}']
PARTS += [
    '{"figures": [], "claims": [3], "seconds": 1}',
    '{"figures": [], "claims": [{}], "seconds": 1}',
]


@pytest.mark.parametrize("text", PARTS)
def test_damage_in_a_part_is_one_line_and_status_2(
    results: Path, tmp_path: Path, tiny_core: Study, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    (folder / "DONE").unlink()
    part = next((folder / "parts").iterdir())
    part.write_text(text)
    assert resume(folder) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mesaopt: ")
    assert part.name in last


def test_stray_names_in_results_are_ignored(
    results: Path, tmp_path: Path, tiny_core: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    for place in (
        ".",
        "runs",
        "figures",
        "parts",
        "runs/lsa-1-seed0",
        "runs/lsa-1-seed0/checkpoints",
    ):
        for name in (".DS_Store", "step_000004-hf", "notes (conflicted copy).json"):
            (folder / place / name).write_text("what a user or a sync tool left")
        (folder / place / ".part-x").mkdir()
    (folder / "DONE").unlink()
    assert resume(folder) == 1, "untrained models fail claims"
    claims = json.loads((folder / "claims.json").read_text())
    assert claims == json.loads((results / "claims.json").read_text())


@pytest.mark.parametrize("ending", ["csv", "json"])
@pytest.mark.parametrize("text", ["", "{}", "[]", "a,b\n1\n", "a\n1,2,3\n", '{"panels": {"x": 3}}'])
def test_figures_with_damaged_numbers_are_not_drawn_again(
    results: Path,
    tmp_path: Path,
    tiny_core: object,
    ending: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    (name,) = json.loads((folder / "figures" / "index.json").read_text())["figures"][:1]
    (folder / "figures" / f"{name}.{ending}").write_text(text)
    assert exit_status("report", str(folder), "--redraw") == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert name in shown.err


@pytest.mark.parametrize("linked", ["figures", "one"])
def test_figures_elsewhere_are_neither_read_nor_written(
    results: Path,
    tmp_path: Path,
    tiny_core: object,
    linked: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    (name,) = json.loads((folder / "figures" / "index.json").read_text())["figures"][:1]
    path = folder / "figures" if linked == "figures" else folder / "figures" / f"{name}.csv"
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = [(p, p.stat().st_mtime_ns) for p in [outside, *outside.rglob("*")]]
    assert exit_status("report", str(folder), "--redraw") == 2
    assert "leads out of the folder" in capsys.readouterr().err
    assert [(p, p.stat().st_mtime_ns) for p in [outside, *outside.rglob("*")]] == before
