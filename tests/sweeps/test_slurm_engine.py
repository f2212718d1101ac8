"""Sweeps as arrays of Slurm jobs, with the executor by which submitit tries them on one machine."""

import contextlib
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from helpers import wait_for_lines

import mesaopt
from mesaopt import recipes
from mesaopt.config import override
from mesaopt.errors import ConfigError, RunError
from mesaopt.sweeps import grid, make_engine, plan_sweep
from mesaopt.sweeps.slurm_engine import Slurm, _answer
from mesaopt.training import train

submitit = pytest.importorskip("submitit", reason="submitit is not installed")

SHORT = ["train.batch_size=8", "train.evaluate_every=10", "train.evaluation_sequences=16"]
CONFIG = override(recipes.get("lsa-1"), [*SHORT, "train.steps=150", "task.length=8"])


def jobs_in(logs: Path) -> list[int]:
    """List the processes of jobs that train a folder now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "submitit.core._submit" in words and str(logs) in words:
                found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.slow
def test_a_requeued_job_and_a_killed_one_end_with_the_same_numbers(tmp_path: Path) -> None:
    configs = grid(CONFIG, {}, seeds=2)
    metrics = [p.path / "metrics.jsonl" for p in plan_sweep(configs, tmp_path / "out").points]
    logs = tmp_path / "out" / "jobs"
    signalled: list[int] = []

    def disturb() -> None:
        for path in metrics:
            wait_for_lines(path, 2)
        first, second = jobs_in(logs)
        os.kill(first, signal.SIGUSR2)  # what Slurm sends before it takes a job off a machine
        os.kill(second, signal.SIGKILL)
        signalled.extend([first, second])

    disturber = threading.Thread(target=disturb)
    disturber.start()
    engine = Slurm(cluster="local", look_seconds=0.1)
    done = mesaopt.sweep(configs, tmp_path / "out", engine=engine, progress=False)
    disturber.join()
    assert len(signalled) == 2
    assert [point.problem for point in done.points] == [None, None]
    said = "".join(path.read_text() for path in logs.glob("*_log.*"))
    assert len(re.findall(r"Requeued job \d+", said)) == 1
    for config, path in zip(configs, metrics, strict=True):
        alone = train(config, tmp_path / "alone" / path.parent.name, device="cpu")
        assert path.read_bytes() == (alone.path / "metrics.jsonl").read_bytes()


def test_what_ended_a_job_without_an_answer_is_named() -> None:
    class Dead:
        def result(self) -> str | None:
            raise RuntimeError("Job 7 has not produced any output\nslurmstepd: oom-kill\n")

    problem = "Slurm: Job 7 has not produced any output: slurmstepd: oom-kill"
    assert _answer(Dead()) == (False, problem)


def test_parameters_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    good = {"cluster": "local", "partition": "long", "timeout_min": 240, "mem_gb": 8, "at_once": 4}
    make_engine("slurm", good).check("cuda:1")
    bad = make_engine("slurm", {"cluster": "local", "partitio": "long"})
    with pytest.raises(
        ConfigError, match="engine slurm: unknown key 'partitio'; did you mean 'par"
    ):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine=bad)
    wrong = make_engine("slurm", {"cluster": "local", "timeout_min": "long"})
    with pytest.raises(ConfigError, match='engine slurm: Parameter "timeout_min" expected type'):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_once": 0}, "at_once=0: must be greater than 0"),
        ({"at_once": -3}, "at_once=-3: must be greater than 0"),
        ({"look_seconds": -1.0}, "look_seconds=-1.0: must be 0 or greater"),
        ({"look_seconds": float("nan")}, "look_seconds=nan"),
        ({"retries": -1}, "retries=-1: must be 0 or greater"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine("slurm", options)


def test_a_machine_without_slurm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="^engine='slurm': there is no Slurm here: "):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine="slurm")
    assert not (tmp_path / "out").exists()
