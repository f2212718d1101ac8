"""Data flows one way, and so do imports."""

import ast
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from public import public_homes, public_modules

import mesaopt

ROOT = Path(mesaopt.__file__).parent
INIT = ROOT / "__init__.py"

# What each part of the package may import besides itself. `base` is what everything may.
BASE = {"errors", "config", "files", "json_files", "progress", "workers"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "json_files": {"errors", "files"},
    "progress": {"errors"},
    "workers": {"errors"},
    "recipes": {"config", "errors"},
    "ops": BASE,
    "corpus": BASE,
    "tasks": BASE | {"ops", "corpus"},
    "theory": BASE | {"ops", "tasks", "corpus"},
    "layers": BASE | {"ops"},
    "models": BASE | {"ops", "layers"},
    "training": BASE | {"ops", "layers", "models", "tasks", "recipes"},
    "analysis": BASE | {"ops", "layers", "models", "tasks", "theory", "training", "recipes"},
    "papers": BASE
    | {"ops", "layers", "models", "tasks", "theory", "training", "analysis", "recipes"},
    "report": BASE | {"papers", "analysis"},
    "bench": BASE | {"ops", "layers", "models", "tasks", "theory", "training", "recipes"},
}
ALLOWED["looks"] = set()
ALLOWED["display"] = {"errors", "looks"}
ALLOWED["training"].add("display")
ALLOWED["sweeps"] = BASE | {"training", "display"}
ALLOWED["papers"].add("sweeps")
ALLOWED["analysis"] |= {"display", "looks"}
ALLOWED["papers"].add("looks")
ALLOWED["report"].add("looks")
ALLOWED["zoo"] = ALLOWED["papers"] | {"papers", "display"}
ALLOWED["released"] = BASE | {"models", "recipes", "tasks", "training"}
ALLOWED["hf"] = BASE | {"ops", "layers", "models", "training", "corpus"}
ALLOWED["arguments"] = set()
ALLOWED["argument_lists"] = {"arguments"}
ALLOWED["console"] = {"errors"}
ALLOWED["bench"].add("console")
ALLOWED["commands"] = set(ALLOWED)
ALLOWED["cli"] = {"errors", "arguments", "argument_lists", "commands", "config", "recipes"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = set(ALLOWED)  # for type checkers, and on first use


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a file imports, wherever in the file, examples included."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        assert not any(name.startswith(".") for name in names), f"{path}: relative import"
        parts |= {name.split(".")[1] for name in names if name.startswith("mesaopt.")}
    return parts


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    unexpected = imported_parts(path) - ALLOWED[part] - {part}
    assert not unexpected, f"{part} may not import {sorted(unexpected)}"


def _papers_imports() -> dict[str, set[str]]:
    """Modules of `papers` that each module of it imports."""
    modules = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
        for path in (ROOT / "papers").rglob("*.py")
        if path.name != "__init__.py"
    }
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                imports[name] |= names & set(modules)
    return imports


def test_papers_are_at_most_five_floors_high() -> None:
    imports = _papers_imports()

    def floor(name: str) -> int:
        return 1 + max(map(floor, imports[name]), default=0)

    floors = {name: floor(name) for name in imports}
    high = {name: height for name, height in floors.items() if height > 5}
    assert not high, "modules that stand on four others, one on the other, at most"


def test_papers_do_not_know_each_other_and_their_frame_knows_neither() -> None:
    for name, imported in _papers_imports().items():
        paper = name.removeprefix("mesaopt.papers.").split(".")[0]
        others = {other.split(".")[2] for other in imported if other.count(".") == 3}
        assert others <= {paper}, f"{name} imports another paper"


def test_the_parser_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; import mesaopt, mesaopt.cli, mesaopt.recipes, mesaopt.papers.claims;"
        "print([m for m in ('torch', 'matplotlib', 'numpy', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_submodules_load_on_first_use() -> None:
    code = (
        "import sys, mesaopt; print(mesaopt.recipes.get('lsa-1').seed, 'theory' in dir(mesaopt));"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["0", "True", "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mesaopt.nothing


def test_every_name_of_the_top_level_is_there_and_documented() -> None:
    for name in mesaopt.__all__:
        assert name in dir(mesaopt)
        assert getattr(mesaopt, name).__doc__, name
    assert mesaopt.train is mesaopt.training.train
    assert mesaopt.load("lsa-1").config.recipe == "lsa-1"
    shown = pydoc.plain(pydoc.render_doc(mesaopt))
    for name in ("train", "load_run", "diagnose", "MesaLayer"):
        assert re.search(rf"^    (class )?{name}\(", shown, re.MULTILINE), name


def test_type_checkers_see_every_name_of_the_top_level() -> None:
    (block,) = (node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
    seen = {alias.name for line in block.body for alias in line.names}
    assert seen == set(mesaopt.__all__)


def test_a_part_offers_names_or_is_known_to_be_internal() -> None:
    offering = {name.split(".")[1] for name in public_modules()}
    internal = {"arguments", "argument_lists", "bench", "cli", "commands", "console", "__main__"}
    internal |= {"files", "json_files", "looks", "__init__"}
    assert offering | internal == {part_of(path) for path in ROOT.rglob("*.py")}
    assert not offering & internal


def test_a_public_name_has_one_home() -> None:
    pytest.importorskip("transformers", "5.16")
    apart = {
        name: homes
        for (name, _), homes in public_homes().items()
        if not all(other.startswith(f"{homes[0]}.") for other in homes[1:])
    }
    assert apart == {}, "a package may offer what a module inside of it offers, and no other"


_WITHOUT_TORCH = """
import sys


class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"torch", "matplotlib", "numpy", "scipy"}:
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refuse())
from mesaopt import cli

for line in sys.argv[1:]:
    try:
        cli.main(line.split())
    except SystemExit as end:
        print("status", end.code, "of", line)
"""


def test_commands_that_show_what_there_is_need_neither_torch_nor_numpy(
    results: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    names = ("train", "evaluate", "diagnose", "compare", "reproduce", "demo", "bench", "doctor")
    helps = ["--help", *(f"{name} --help" for name in names)]
    lines = [
        *helps,
        "list",
        "list zoo --json",
        "doctor",
        "doctor --json",
        f"claims {folder}",
        f"report {folder}",
    ]
    command = [sys.executable, "-c", _WITHOUT_TORCH, *lines]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    status = {line: f"status {int(line.startswith('claims'))} of {line}" for line in lines}
    assert [line for line in lines if status[line] not in done.stdout] == []
