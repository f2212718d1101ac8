import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import tyro
from helpers import exit_status as run
from toy_study import Toy

from mesaopt import cli, recipes
from mesaopt.argument_lists import commands
from mesaopt.arguments import Command
from mesaopt.config import RunConfig
from mesaopt.errors import RunError
from mesaopt.papers.claims import read_claims
from mesaopt.papers.plan import Study
from mesaopt.papers.untrained import Untrained, write_untrained
from mesaopt.training import Devices, RunFolder, StepCost, StepCosts
from mesaopt.zoo import FOLDER

SHORT = ["train.steps=4", "train.batch_size=8", "train.evaluation_sequences=8", "task.length=8"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    for name in (
        "list",
        "doctor",
        "demo",
        "train",
        "sweep",
        "evaluate",
        "diagnose",
        "compare",
        "reproduce",
        "claims",
        "report",
        "bench",
    ):
        assert name in out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("list", {"json"}),
        ("doctor", {"json", "measure"}),
        ("demo", {"out", "train", "no-open"}),
        (
            "train",
            {
                "out",
                "seed",
                "set",
                "device",
                "resume",
                "dry-run",
                "seeds",
                "task",
                "model",
                "track",
                "shard",
                "parts",
                "recompute",
                "compile",
            },
        ),
        (
            "sweep",
            {"grid", "seeds", "set", "engine", "engine-set", "out", "device", "resume", "dry-run"},
        ),
        ("evaluate", {"sequences", "seed", "out", "json", "csv", "task", "model"}),
        (
            "generate",
            {
                "prompt",
                "tokens",
                "temperature",
                "top-k",
                "top-p",
                "samples",
                "beams",
                "seed",
                "device",
                "json",
            },
        ),
        ("diagnose", {"step", "sequences", "seed", "out", "json", "csv", "task", "model"}),
        ("compare", {"to", "sequences", "seed", "out", "json", "csv", "task", "model"}),
        (
            "reproduce",
            {
                "scale",
                "out",
                "seeds",
                "only",
                "device",
                "from",
                "from-zoo",
                "engine",
                "engine-set",
                "resume",
                "dry-run",
            },
        ),
        ("import-released", {"out", "overwrite", "json"}),
        ("claims", {"json"}),
        ("report", {"out", "open", "redraw"}),
        ("bench", {"recipe", "repeats", "threads", "official", "python", "quick", "goals", "json"}),
        ("completion", set()),
    ],
)
def test_the_options_are_these(
    command: str, options: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    # Lines that begin with an option, behind the frame of the box, and not the frame itself.
    shown = re.findall(r"^\W*--([a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(shown) == options


def test_every_help_text_ends_with_two_examples_that_can_be_typed() -> None:
    for command in get_args(Command):
        examples = (command.__doc__ or "").split("\n\n")[-2:]
        for example in (line.strip() for line in examples):
            # That of several devices begins with torchrun ... -m mesaopt.
            program, *arguments = shlex.split(example.rpartition("-m ")[2])
            assert program == "mesaopt"
            assert isinstance(tyro.cli(Command, args=arguments), command)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", commands())
def test_the_help_shows_no_default_that_says_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    shown = " ".join(re.sub("[│\\s]+", " ", capsys.readouterr().out).split())
    assert not re.search(r"\(default: (None|False|''|)\)", shown)


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    listed = re.findall(r"^  ([a-z-]+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert listed == [*commands()]


def test_the_help_says_how_to_see_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "mesaopt --version" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("recipe", "positions", "verb"),
    [("lsa-1", [1, 8], "diagnose"), ("ar-gaussian", [2, 7], "evaluate")],
    ids=["real", "complex"],
)
def test_the_whole_way_of_a_run(
    recipe: str,
    positions: list[int],
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "run")
    arguments = ["train", recipe, "--out", out, "--seed", "5", "--device", "cpu"]
    arguments += ["--set", *SHORT]
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert "test loss" in shown
    assert shown.splitlines()[-1] == f"Next: mesaopt {verb} {out}"
    assert RunFolder(Path(out)).config.seed == 5
    assert run(*arguments) == 2
    assert "--resume (in Python resume=True) goes on with" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    capsys.readouterr()
    assert run("evaluate", out, "--sequences", "1", "--json") == 0
    losses = json.loads(capsys.readouterr().out)
    assert list(losses) == [recipe, "one gradient step", "least squares"]
    assert losses["least squares"]["ridge"] > 0
    first, last = positions
    assert losses[recipe]["positions"] == list(range(first, last + 1))
    assert len(losses[recipe]["by_position"]) == last - first + 1
    assert run("evaluate", out, "--sequences", "1") == 0
    assert "least squares with ridge" in capsys.readouterr().out


def test_diagnose_answers_and_writes_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = str(tmp_path / "run"), tmp_path / "pages" / "run.html"
    assert run("train", "lsa-1", "--out", folder, "--device", "cpu", "--set", *SHORT) == 0
    capsys.readouterr()
    arguments = ["diagnose", folder, "--sequences", "1"]
    assert run(*arguments, "--out", str(page)) == 0, "no is an answer, not a failure"
    out = capsys.readouterr().out
    for words in ("Is there a mesa-optimizer in run?\nNo.", "NOT MET", "one fixed map", str(page)):
        assert words in out
    html = page.read_text()
    assert "<svg" in html
    assert "Is there a mesa-optimizer in run?" in html
    assert run(*arguments, "--step", "0", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["answer"] == "no"
    assert found["num_sequences"] == 256
    assert run(*arguments[:2], "--sequences", "0") == 2
    assert "sequences=0: must be 1 or greater" in capsys.readouterr().err


def test_diagnose_says_what_it_does_not_cover(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    assert run("train", "ar-gaussian", "--out", folder, "--device", "cpu", "--set", *SHORT) == 0
    assert run("diagnose", folder) == 2
    assert "task: has complex numbers: must have real ones" in capsys.readouterr().err


def test_several_seeds_get_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        "lsa-1",
        "--seed",
        "3",
        "--seeds",
        "2",
        "--device",
        "cpu",
        "--set",
        *SHORT,
    ]
    assert run(*arguments, "--dry-run") == 0
    assert "seeds       3, 4" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert run(*arguments) == 0
    assert capsys.readouterr().out.count("test loss") == 2
    for seed in (3, 4):
        assert RunFolder(tmp_path / "runs" / f"lsa-1-seed{seed}").config.seed == seed
    assert run(*arguments) == 2, "the folders are taken"
    assert run(*arguments, "--out", "elsewhere") == 0
    assert (tmp_path / "elsewhere" / "lsa-1-seed4" / "DONE").exists()


@pytest.mark.parametrize("how", [(), ("--parts", "2"), ("--recompute",), ("--compile",)])
def test_a_taken_folder_of_a_later_seed_is_refused_before_the_first_is_trained(
    how: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "lsa-1", "--device", "cpu", "--set", *SHORT, "--out", str(tmp_path)]
    RunFolder.open(tmp_path / "lsa-1-seed1", recipes.get("lsa-1", seed=1), resume=False)
    assert run(*arguments, "--seeds", "2", *how) == 2
    assert "lsa-1-seed1" in capsys.readouterr().err
    assert not (tmp_path / "lsa-1-seed0").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "train.steps=5", "--set", "train.batch_size=4"),
        ("--set=train.steps=5", "--set", "train.batch_size=4"),
        ("--set", "train.steps=5", "--seed", "0", "--set=train.batch_size=4"),
    ],
)
def test_values_of_a_repeated_option_all_count(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "lsa-1", *words, "--dry-run", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert '"steps": 5,' in out
    assert '"batch_size": 4,' in out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("evaluate a --sequences 256 b", "evaluate a b --sequences 256"),
        ("evaluate a --sequences=256 b --json c", "evaluate a b c --sequences=256 --json"),
        ("evaluate --out --json", "evaluate --out --json"),
        ("train --set train.steps=5 lsa-1", "train lsa-1 --set train.steps=5"),
        ("train --set train.steps=5 lsa-1 lsa-2", "train lsa-1 --set train.steps=5 lsa-2"),
        ("train --set train.steps 5", "train --set train.steps 5"),
        (
            "sweep --grid train.steps=5,6 --seeds 2 lsa-1",
            "sweep lsa-1 --grid train.steps=5,6 --seeds 2",
        ),
    ],
)
def test_words_may_come_behind_options(words: str, wanted: str) -> None:
    assert cli._checked(words.split()) == wanted.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "lsa-1", "--seeds", "2", "--seeds", "3"), "--seeds: is given twice"),
        (("train", "lsa-1", "--dry-run", "--dry_run"), "--dry-run: is given twice"),
        (("evaluate", "zoo:lsa-1", "--out=a", "--out=b"), "--out: is given twice"),
        (("reproduce", "core", "--only", "a", "--only", "b"), "--only: is given twice"),
        (
            ("train", "lsa-1", "--set", "train.steps=5", "train.steps=6"),
            "set='train.steps=6': train.steps is given twice",
        ),
        (
            ("sweep", "lsa-1", "--grid", "train.steps=5", "--grid", "train.steps=6,7"),
            "grid='train.steps=6,7': train.steps is given twice",
        ),
        (
            ("sweep", "lsa-1", "--engine-set", "processes=1", "--engine-set", "processes=2"),
            "engine_set='processes=2': processes is given twice",
        ),
    ],
)
def test_what_is_given_twice_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert capsys.readouterr().err == f"mesaopt: {message}\n"


