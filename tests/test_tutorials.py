"""The tutorials run from top to bottom and print what they show; as notebooks they have the same code."""

import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pytest
import torch

import mesaopt

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
QUICKEST = "your-own-task"

TOLERANCE = 0.15
"""Largest relative difference of a number from the one on the page; near zero a tenth of it, absolute.

Short trainings differ between machines by rounding, which they amplify; pages show two or three digits.
"""

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
VARIES = "# yours will differ"
"""In code that prints what chance has made."""
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Cell(NamedTuple):
    code: str
    output: str


def cells(page: Path) -> list[Cell]:
    """Read the code of a page, with what is shown below each block."""
    blocks = BLOCK.findall(page.read_text())
    pairs = zip(blocks, [*blocks[1:], ("", "")], strict=True)
    shown = [
        Cell(text, after if kind == "text" else "")
        for (language, text), (kind, after) in pairs
        if language == "python"
    ]
    assert len(shown) == sum(language == "python" for language, _ in blocks)
    return shown


def check_output(printed: str, cell: Cell) -> None:
    """Compare what was printed with what the page shows: words exactly, numbers within the tolerance."""
    shown = cell.output
    assert bool(printed) == bool(shown)
    if VARIES in cell.code:
        return
    assert words(printed) == words(shown), printed
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    assert [float(a) for a, _ in pairs] == pytest.approx(
        [float(b) for b in NUMBER.findall(shown)], rel=TOLERANCE, abs=TOLERANCE / 10
    ), printed


def words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder to write into, with pictures that nobody sees, and random numbers of its own."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    with torch.random.fork_rng():
        yield {"__name__": "__main__"}
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_prints_what_it_shows(
    page: Path, session: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(cells(page)) >= 4
    for number, cell in enumerate(cells(page), start=1):
        exec(compile(cell.code, f"{page.name}, block {number}", "exec"), session)
        check_output(capsys.readouterr().out, cell)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_can_be_pasted(page: Path) -> None:
    text = page.read_text()
    assert ">>>" not in text
    assert "```python\n" in text
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_has_the_code_of_its_page(page: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(page)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code == [cell.code.rstrip("\n") for cell in cells(page)]


@pytest.mark.slow
def test_a_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest one; the code of all of them runs in the test above."""
    monkeypatch.setenv("PYTHONPATH", str(Path(mesaopt.__file__).parents[1]))  # the same as here
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    page = next(page for page in PAGES if page.stem.startswith(QUICKEST))
    notebook = jupytext.read(page)
    nbclient.NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, shown in zip(code, cells(page), strict=True):
        printed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
        check_output(printed, shown)
