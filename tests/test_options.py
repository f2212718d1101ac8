"""Options that have no use beside what else is given."""

import shlex
import shutil
from pathlib import Path

import pytest
from helpers import exit_status as run

from mesaopt import arguments as args
from mesaopt.commands import options

DATA = Path(__file__).parent / "data"
DRAWING = "--top-k=4 --top-p=0.9 --samples=3 --seed=1"
OF_BENCH_TRAIN = "--recipe=tf-3 --repeats=3 --threads=1 --official=x --python=x"
OF_TRAINING = "--engine=local --device=cuda"

USELESS = [
    ("data prepare stdlib --out x", "--vocabulary=9", "with a tokenizer that is not learned"),
    (
        "generate x --prompt a --temperature 0",
        DRAWING,
        "with --temperature 0, which draws nothing",
    ),
    (
        "generate x --prompt a --beams 2",
        f"{DRAWING} --temperature=0.5",
        "with --beams, which draws nothing",
    ),
    ("evaluate zoo:lsa-1 --json", "--csv", "with --json"),
    ("diagnose zoo:lsa-1 --json", "--csv", "with --json"),
    ("compare zoo:lsa-1 zoo:lsa-2 --json", "--csv", "with --json"),
    ("bench train", "--quick", "with bench train"),
    ("bench ops", OF_BENCH_TRAIN, "with bench ops"),
    ("bench generate", f"{OF_BENCH_TRAIN} --goals", "with bench generate"),
    ("bench train --json", "--goals", "with --json, which has all numbers"),
    ("train lsa-1", "--shard", "without torchrun, which starts the processes"),
    ("reproduce core", "--engine-set=processes=2", "without --engine"),
    ("reproduce core --from-zoo", "--from=x", "with --from-zoo"),
    (
        "reproduce core --from-zoo",
        f"{OF_TRAINING} --seeds=2",
        "with runs that are trained already",
    ),
    (
        "reproduce core --from x",
        f"{OF_TRAINING} --seeds=2",
        "with runs that are trained already",
    ),
    (
        "reproduce emergence2024/fig1",
        f"{OF_TRAINING} --from=x --from-zoo",
        "with emergence2024/fig1, which reads and trains no runs",
    ),
    ("report zoo:lsa-1", "--redraw", "with a run, whose report is always drawn anew"),
    ("report ../data/run", "--redraw", "with a run, whose report is always drawn anew"),
    ("report ../data/results", "--out=x", "with results, whose report lies beside its figures"),
]
"""A command line, options that have no use in it, and why."""


@pytest.mark.parametrize(
    ("words", "option", "why"),
    [(words, option, why) for words, several, why in USELESS for option in several.split()],
)
def test_an_option_without_use_is_refused_before_any_work(
    words: str,
    option: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(DATA, tmp_path / "data")
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    assert run(*shlex.split(words), option) == 2
    shown = capsys.readouterr()
    assert shown.err == f"mesaopt: {option.split('=')[0]}: must not be given {why}\n"
    assert shown.out == ""
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        args.Data("prepare", "stdlib", Path("x"), tokenizer="bpe", vocabulary=9),
        args.Generate(Path("x"), "a", top_k=4, top_p=0.9, samples=3, seed=1),
        args.Generate(Path("x"), "a", temperature=0.0, samples=1),
        args.Bench("train", recipe="tf-3", repeats=3, threads=1, goals=True),
        args.Bench("ops", quick=True, goals=True, recipe="lsa-2-notebook"),
        args.Bench("generate", quick=True, json=True),
        args.Reproduce("core", engine="local", engine_set=("processes=2",)),
    ],
)
def test_options_with_a_use_and_default_values_may_be_given(command: args.Command) -> None:
    options.check(command)