def test_a_dry_run_prints_the_cost_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_core
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "lsa-1", "--dry-run", "--device", "cpu", "--set", *SHORT) == 0
    out = capsys.readouterr().out
    for word in ("parameters  6,400", "steps       4", "time        about", "memory      about"):
        assert word in out
    assert run("reproduce", "core", "--scale", "smoke", "--dry-run", "--device", "cpu") == 0
    out = capsys.readouterr().out
    for word in ("25,600", "mesa-1-seed0", "time in all", "memory"):
        assert word in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_prints_the_cost(
    rank: str, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("mesaopt.training.one_message", contextlib.nullcontext)
    assert run("train", "lsa-1", "--dry-run", "--device", "cpu", "--set", *SHORT) == 0
    assert bool(capsys.readouterr().out) == prints
    assert run("train", "lsa-1", "--dry-run", "--parts", "4", "--set", *SHORT) == 2
    message = "--parts: must not be given with torchrun and --dry-run, which times one process"
    assert message in capsys.readouterr().err


def test_a_dry_run_times_the_way_to_compute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def spy(*_: object, devices: object, **__: object) -> StepCost:
        seen.append(devices)
        return StepCost(1, 1.0)

    monkeypatch.setattr("mesaopt.training.step_cost", spy)
    arguments = ("train", "lsa-1", "--dry-run", "--device", "cpu", "--set", *SHORT)
    assert run(*arguments) == run(*arguments, "--parts", "4", "--recompute") == 0
    assert seen == [None, Devices(parts=4, recompute=True)]


def test_a_dry_run_prints_each_cost_before_it_measures_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_core: Study
) -> None:
    printed: list[str] = []

    class Spy(StepCosts):
        def of(self, configs: Sequence[RunConfig]) -> StepCost:
            printed.append(capsys.readouterr().out)
            return super().of(configs)

    monkeypatch.setattr("mesaopt.papers.trainings.StepCosts", Spy)
    assert run("reproduce", "core", "--scale", "smoke", "--dry-run", "--device", "cpu") == 0
    title, first, second = printed
    assert "core at scale smoke: training" in title
    assert re.findall(r"^[\w-]+-seed\d", first, re.M) == ["lsa-1-seed0", "lsa-1-seed1"]
    assert re.findall(r"^[\w-]+-seed\d", second, re.M) == ["lsa-2-notebook-seed0"]


