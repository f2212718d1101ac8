"""The command `doctor`: verdicts, what to do, and the exit status."""

import json
from collections import namedtuple

import pytest
from helpers import exit_status as run

from mesaopt.commands import checks
from mesaopt.commands.checks import Check, quick_checks, satisfies
from mesaopt.training import StepCost


def found(name: str) -> Check:
    (check,) = (check for check in quick_checks() if check.name == name)
    return check


def test_every_check_has_a_verdict_and_a_reason_if_it_is_not_ok() -> None:
    looked_at = quick_checks()
    names = [check.name for check in looked_at]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "processor", "threads", "disk", "GPU", "fonts", "pandas"} <= set(
        names
    )
    for check in looked_at:
        assert check.verdict in ("ok", "slow", "missing")
        assert bool(check.advice) == (check.verdict != "ok"), check.name


def test_doctor_answers_and_says_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("Nothing that is needed is missing. Next: ")
    assert run("doctor", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"]
    assert answer["estimates"] == []
    assert {"name", "verdict", "found", "advice", "needed"} == set(answer["checks"][0])


def test_a_package_that_is_needed_gives_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"torch": "2.5.1+cpu", "rich": None}
    version = checks.version_of
    monkeypatch.setattr(checks, "version_of", lambda name: old.get(name, version(name)))
    assert found("torch").advice.startswith('pip install "torch')
    assert found("rich").verdict == "missing"
    assert run("doctor", "--measure") == 1, "and nothing is measured"
    assert "Missing, and needed: rich, torch." in capsys.readouterr().out


def test_versions_in_ranges() -> None:
    assert satisfies("2.6", ">=2.6,<2.14")
    assert not satisfies("2.5.9", ">=2.6,<2.14")
    assert not satisfies("2.14.0+cu128", ">=2.6,<2.14")
    assert satisfies("3.11.7", ">=3.11")
    assert satisfies("1", "")


@pytest.mark.parametrize(
    ("threads", "verdict", "advice"),
    [("4", "ok", ""), ("1", "slow", "unset it"), ("16", "slow", "export OMP_NUM_THREADS=4")],
)
def test_threads_and_cores(
    threads: str, verdict: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 4)
    monkeypatch.setattr(checks, "_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert found("threads").verdict == verdict
    assert advice in found("threads").advice


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 8)
    monkeypatch.setattr(checks, "_CGROUP", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert found("threads").verdict == "ok"
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert "allows 2 cores: export OMP_NUM_THREADS=2" in found("threads").advice


def test_a_full_disk_and_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**29))
    monkeypatch.setattr("os.getloadavg", lambda: (100.0, 0, 0))
    assert found("disk").fails
    assert found("other programs").verdict == "slow"


def test_a_gpu_needs_a_torch_that_computes_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "gpu_names", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(checks, "version_of", lambda _: "2.13.0+cpu")
    assert "on CPUs only" in found("GPU").advice
    monkeypatch.setattr(checks, "version_of", lambda _: "2.13.0+cu128")
    assert (found("GPU").verdict, found("GPU").found) == ("ok", "NVIDIA H100")


def test_measured_speed_and_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = StepCost(parameters=1, seconds=0.06)
    monkeypatch.setattr("mesaopt.training.StepCosts.of", lambda *_: cost)
    assert run("doctor", "--measure", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in answer["checks"]}
    assert "GFLOP/s" in by_name["matrix product, float32"]["found"]
    assert "times as long" in by_name["tiny numbers"]["found"]
    train, demo, core = answer["estimates"]
    assert (train["command"], train["seconds"]) == ("mesaopt train tf-7", pytest.approx(600))
    assert "timed here" in train["how"]
    assert (demo["command"], core["command"]) == (
        "mesaopt demo",
        "mesaopt reproduce core --scale small",
    )
    assert core["seconds"] > demo["seconds"] > 10
