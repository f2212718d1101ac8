"""Commands over several runs: `evaluate`, `diagnose`, `compare`."""

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from helpers import exit_status as run

from mesaopt import recipes, zoo
from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
from mesaopt.analysis.diagnosis.regression import regression_of
from mesaopt.commands.evaluation import BASELINES
from mesaopt.commands.given import can_be_diagnosed
from mesaopt.tasks import make_task
from mesaopt.training import load_run

SHORT = ["train.steps=4", "train.batch_size=8", "train.evaluation_sequences=8", "task.length=8"]
RESULTS = Path(__file__).parent / "data" / "results"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Short runs: two of one task with other tokens, one of another task."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"one": "lsa-1", "plain": "tf-3", "other": "ar-gaussian"}
    for name, recipe in names.items():
        arguments = ["train", recipe, "--out", str(folder / name), "--device", "cpu"]
        assert run(*arguments, "--set", *SHORT) == 0
    return {name: str(folder / name) for name in names}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_runs_of_one_task_share_their_sequences_and_baselines(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", *runs.values(), "--sequences", "1", "--json") == 0
    linear, process = json.loads(capsys.readouterr().out)
    assert list(linear["losses"]) == ["one", "plain", "one gradient step", "least squares"]
    assert {*linear["losses"]} - {"one", "plain"} < {*BASELINES}
    assert list(process["losses"]) == ["other", "one gradient step", "least squares"]
    assert (linear["task"]["kind"], process["task"]["kind"]) == ("linear_system", "ar_process")
    alone = load_run(runs["plain"], device="cpu")
    predict = model_predictor(alone.model, alone.config.task.token_slots)
    wanted = in_context_loss(predict, make_task(alone.config.task), Evaluation(num_sequences=1))
    assert linear["losses"]["plain"]["mean"] == pytest.approx(wanted.mean, rel=1e-6)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_a_seed_draws_sequences_that_no_training_was_scored_on(
    command: str, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_run(runs["plain"], device="cpu").config
    means = []
    for seed in (0, 1):
        chosen = [runs["one"], runs["plain"], "--sequences", "1", "--seed", str(seed), "--csv"]
        assert run(command, *chosen) == 0
        means.append(capsys.readouterr().out)
    assert means[0] != means[1]
    drawn = [Evaluation(num_sequences=1, seed=seed) for seed in (0, 1)]
    first, second = (next(iter(one.batches(make_task(config.task)))).states for one in drawn)
    assert not torch.equal(first, second)
    scored = make_task(config.task).sample(256, seed=0, step=0, split="test").states
    assert torch.equal(first, scored)
    assert run(command, *chosen[:2], "--seed", "-1") == 2
    assert "seed=-1: must be between 0 and" in capsys.readouterr().err


def test_evaluate_prints_a_table_for_each_task(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", *runs.values(), "--sequences", "1") == 0
    shown = capsys.readouterr()
    assert shown.out.count("in-context loss by position on ") == 2
    words = " ".join(shown.out.split())
    assert "by position on linear_system, length 8, 256 test sequences" in words
    assert "losses of one, plain" in shown.err, "progress"


def test_the_csv_of_evaluate_is_long_and_tidy(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", runs["one"], runs["plain"], "--sequences", "1", "--csv") == 0
    rows = table(capsys.readouterr().out)
    columns = ["task", "predictor", "kind", "position", "value", "standard_error"]
    assert list(rows[0]) == columns
    assert len(rows) == 4 * (1 + 8), "the mean and 8 positions of two runs and two baselines"
    assert {row["kind"] for row in rows if row["predictor"] == "plain"} == {"run"}
    curve = [float(row["value"]) for row in rows if row["predictor"] == "one" and row["position"]]
    (mean,) = (row for row in rows if row["predictor"] == "one" and not row["position"])
    assert sum(curve) / 8 == pytest.approx(float(mean["value"]), rel=1e-5)


def test_compare_gives_paired_differences_settings_and_costs(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", runs["one"], runs["plain"], "--sequences", "1"]
    assert run(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["to"] == "one"
    one, plain = found["runs"]["one"], found["runs"]["plain"]
    assert "difference" not in one
    difference = plain["difference"]
    assert difference["mean"] == pytest.approx(plain["mean"] - one["mean"], abs=1e-6)
    # Of two nearly untrained models most of the noise is common.
    assert difference["standard_error"] < 0.5 * plain["standard_error"]
    assert found["settings"]["recipe"] == {"one": "lsa-1", "plain": "tf-3"}
    assert "train.batch_size" not in found["settings"], "it is the same"
    training = one["training"]
    assert (training["parameters"], training["steps"], training["sequences"]) == (6400, 4, 32)
    assert training["test_loss"] == load_run(runs["one"]).metrics[-1]["test_loss"]
    assert run(*arguments, "--to", runs["plain"]) == 0
    shown = capsys.readouterr().out
    for words in ("less that of plain, 256 test", "settings that differ", "last test loss"):
        assert words in shown
    assert run(*arguments, "--csv") == 0
    rows = table(capsys.readouterr().out)
    assert {row["quantity"] for row in rows if row["run"] == "one"} >= {"loss", "seconds"}
    (mean,) = (r for r in rows if r["quantity"] == "difference from one" and not r["position"])
    assert float(mean["value"]) == pytest.approx(difference["mean"])


def test_a_run_that_has_not_ended_is_named_with_its_step(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = shutil.copytree(runs["one"], tmp_path / "stopped")
    config = json.loads((stopped / "config.json").read_text())
    config["train"] |= {"steps": 100_000, "evaluate_every": 4}
    (stopped / "config.json").write_text(json.dumps(config))
    (stopped / "DONE").unlink()
    few = ("--sequences", "1", "--json")
    assert run("compare", runs["plain"], str(stopped), *few) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert list(found) == ["plain", "stopped, step 4 of 100,000"]
    training = found["stopped, step 4 of 100,000"]["training"]
    assert (training["steps"], training["sequences"]) == (4, 32)
    assert run("evaluate", str(stopped), *few) == 0
    assert "lsa-1, step 4 of 100,000" in json.loads(capsys.readouterr().out)
    assert run("diagnose", str(stopped), "--sequences", "1") == 0
    assert "stopped, step 4 of 100,000" in " ".join(capsys.readouterr().out.split())
    assert run("diagnose", str(stopped), "--sequences", "1", "--step", "4") == 0
    assert "100,000" not in capsys.readouterr().out


# The states of nonlinear-text outgrow float32, and text takes seconds to read.
@pytest.mark.parametrize("name", sorted(set(recipes.TASKS) - {"text-stdlib", "nonlinear-text"}))
def test_a_run_can_be_diagnosed_where_its_task_can_be_read(name: str) -> None:
    task = recipes.TASKS[name]
    try:
        regression_of(make_task(task))
    except ValueError:
        can_be = False
    else:
        can_be = True
    config = SimpleNamespace(task=task)  # a task on tokens wants a model that fits it
    assert can_be_diagnosed(config) == can_be


@pytest.mark.parametrize("command", [("evaluate", "--sequences", "1"), ("report",)])
def test_pages_name_no_command_that_is_refused(
    command: tuple[str, ...], runs: dict[str, str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    verb, *more = command
    for name, can_be in (("one", True), ("other", False)):
        assert run(verb, runs[name], *more, "--out", str(page)) == 0
        assert (f"mesaopt diagnose {runs[name]}" in page.read_text()) == can_be


@pytest.mark.parametrize("name", ["least squares", "one gradient step", "1-gram", "guess"])
def test_a_run_with_the_name_of_an_algorithm_is_refused(
    name: str, runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs["one"], tmp_path / name)
    assert run("evaluate", str(folder), runs["plain"], "--sequences", "1") == 2
    shown = capsys.readouterr()
    message = f"run='{name}': must be another: tables name an algorithm so; rename the run"
    assert (shown.out, shown.err) == ("", f"mesaopt: {message}\n")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_pictures_and_pages_of_several_runs(
    command: str, runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, runs["one"], runs["plain"], "--sequences", "1", "--out"]
    page = tmp_path / "new" / "page.html"
    assert run(*arguments, str(page)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Page: {page}"
    html = page.read_text()
    assert html.count("<svg") == 1
    for words in ("one", "plain", f"mesaopt diagnose {runs['plain']}", "95 % bands"):
        assert words in html
    assert run(*arguments, str(tmp_path / "curves.svg"), "--csv") == 0
    assert "Figure:" not in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")
    if command == "compare":
        assert run(*arguments, str(tmp_path / "curves.png")) == 0
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_diagnose_gives_a_line_for_each_run(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = ["diagnose", runs["one"], runs["plain"], "--sequences", "1"]
    assert run(*arguments, "--out", str(page)) == 0
    shown = capsys.readouterr().out
    for words in ("nearest algorithm", "of errors", "rate", f"Page: {page}"):
        assert words in shown
    assert [line.split()[:2] for line in shown.splitlines()[2:4]] == [
        ["one", "no"],
        ["plain", "no"],
    ]
    assert "2 runs: 2 no." in page.read_text()


def test_diagnoses_as_json_and_csv(
    runs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mesaopt.analysis import diagnose

    one = diagnose(runs["one"], num_sequences=1)
    monkeypatch.setattr("mesaopt.analysis.diagnose", lambda *_, **__: one)
    arguments = ["diagnose", runs["one"], runs["plain"]]
    assert run(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: value["nearest"] for name, value in found.items()} == {
        "one": one.nearest,
        "plain": one.nearest,
    }
    assert run(*arguments, "--csv", "--out", str(tmp_path / "shares.png")) == 0
    rows = table(capsys.readouterr().out)
    assert {row["measure"] for row in rows} == {"predictions", "errors", "loss"}
    assert {row["algorithm"] for row in rows if row["nearest"] == "True"} == {one.nearest}
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
    assert run(*arguments[:2], "--out", str(tmp_path / "one.svg")) == 0
    assert "Is there a mesa-optimizer in one?" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_runs_whose_folders_have_one_name_are_named_by_their_paths(
    runs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for parent in ("a", "b"):
        shutil.copytree(runs["one"], tmp_path / parent / "run")
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", "a/run", "b/run", "--sequences", "1", "--json") == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert list(group["losses"])[:2] == ["a/run", "b/run"]
    assert group["losses"]["a/run"] == group["losses"]["b/run"]


def test_a_model_of_the_zoo_next_to_a_run(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "zoo:lsa-1", runs["one"], "--sequences", "1", "--json") == 0
    long, short = json.loads(capsys.readouterr().out)
    assert ("zoo:lsa-1" in long["losses"], "one" in short["losses"]) == (True, True)
    assert long["losses"]["zoo:lsa-1"]["mean"] == pytest.approx(
        zoo.get("lsa-1").loss_value, rel=0.1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate",), "run: is missing: give a run folder"),
        (("compare", "{one}"), "run: compare needs two or more runs"),
        (("compare", "{one}", "--to", "{one}"), "run: compare needs two or more runs"),
        (("compare", "{one}", "{other}"), "run='other': is of another task than 'one' (kind:"),
        (("compare", "{one}", "zoo:lsa-1"), "is of another task than 'one' (length: 50, not 8)"),
        (("evaluate", "{one}", "{one}/"), "is given twice"),
        (("evaluate", "zoo:lsa-1", "zoo:lsa-1"), "run='zoo:lsa-1': is given twice"),
        (("diagnose", "{one}", "nowhere"), "run='nowhere': there is no such folder"),
        (("diagnose", "{one}", "zoo:lsa1"), "name='lsa1': did you mean 'lsa-1'?"),
        (("compare", "{one}", "{results}"), "holds results: must be the folder of one run"),
        (("evaluate", "{one}", "lsa-1"), "the trained model of the recipe is zoo:lsa-1"),
        (("compare", "{one}", "{plain}", "--out", "x.pdf"), "must end in .png, .svg, .html"),
        (("diagnose", "{one}", "{other}"), "run='other': task: has complex numbers"),
        (("evaluate", "{one}", "--task", "json:JSONEncoder"), "no task may be given"),
        (("compare", "{one}", "{plain}", "--too", "x"), "did you mean '--to'?"),
        (("evaluate", "{one}", "--cvs"), "did you mean '--csv'?"),
        (("compare", "{one}", "--sequence", "1"), "did you mean '--sequences'?"),
    ],
)
def test_misuse_gets_one_line_before_any_work(
    arguments: tuple[str, ...],
    message: str,
    runs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*(word.format(**runs, results=RESULTS) for word in arguments)) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not list(tmp_path.iterdir())


def test_a_task_of_ones_own_is_given_to_the_runs_that_have_one(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = str(tmp_path / "own")
    short = ["train.steps=2", "train.batch_size=8", "train.evaluation_sequences=8"]
    name = "own_tasks:Regression"
    train = ["train", "tf-3", "--task", name, "--out", own, "--device", "cpu"]
    assert run(*train, "--set", *short) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Next: mesaopt evaluate {own} --task {name}"
    assert run("evaluate", runs["one"], own, "--task", name, "--sequences", "1", "--json") == 0
    linear, mine = json.loads(capsys.readouterr().out)
    assert mine["task"]["name"] == name
    assert list(mine["losses"]) == ["own", "predict zero"]
    assert "least squares" in linear["losses"]