def test_reproduce_says_where_the_report_is_and_whether_all_claims_hold(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_core: Study
) -> None:
    out = shutil.copytree(results, tmp_path / "results")
    (out / "DONE").unlink()  # trained and measured, but not finished: the rest takes no time
    arguments = ["reproduce", "core", "--scale", "smoke", "--out", str(out), "--device", "cpu"]
    assert run(*arguments, "--resume") == 1, "untrained models fail claims"
    assert f"Report: {out / 'index.html'}" in capsys.readouterr().out
    assert run("claims", str(out), "--json") == 1
    listed = json.loads(capsys.readouterr().out)
    wanted = {"id", "paper", "figure", "statement", "scale", "value", "threshold", "passed"}
    assert all(wanted <= set(claim) for claim in listed)
    assert [claim["passed"] for claim in listed] == [c.passed for c in read_claims(out)]
    (out / "index.html").unlink()
    assert run("report", str(out)) == 0
    assert (out / "index.html").exists()


def test_figures_are_chosen_by_option_or_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: Toy
) -> None:
    def reproduce(what: str, out: str, *more: str) -> int:
        return run("reproduce", what, "--scale", "smoke", "--out", str(tmp_path / out), *more)

    assert reproduce("toy", "two", "--only", "fig3,fig1") == 1, "half of its claims fail"
    assert "2 of 4 claims hold." in capsys.readouterr().out
    assert reproduce("toy", "one", "--only", "fig2") == 0, "it claims nothing"
    assert f"Report: {tmp_path / 'one' / 'index.html'}" in capsys.readouterr().out
    assert reproduce("toy/fig2", "one", "--resume") == 0, "the same settings"
    assert toy.log == ["fig1", "numbers", "fig3", "fig2", "numbers"]
    assert reproduce("toy/fig1", "one", "--resume") == 2
    assert "other settings (figures differ)" in capsys.readouterr().err


