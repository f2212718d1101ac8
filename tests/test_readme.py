"""What the README promises, and the map of the code in CONTRIBUTING.md."""

import re
from pathlib import Path

import pytest
import torch

import mesaopt

ROOT = Path(mesaopt.__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    names: dict = {}
    exec(code, names)
    assert "The layer is gradient descent" in capsys.readouterr().out
    # Predictions of at most 4, from sums of some 500 products: a hundred roundings of 4 * 6e-8.
    assert torch.all(names["difference"].abs() < 3e-5)


def test_every_file_it_names_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    (tree,) = re.findall(r"```\n(mesaopt/.*?)```", CONTRIBUTING, flags=re.DOTALL)
    inside = re.findall(r"^  (\w+/|(?:\w+\.py ?)+)", tree, flags=re.MULTILINE)
    paths = [*links, *(f"mesaopt/{name}" for line in inside for name in line.split())]
    assert len(paths) >= 20
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_command_it_shows_is_one() -> None:
    shown = set(re.findall(r"`mesaopt ([\w-]+)", README))
    wanted = "list demo import-released reproduce claims train sweep evaluate diagnose compare report bench"
    assert shown == {*wanted.split(), "doctor", "completion", "generate"}
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
