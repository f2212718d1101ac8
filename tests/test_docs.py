import doctest
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["analyses.md", "emergence.md"])
def test_the_numbers_of_a_page_are_those_of_its_code(page: str) -> None:
    result = doctest.testfile(str(DOCS / page), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


@pytest.mark.parametrize("page", ["models.md", "tasks.md", "language.md", "tasks-on-tokens.md"])
def test_the_code_of_a_page_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    for code in blocks:
        exec(compile(code, page, "exec"), {"__name__": page})


def test_the_conceptual_figure_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_mesa_optimizer.py"))["figure"]()
    assert (DOCS / "images" / "mesa-optimizer.svg").read_text() == drawn


PAGES = ["start/first-minute", "how-to/layer", "how-to/own-task", "how-to/report", "how-to/train"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_short_page_can_be_pasted(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    assert blocks
    names: dict = {"__name__": "page"}
    for code in blocks:
        assert ">>>" not in code
        exec(compile(code, page, "exec"), names)