def test_a_dry_run_without_training_lists_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Toy
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["reproduce", "toy", "--scale", "smoke", "--dry-run", "--only", "fig1,fig3"]
    assert run(*arguments, "--seeds", "10") == 0
    out = capsys.readouterr().out
    assert re.findall(r"fig\d", out) == ["fig1", "fig1", "fig3", "fig3"], "name and summary"
    assert "ms a step" not in out
    for word in ("about 1 s", "about 3 s", "time in all  about 4 s"):
        assert word in out
    (memory,) = re.findall(r"memory +about (\d+) MiB", out)
    assert int(memory) > 1024, "the study asks for that much"
    assert toy.log == []
    assert not list(tmp_path.iterdir())


def test_claims_that_all_hold_exit_with_0(results: Path, tmp_path: Path) -> None:
    holding = [c for c in json.loads((results / "claims.json").read_text()) if c["passed"]]
    (tmp_path / "claims.json").write_text(json.dumps(holding))
    assert run("claims", str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "lsa1"), "recipe='lsa1': did you mean 'lsa-1'?"),
        (("train", "lsa-1", "--set", "train.steps=0"), "steps=0: must be greater than 0"),
        (("train", "lsa-1", "--set", "task.dim=-2"), "dim=-2: must be greater than 0"),
        (("train", "lsa-1", "--set", "trian.steps=1"), "did you mean 'train'?"),
        (
            ("train", "lsa-1", "--set", "model.head_dim=null", "model.num_heads=7"),
            "num_heads=7: must be a divisor of the width 40",
        ),
        (
            ("train", "lsa-1", "--set", "seed=5", "--out", "x"),
            "'seed=...': must be given as --seed",
        ),
        (("train", "lsa-1", "--set", "seed=5", "--seeds", "2"), "must be given as --seed N"),
        (("train", "--task", "a:B", "--set", "seed=5"), "must be given as --seed N"),
        (("train", "lsa-1", "--seeds", "0"), "seeds=0: must be 1 or greater"),
        (("bench", "train", "--recipe", "lsa1"), "recipe='lsa1': did you mean 'lsa-1'?"),
        (("train", "lsa-1", "--seed", "-1"), "seed=-1: must be 0 or greater"),
        (("train", "lsa-1", "--device", "cuda:77"), "device='cuda:77': is not there"),
        (("reproduce", "fig33"), "what='fig33': allowed: core"),
        (("reproduce", "fig3"), "must be uncovering2023/fig3 or emergence2024/fig3"),
        (("trian", "lsa-1"), "trian: is no command of mesaopt; did you mean 'train'?"),
        (("train", "lsa-1", "--set", "steps=5"), "set='steps=5': must be train.steps"),
        (("reproduce", "core", "--scale", "huge"), "scale='huge': allowed: smoke, small, paper"),
        (("reproduce", "core", "--seeds", "-1"), "seeds=-1: must be 1 or greater"),
        (("reproduce", "core/fig1"), "figure='fig1': allowed: in-context-loss, training"),
        (("reproduce", "core", "--only", "weigths"), "figure='weigths': did you mean 'weights'?"),
        (("reproduce", "toi/fig1"), "what='toi': did you mean 'toy'?"),
        (("reproduce", "toy/fig11"), "figure='fig11': did you mean 'fig1'?"),
        (("reproduce", "toy", "--only", "fig1,x"), "figure='x': allowed: fig1, fig2, fig3"),
        (("reproduce", "core", "--device", "tpu"), "device='tpu': is not there"),
        (("evaluate", "nowhere"), "run='nowhere': there is no such folder"),
        (("evaluate", "nowhere", "--sequences", "0"), "sequences=0: must be 1 or greater"),
        (("claims", "nowhere"), "mesaopt reproduce writes it"),
        (("report", "nowhere"), "there is no such folder"),
        (("bench", "train", "--repeats", "0"), "repeats=0: must be 1 or greater"),
        (("bench", "train", "--threads", "1" + "0" * 9), "must be between 1 and 4096"),
        (("bench", "train", "--official", "x"), "official: must be given with python"),
        (("train", "lsa-1", "--out", "x" * 256), "File name too long"),
        (("train", "lsa-1", "--out", "x/" + "y" * 256), "File name too long"),
        (("evaluate", "x" * 256), "File name too long"),
        (("diagnose", "x", "--out", "y" * 256), "File name too long"),
        (("claims", "x" * 256), "File name too long"),
        (("report", "x" * 256), "File name too long"),
        (("reproduce", "core", "--out", "x" * 256), "File name too long"),
        (("evaluate", "\x1b[31mx\ny"), r"run='\x1b[31mx\ny': there is no such folder"),
        (("evaluate", "\udcff"), r"run='\udcff': there is no such folder"),
        (("evaluate", "~nobody-of-this-name"), "there is no such home folder"),
        (
            ("train", "lsa-1", "--set", "recipe=../../x", "--seeds", "2"),
            "recipe='../../x': must be",
        ),
        (("train", "lsa-1", "--set", "task.noise_std=Infinity"), "noise_std=inf: must be a finite"),
        (("train", "lsa-1", "--set", "train.batch_size=1" + "0" * 15), "more memory than there is"),
        (("train", "lsa-1", "--set", "task.length=1" + "0" * 15), "more memory than there is"),
        (("train", "lsa-1", "--set", "train.steps=1" + "0" * 25), "steps=1"),
        (("train", "lsa-1", "--seed", "1" + "0" * 25), "seed=1"),
        (("train", "lsa-1", "--seeds", "1" + "0" * 12), "seeds=1000000000000: must be between"),
        (("reproduce", "core", "--seeds", "1" + "0" * 9), "seeds=1000000000: must be between"),
        (("evaluate", "x", "--sequences", "1" + "0" * 17), "must be between 1 and 100000000"),
    ],
)
def test_misuse_gets_one_line_and_status_2_and_touches_nothing(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy: Toy,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mesaopt: ")
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("train",), ("train", "lsa-1", "--oot")])
def test_unknown_words_exit_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2


