import doctest
import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest

from mesaopt import arguments as help_texts
from mesaopt import recipes
from mesaopt.argument_lists import commands
from mesaopt.cli import _checked
from mesaopt.papers.index import STUDIES

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


PAGES = [
    "start/first-minute",
    "how-to/layer",
    "how-to/own-task",
    "how-to/report",
    "how-to/train",
    "algorithms",
    "performance",
]


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


SHOWN = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md")), Path(help_texts.__file__)]
NAMED = {"train": recipes.RECIPES, "sweep": recipes.RECIPES, "reproduce": STUDIES}
"""What the first word after a command is one of."""


def _lines(path: Path) -> list[list[str]]:
    """Give the command lines that a page shows, as words after `mesaopt`."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^```(?:console|)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    shown = re.findall(r"^ *(?:torchrun .*-m )?mesaopt ([a-z].*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in shown]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_commands_that_are_shown_can_be_given(path: Path) -> None:
    for words in _lines(path):
        assert words[0] in commands(), words
        _checked(words)
        for name in re.findall(r"runs/([^/\s]+)-seed\d", " ".join(words)):
            assert name in recipes.RECIPES, words
        if len(words) > 1 and words[0] in NAMED and re.match(r"[a-z]", words[1]):
            assert words[1].split("/")[0] in NAMED[words[0]], words


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_no_two_commands_of_a_page_write_into_one_folder(path: Path) -> None:
    new: Counter[str] = Counter()
    for words in _lines(path):
        if words[0] not in NAMED or {"--resume", "--dry-run"} & {*words}:
            continue
        out = words[words.index("--out") + 1] if "--out" in words else ""
        new[out or (words[1] if words[0] == "train" else words[0])] += 1
    assert not [folder for folder, count in new.items() if count > 1]
    assert not [(one, other) for one in new for other in new if other.startswith(f"{one}/")]
