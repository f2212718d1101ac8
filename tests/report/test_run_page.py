import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import exit_status as run
from helpers import is_for_keyboards

from mesaopt.report.page import plain
from mesaopt.training import RunFolder

SAVED = Path(__file__).parents[1] / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(SAVED / "run", tmp_path / "my run")


def test_the_page_of_a_run_shows_curve_settings_and_what_comes_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", str(folder)) == 0
    page = folder / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    html, config = page.read_text(), RunFolder(folder).config
    last = RunFolder(folder).metrics[-1]
    assert f"test loss {last['test_loss']:.4f} after {last['step']:,} of" in html
    for words in (f"<td>{config.train.learning_rate}</td>", "test loss", "Where it was trained"):
        assert words in html
    assert f"mesaopt evaluate &#39;{folder}&#39;" in html
    assert html.count("<svg") == 1
    assert is_for_keyboards(html)
    assert "<script" not in html
    assert RunFolder(folder).is_done, "the page in its folder does not disturb a run"


def test_the_page_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    folder = shutil.copytree(SAVED / "stopped-run", tmp_path / "stopped")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 9')
    assert run("report", str(folder), "--out", str(tmp_path / "page.html")) == 0
    assert "It has not ended; --resume goes on." in (tmp_path / "page.html").read_text()
    assert run("report", str(folder), "--out", str(tmp_path / "curve.png")) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_the_zoo_gets_its_page_here_and_torch_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import atexit, os, sys\nfrom mesaopt import cli\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "os.chdir(sys.argv[1]); cli.main(['report', 'zoo:lsa-1'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lsa-1.html\nFalse\n", "")
    assert "mesaopt diagnose zoo:lsa-1" in (tmp_path / "lsa-1.html").read_text()


def test_what_a_stranger_wrote_is_text(folder: Path) -> None:
    path = folder / "meta.json"
    meta = json.loads(path.read_text()) | {"processor": "<script>alert(1)</script>"}
    path.write_text(json.dumps(meta))
    assert run("report", str(folder)) == 0
    assert "&lt;script&gt;alert(1)" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "--out", "page.pdf"), "must end in .png, .svg, .html"),
        (("zoo:lsa1",), "did you mean 'lsa-1'?"),
        (("{run}", "--opne"), "did you mean '--open'?"),
    ],
)
def test_misuse(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(run=folder) for word in arguments]
    assert run("report", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damage", ['{"step": 0}\n', "", "{\n"])
def test_damaged_metrics_are_named(
    damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "metrics.jsonl").write_text(damage)
    assert run("report", str(folder)) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_names_in_figures_are_no_formulas_and_not_hidden() -> None:
    assert plain("cost $a$\n") == r"cost \$a\$ "
    assert plain("_hidden") == " _hidden"