def test_a_failed_run_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = [*SHORT, "model.initial_std=1e19", "model.activation_clip=null"]
    assert run("train", "lsa-1", "--out", str(tmp_path), "--set", *wild) == 1
    assert "lower train.learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        (("train", "lsa-1"), True),
        (("sweep", "lsa-1", "--grid", "train.steps=1,2"), True),
        (("reproduce", "core"), True),
        (("evaluate", "zoo:lsa-1"), False),
        (("doctor",), False),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    arguments: tuple[str, ...],
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("mesaopt.commands.run", interrupted)
    assert run(*arguments) == 130
    hint = "; go on with --resume" if goes_on else ""
    assert capsys.readouterr().err == f"mesaopt: interrupted{hint}\n"


def test_lists(capsys: pytest.CaptureFixture[str], toy: Toy) -> None:
    assert run("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in listed["recipes"]] == list(recipes.RECIPES)
    tasks = "linear_system ar_process partially_observed nonlinear_system few_shot continuous_mqar "
    tasks += "text mqar mad regbench parity copying"
    assert [task["name"] for task in listed["tasks"]] == tasks.split()
    scales = {row["name"]: row["scales"] for row in listed["figures"]}
    assert scales["core"] == scales["toy"] == "smoke, small, paper"
    shown = [name for name in scales if name.startswith(("core", "toy"))]
    core = ("in-context-loss", "training", "learning-curves", "weights", "coefficients", "ridge")
    assert shown == [
        "core",
        *(f"core/{name}" for name in core),
        "toy",
        *(f"toy/fig{number}" for number in (1, 2, 3)),
    ]
    assert run("list", "recipes") == 0
    out = capsys.readouterr().out
    assert "mesa-1" in out
    assert "linear_system" not in out


def test_bench_prints_time_rate_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "train", "--repeats", "1") == 0
    out = capsys.readouterr().out
    for word in ("time of a step", "tokens", "the whole training", "peak memory"):
        assert word in out
    assert "share of that rate" not in out
    assert run("bench", "train", "--repeats", "1", "--goals") == 0
    assert "share of that rate" in capsys.readouterr().out
    assert run("bench", "train", "--repeats", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["repeats"] == 1


def test_bench_prints_the_operators_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Report:
        flash_linear_attention_skipped = "it is elsewhere"

        def tables(self, *, goals: bool) -> list[tuple[str, list[dict[str, str]]]]:
            return [("speed", [{"operator": "mesa"} | ({"goal": "25 ms"} if goals else {})])]

        def to_json(self) -> dict[str, list[str]]:
            return {"speed": []}

    asked = []
    monkeypatch.setattr(
        "mesaopt.bench.ops.measure_operators", lambda **how: asked.append(how) or Report()
    )
    assert run("bench", "ops", "--goals") == 0
    out = capsys.readouterr().out
    for word in ("speed", "mesa", "25 ms", "flash-linear-attention: skipped, it is elsewhere"):
        assert word in out
    assert run("bench", "ops") == 0
    assert "25 ms" not in capsys.readouterr().out
    assert run("bench", "ops", "--quick", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"speed": []}
    assert asked == [{"quick": False}, {"quick": False}, {"quick": True}]


def test_it_runs_as_a_module_and_closes_quietly() -> None:
    command = f"{sys.executable} -m mesaopt list recipes | head -1"
    out = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "recipes"
    assert out.stderr == ""
    shown = subprocess.run(
        [sys.executable, "-m", "mesaopt", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("mesaopt 0.")


@pytest.mark.parametrize("words", [["list"], ["list", "recipes"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_failure(words: list[str]) -> None:
    command = [sys.executable, "-m", "mesaopt", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_waiting_threads_sleep_unless_told_otherwise() -> None:
    code = (
        "import os\nfrom mesaopt import cli, commands\n"
        "commands.doctor = lambda _: print(os.environ['OMP_WAIT_POLICY'], end='') or 0\n"
        "cli.main(['doctor'])"
    )

    def policy(**environment: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-c", code]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, env=inherited | environment
        )
        return out.stdout

    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "run"
    assert run("train", "lsa-1", "--out", str(path), "--device", "cpu", "--set", *SHORT) == 0
    return path


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "mesaopt", *arguments]
    found = subprocess.run(command, capture_output=True, env=os.environ | environment)
    return subprocess.CompletedProcess(
        command, found.returncode, found.stdout.decode(), found.stderr.decode()
    )


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_nothing_is_lost_in_an_ascii_locale(locale: dict[str, str], short_run: Path) -> None:
    done = in_a_process("evaluate", str(short_run), "--sequences", "1", **locale)
    assert done.returncode == 0, done.stderr
    assert " +- " in done.stdout
    assert done.stdout.isascii()
    done = in_a_process("evaluate", str(short_run / "ä"), **locale)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    out = str(short_run.parent / f"ü-{len(locale)}")
    done = in_a_process(
        "train", "lsa-1", "--out", out, "--device", "cpu", "--set", *SHORT, **locale
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("--version",)])
def test_output_to_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mesaopt", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "mesaopt: No space left on device\n"


def test_home_is_meant_by_a_tilde_behind_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("train", "lsa-1", "--out=~/runs/x", "--device", "cpu", "--set", *SHORT) == 0
    assert (tmp_path / "runs" / "x" / "DONE").exists()
    assert run("evaluate", "~/runs/x", "--sequences", "1") == 0
    assert not (tmp_path / "~").exists()


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(results, tmp_path / "\x1b[2J\x9b31m[/red]")
    nasty = "\x1b]0;owned\x07 \x9b31m \u202egpj.exe \r\n [red]b[/red] [/x] \ud800"
    claims = json.loads((folder / "claims.json").read_text())
    claims = [claim | {"statement": nasty, "figure": nasty} for claim in claims]
    (folder / "claims.json").write_text(json.dumps(claims))
    assert run("claims", str(folder)) == 1
    assert run("claims", str(folder), "--json") == 1
    assert run("report", str(folder)) == 0
    (folder / "claims.json").write_text("[")
    assert run("claims", str(folder)) == 2
    shown = capsys.readouterr()
    assert "[red]b[/red] [/x]" in shown.out
    for text in (shown.out, shown.err):
        assert not [c for c in text if not c.isprintable() and c != "\n"]


def test_a_diagnosis_is_not_lost_where_its_page_cannot_be_written(
    short_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunError("page.html: the disk is full")

    monkeypatch.setattr("mesaopt.report.write_diagnosis", refuse)
    page = str(tmp_path / "page.html")
    folder = shutil.copytree(short_run, tmp_path / "[x]\x1b[red]")
    assert run("diagnose", str(folder), "--sequences", "1", "--out", page) == 2
    shown = capsys.readouterr()
    assert "Is there a mesa-optimizer in [x]?[red]?" in shown.out
    assert "the disk is full" in shown.err
    capsys.readouterr()
    assert run("diagnose", str(folder), "--out", str(folder / "DONE" / "page.html")) == 2
    assert capsys.readouterr().out == "", "before anything is computed"


def test_models_that_are_not_trained_are_printed_with_the_claims(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    lacking = Untrained(figure="fig9", recipes=("lsa-6", "tf-7"), drawn=False)
    write_untrained(folder, [lacking])
    run("claims", str(folder))
    printed = capsys.readouterr().out
    assert "fig9: not trained yet: lsa-6, tf-7 (left out)" in printed
    assert "`mesaopt train NAME` trains one of these" in printed


def test_models_of_the_zoo_are_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "zoo", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["zoo"]
    assert "zoo:lsa-1" in {row["name"] for row in rows}
    assert run("evaluate", "zoo:lsa-1", "--sequences", "256", "--json") == 0
    losses = json.loads(capsys.readouterr().out)
    assert losses["lsa-1"]["mean"] < 1.05 * losses["one gradient step"]["mean"]
    assert run("diagnose", "zoo:lsa1") == 2
    assert "did you mean 'lsa-1'?" in capsys.readouterr().err


def test_what_lacks_models_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FOLDER / "lsa-1", tmp_path / "lsa-1")  # which fig5 does not read
    fig5 = ("reproduce", "uncovering2023/fig5", "--scale", "paper", "--dry-run")
    assert run(*fig5, "--from", str(tmp_path)) == 0
    assert re.search(r"time in all  about \d+ s", capsys.readouterr().out)


@pytest.mark.slow
def test_the_demo_shows_trained_models_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mesaopt.papers.uncovering2023 import core

    few = replace(core.STUDY.plans["small"], num_sequences=2048)
    study = replace(core.STUDY, plans={**core.STUDY.plans, "small": few})
    monkeypatch.setattr(core, "STUDY", study)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    out = tmp_path / "results"
    assert run("demo", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Measuring three models: about ")
    assert "It learns in context and predicts like an optimizer" in printed
    assert printed.splitlines()[-1] == "Next: mesaopt diagnose zoo:tf-3"
    assert "lsa-1" in (out / "diagnosis.html").read_text()
    assert opened == [(out / "index.html").as_uri()]
    assert not (out / "runs").exists()
    assert run("demo", "--out", str(out), "--no-open") == 0  # nothing is measured again
    assert len(opened) == 1


def test_the_demo_refuses_a_folder_before_it_says_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    assert run("demo", "--out", str(tmp_path)) == 2
    printed = capsys.readouterr()
    assert (printed.out, "holds other files" in printed.err) == ("", True)


def test_the_demo_diagnoses_the_model_that_it_has_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr("mesaopt.papers.trainings.costs", lambda *_, **__: [])
    monkeypatch.setattr("mesaopt.papers.reproduce.reproduce", lambda *_, **__: [])

    def load(path: Path, **_: object) -> None:
        loaded.append(path)
        raise RunError("stopped by the test")

    monkeypatch.setattr("mesaopt.training.load_run", load)
    assert run("demo", "--train", "--no-open", "--out", str(tmp_path / "out")) == 2
    assert loaded == [tmp_path / "out" / "runs" / "lsa-1-seed0"]
