import doctest
import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest
from shown_commands import Shown, codes, in_help, in_page, in_source, problem

import mesaopt
from mesaopt.argument_lists import arguments_of, commands

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


TOP = [DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WRITING = {"train", "sweep", "reproduce"}
SHOWN = [*TOP, *sorted(DOCS.rglob("*.md"))]
PROGRAMS_OF_OTHERS = {"--nnodes", "--rdzv-endpoint"}
"""Options of torchrun."""
each_page = pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)


@each_page
def test_commands_that_are_shown_can_be_given(path: Path) -> None:
    found = map(problem, in_page(path.read_text()))
    assert [one for one in found if one] == []


def test_commands_in_texts_of_the_program_can_be_given() -> None:
    sources = Path(mesaopt.__file__).parent.rglob("*.py")
    shown = [one for path in sources for one in in_source(path.read_text())]
    shown += [one for kind in commands().values() for one in in_help(kind)]
    assert len(shown) > 70
    assert [one for one in map(problem, shown) if one] == []


@each_page
def test_options_that_are_mentioned_are_those_of_a_command(path: Path) -> None:
    alone = [code for code in codes(path.read_text()) if code.startswith("--")]
    named = {name for code in alone for name in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    known = {one.name for kind in commands().values() for one in arguments_of(kind)}
    assert named <= known | {"--help", "--version"} | PROGRAMS_OF_OTHERS


PAGE = """
Of `mesaopt` there is `mesaopt train
lsa-1`, `torchrun --nproc-per-node 2 -m mesaopt train lsa-1`, ``python -m mesaopt list``.

| `mesaopt completion bash\\|zsh` | `pip install mesaopt` |

```console
pip install mesaopt   # and then
FAST=1 .venv/bin/mesaopt demo && mesaopt claims out --json > claims.json   # it's written
eval "$(mesaopt completion bash)"; mesaopt train lsa-1 \\
  --seeds 3
```

```
mesaopt doctor
```

```text
mesaopt: interrupted
```
"""


def test_commands_are_found_in_lines_sentences_and_tables() -> None:
    found = in_page(PAGE)
    assert [shlex.join(one.words) for one in found if one.is_whole] == [
        "demo",
        "claims out --json",
        "completion bash",
        "train lsa-1 --seeds 3",
        "doctor",
    ]
    assert [shlex.join(one.words) for one in found if not one.is_whole] == [
        "train lsa-1",
        "train lsa-1",
        "list",
        "completion bash",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "trian lsa-1",
        "train lsa1",
        "train lsa-1 --step 5",
        "train lsa-1 --seeds many",
        "train lsa-1 --set train.step=5",
        "train lsa-1 --set train.steps=0",
        "train lsa-1 --set seed=5",
        "train lsa-1 --task own:Task --set train.step=5 task.size=3",
        "train lsa-1 --track tensorbord",
        "train lsa-1 --device gpu",
        "sweep lsa-1 --grid train.step=1,2",
        "sweep lsa-1 --engine rya",
        "sweep lsa-1 --engine local --engine-set process=2",
        "evaluate zoo:lsa1",
        "evaluate runs/lsa1-seed0",
        "evaluate zoo:lsa-1 --csv --json",
        "evaluate zoo:lsa-1 --out losses.pdf",
        "generate runs/lm-mesanet-seed0 --prompt a --beams 2 --top-k 3",
        "reproduce cor",
        "reproduce core --scale tiny",
        "reproduce core/fig1",
        "reproduce emergence2024 --only fig1,fig99",
        "reproduce emergence2024 --from-zoo",
        "reproduce core --engine-set processes=2",
        "bench trian",
        "bench train --recipe lsa1",
        "bench ops --repeats 3",
        "completion fish",
        "mesaopt.papers.leger RESULTS",
        "mesaopt.papers.claims RESULTS",
    ],
)
@pytest.mark.parametrize("is_whole", [True, False], ids=["line", "mention"])
def test_a_command_that_could_not_be_given_is_found(
    words: str, is_whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem(Shown(tuple(words.split()), is_whole)) is not None


@pytest.mark.parametrize(
    "words",
    [
        "train RECIPE --set NAME=VALUE",
        "train --seeds",
        "train ... --set train.steps=5",
        "evaluate",
        "evaluate RUN...",
        "generate RUN --beams 2",
        "reproduce --from",
        "COMMAND --help",
        "bench",
    ],
)
def test_a_mention_may_have_gaps_and_a_line_may_not(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem(Shown(tuple(words.split()), is_whole=False)) is None
    assert problem(Shown(tuple(words.split()), is_whole=True)) is not None


@each_page
def test_no_two_commands_of_a_page_write_into_one_folder(path: Path) -> None:
    new: Counter[str] = Counter()
    for words in (one.words for one in in_page(path.read_text()) if one.is_whole):
        if words[0] not in WRITING or {"--resume", "--dry-run"} & {*words}:
            continue
        out = words[words.index("--out") + 1] if "--out" in words else ""
        new[out or (words[1] if words[0] == "train" else words[0])] += 1
    assert not [folder for folder, count in new.items() if count > 1]
    assert not [(one, other) for one in new for other in new if other.startswith(f"{one}/")]
