"""Sweeps on the engine of this machine: the same numbers as alone, kills, failures, and what is refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Here, wait_for_lines, workers_of
from helpers import exit_status as run

import mesaopt
from mesaopt import recipes, sweeps
from mesaopt.config import OwnModelConfig, RunConfig, override
from mesaopt.errors import ConfigError, MesaoptError, MissingPackageError, RunError
from mesaopt.progress import Progress
from mesaopt.sweeps import Ended, Local, grid, load_sweep, plan_sweep
from mesaopt.sweeps.engine import check_device_name
from mesaopt.sweeps.ray_engine import Ray
from mesaopt.training import RunFolder, train

SHORT = ["train.steps=12", "train.batch_size=8", "train.evaluate_every=4"]
SHORT += ["train.evaluation_sequences=16", "task.length=8"]
RATES = {"train.learning_rate": ["1e-3", "3e-2"]}
CONFIG = override(recipes.get("lsa-1"), SHORT)
GRID = ["lsa-1", "--set", *SHORT, "--grid", "train.learning_rate=1e-3,3e-2", "--seeds", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two learning rates and two seeds, trained by two processes; tests only read it."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    configs = grid(CONFIG, RATES, seeds=2)
    mesaopt.sweep(configs, out, engine=Local(processes=2), device="cpu", progress=False)
    return out


def test_the_points_are_the_runs_that_are_trained_alone(trained: Path, tmp_path: Path) -> None:
    points = load_sweep(trained).points
    assert [point.config for point in points] == grid(CONFIG, RATES, seeds=2)
    assert [point.state for point in points] == ["done"] * 4
    for point in points[1:3]:
        alone = train(point.config, tmp_path / point.path.name, device="cpu", progress=False)
        for name in ("metrics.jsonl", "config.json"):
            assert (point.path / name).read_bytes() == (alone.path / name).read_bytes()
        weights = RunFolder(point.path).load().model
        assert all(torch.equal(weights[name], x) for name, x in alone.model.state_dict().items())
    assert points[0].path.name == "lsa-1-learning_rate=0.001-seed0"


def test_a_sweep_shows_its_best_settings_and_their_spread(trained: Path) -> None:
    done = load_sweep(trained)
    best, other = done.groups
    assert best.mean < other.mean
    assert best.settings == {"learning_rate": 1e-3}
    low, high = sorted(best.losses)
    assert best.spread == pytest.approx((high - low) / 2**0.5)
    assert done.best is not None
    assert done.best.test_loss == low
    assert "4 of 4 points are done" in " ".join(repr(done).split())
    assert f"{best.mean:.4g}" in repr(done)
    table = done.to_dataframe()
    assert len(table) == 4
    assert set(table["state"]) == {"done"}
    (first, second) = done.plot().get_lines()
    assert first.get_label() == "learning_rate 0.001"
    assert list(second.get_xdata()) == [0, 4, 8, 12]


def test_the_command_prints_a_table_and_writes_table_and_picture(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    assert run("sweep", *GRID, "--out", str(folder), "--resume", "--engine", "ray") == 0
    shown = capsys.readouterr().out
    for words in ("learning rate", "2 of 2", "4 of 4 points are done.", "Next: mesaopt evaluate"):
        assert words in shown
    assert " --seed 1 " in shown.splitlines()[-1], "those of seed 0 have chosen the settings"
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1"]
    assert float(rows[0]["test_loss"]) == load_sweep(trained).points[0].test_loss
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert run("sweep", *GRID, "--out", str(tmp_path / "new"), "--dry-run") == 0
    assert "4 points in" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_failed_point_keeps_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    configs, engine = grid(CONFIG, RATES, seeds=2), Here(failing="0.03-seed0")
    done = mesaopt.sweep(configs, tmp_path / "a", engine=engine, device="cpu")
    assert [point.state for point in done.points] == ["done", "done", "failed", "done"]
    assert "lsa-1-learning_rate=0.03-seed0 failed: no luck" in repr(done).replace("\n", " ")
    assert [row["problem"] for row in done.rows()][2] == "no luck"
    assert [group.has_failed for group in done.groups] == [False, True]
    with pytest.raises(RunError, match=r"holds a sweep; --resume \(in Python resume=True\) goes"):
        mesaopt.sweep(configs, tmp_path / "a", engine=engine)
    engine = Here()
    done = mesaopt.sweep(configs, tmp_path / "a", engine=engine, resume=True, device="cpu")
    assert engine.given == ["check", "lsa-1-learning_rate=0.03-seed0"]
    assert done.failed == []
    engine = Here()
    mesaopt.sweep(configs, tmp_path / "a", engine=engine, resume=True)
    assert engine.given == []


def test_settings_with_a_failed_point_are_not_the_best(tmp_path: Path) -> None:
    done = mesaopt.sweep(
        grid(CONFIG, RATES, seeds=2), tmp_path / "a", engine=Here(failing="0.001-seed0")
    )
    worse, failed = done.groups
    assert failed.has_failed
    assert failed.mean < worse.mean
    assert done.best is not None
    assert done.best.config.train.learning_rate == 3e-2
    assert f"Best mean test loss: {worse.mean:.4g}" in repr(done)


def test_a_training_that_diverges_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesaopt.commands.sweeps.engine_of", lambda *_: Here())
    arguments = ["lsa-1", "--set", *SHORT, "--grid", "train.learning_rate=1e12,1e-3"]
    assert run("sweep", *arguments, "--device", "cpu", "--out", str(tmp_path / "out")) == 1
    shown = capsys.readouterr()
    assert "lower train.learning_rate" in shown.out
    assert "1 of 2 points are done." in shown.out
    assert "0 of 2 points, 0 of 24 steps" in shown.err


def test_progress_is_that_of_all_points(tmp_path: Path) -> None:
    seen: list[Progress] = []
    configs = grid(CONFIG, RATES)
    mesaopt.sweep(configs, tmp_path / "out", engine=Here(), device="cpu", progress=seen.append)
    assert (seen[0].done, seen[0].total, seen[0].stage) == (0, 24, "0 of 2 points")
    assert (seen[-1].done, seen[-1].total, seen[-1].stage) == (24, 24, "2 of 2 points")


def test_a_worker_that_is_killed_is_replaced_and_its_folder_taken_up(tmp_path: Path) -> None:
    long = override(CONFIG, ["train.steps=160", "train.evaluate_every=20"])
    metrics = tmp_path / "out" / "lsa-1-seed0" / "metrics.jsonl"
    killed: list[int] = []

    def kill() -> None:
        wait_for_lines(metrics, 3)
        killed.extend(workers_of(os.getpid()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    mesaopt.sweep([long], tmp_path / "out", engine=Local(processes=1), device="cpu")
    killer.join()
    assert len(killed) == 1
    alone = train(long, tmp_path / "alone", device="cpu", progress=False)
    assert metrics.read_bytes() == (alone.path / "metrics.jsonl").read_bytes()


def test_a_process_that_always_dies_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no torch here >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    engine = Local(processes=2, retries=1)
    done = mesaopt.sweep(grid(CONFIG, RATES), tmp_path / "out", engine=engine, device="cpu")
    problems = [point.problem for point in done.points]
    assert problems == ["its process ended with status 3: no torch here"] * 2


def test_workers_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    long = override(CONFIG, ["train.steps=100000", "train.evaluate_every=2"])
    (path,) = (point.path for point in plan_sweep([long], tmp_path).points)
    path.mkdir()
    shutil.copy(write_config(long, tmp_path / "config.json"), path / "config.json")
    worker = subprocess.Popen(
        [sys.executable, "-m", "mesaopt.sweeps.job", "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    print(json.dumps(str(path)), file=worker.stdin, flush=True)
    wait_for_lines(path / "metrics.jsonl", 1)
    worker.stdin.close()
    assert worker.wait(10) == 0
    assert worker.stdout is not None
    worker.stdout.close()
    assert not RunFolder(path).is_done


def write_config(config: RunConfig, path: Path) -> Path:
    path.write_text(json.dumps(mesaopt.config.to_dict(config)))
    return path


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    configs = grid(CONFIG, RATES)

    class Twice(Here):
        def run(
            self, folders: Sequence[Path], *, device: str, logs: Path
        ) -> Generator[Ended | None]:
            with pytest.raises(RunError, match=r"sweep\.json: another process is working in"):
                mesaopt.sweep(configs, tmp_path / "out", engine=Here(), resume=True)
            yield from super().run(folders, device=device, logs=logs)

    done = mesaopt.sweep(configs, tmp_path / "out", engine=Twice(), device="cpu")
    assert done.failed == []


def test_other_points_in_the_folder_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds a sweep of other points \(4 points, not 2\)"):
        mesaopt.sweep(grid(CONFIG, RATES), trained, resume=True)
    other = grid(override(CONFIG, ["train.steps=16"]), RATES, seeds=2)
    with pytest.raises(RunError, match=r"other points \(train.steps: 16, not 12\); give the same"):
        mesaopt.sweep(other, trained, resume=True)
    with pytest.raises(RunError, match="holds other files; give a new or an empty folder"):
        mesaopt.sweep(other, trained / "lsa-1-learning_rate=0.001-seed0", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file; give a folder"):
        mesaopt.sweep(other, tmp_path / "file")


def test_wrong_points_and_engines_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"configs=\[\]: must be one or more"):
        mesaopt.sweep([], out)
    with pytest.raises(ConfigError, match=r"configs\[1\]: is the same as configs\[0\]"):
        mesaopt.sweep([CONFIG, CONFIG], out)
    own = replace(CONFIG, model=OwnModelConfig(name="Net", weights={"w": "float32 [1]"}))
    with pytest.raises(ConfigError, match=r"configs\[0\].model.kind='own': must be one of the pac"):
        mesaopt.sweep([own], out)
    with pytest.raises(ConfigError, match="engine='loacl': did you mean 'local'"):
        mesaopt.sweep([CONFIG], out, engine="loacl")
    with pytest.raises(TypeError, match="engine is an int: must be an engine or one of local, ray"):
        mesaopt.sweep([CONFIG], out, engine=3)
    with pytest.raises(
        ConfigError, match="engine local: unknown key 'process'; did you mean 'proc"
    ):
        sweeps.make_engine("local", {"process": 3})
    with pytest.raises(RunError, match="there is no such file"):
        load_sweep(out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("engine", "device", "message"),
    [
        ("local", "cud", "device='cud': is not there; devices here: auto, cpu"),
        ("local", "cuda:99", "device='cuda:99': is not there"),
        ("ray", "gpu", "device='gpu': must be auto, cpu, cuda or cuda:N"),
        ("ray", "cuda:1", "device='cuda:1': must be auto, cpu or cuda: Ray chooses the GPU"),
        ("slurm", "cuda:", "device='cuda:': must be auto, cpu, cuda or cuda:N"),
        (Ray(gpus=1.0), "cpu", "gpus=1.0: must be 0 with device='cpu'"),
    ],
)
def test_a_wrong_device_is_refused_before_anything_is_written(
    engine: str | sweeps.Engine, device: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(MesaoptError, match=message):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine=engine, device=device)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_a_wrong_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", *GRID, "--dry-run", "--device", "nonsense") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "device='nonsense': is not there" in err


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:12"])
def test_a_cluster_may_have_a_device_that_is_not_here(device: str) -> None:
    check_device_name(device)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_without_its_package_names_the_extra(
    engine: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    wanted = rf"^engine='{engine}': {package} is not installed: pip install 'mesaopt\[{engine}\]'$"
    with pytest.raises(MissingPackageError, match=wanted):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_names_of_folders_are_short_plain_and_different(tmp_path: Path) -> None:
    mixers = [["mesa"], ["softmax_attention"]]
    two = grid("lsa-1", {"model.mixers": mixers, "train.schedule": ["constant", "warmup_cosine"]})
    names = [point.path.name for point in plan_sweep(two, tmp_path).points]
    assert names[0] == "lsa-1-mixers=_mesa_-schedule=constant-seed0"
    long = [[name] * 30 for name in ("mesa", "linear_attention")]
    deep = [[*name, "mesa"] for name in long] + [[*name, "delta_rule"] for name in long]
    names = [
        point.path.name
        for point in plan_sweep(grid("lsa-1", {"model.mixers": deep}), tmp_path).points
    ]
    assert len(set(names)) == 4
    assert names[3].startswith("0003-lsa-1-mixers=")
    mixed = plan_sweep(["lsa-1", "tf-3"], tmp_path)
    assert [point.path.name for point in mixed.points] == ["lsa-1-seed0", "tf-3-seed0"]
    assert [group.title for group in mixed.groups] == ["recipe lsa-1", "recipe tf-3"]


def test_a_point_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lsa-1-seed0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out of the folder"):
        mesaopt.sweep([CONFIG], tmp_path / "out", engine=Here(), resume=True)
    assert not list((tmp_path / "elsewhere").iterdir())
