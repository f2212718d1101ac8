"""Loggers of trainings: real files of TensorBoard, and stand-ins for services that need an account."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesaopt import cli
from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, MissingPackageError
from mesaopt.progress import OnProgress, Progress
from mesaopt.sweeps import train_folder
from mesaopt.training import TensorBoard, load_run, tracker, train, train_seeds
from mesaopt.training.track import TRACKERS

STEPS = [0, 4, 8, 12]


def stop(_: Progress) -> None:
    raise KeyboardInterrupt


def train_in_two_sessions(config: RunConfig, path: Path, logger: Callable[[], OnProgress]) -> None:
    """Interrupt a training after ten steps, two after an evaluation, and let a new logger go on."""
    with pytest.raises(KeyboardInterrupt):
        train(config, path, device="cpu", progress=stop, logger=logger())
    train(config, path, device="cpu", resume=True, progress=False, logger=logger())


def test_a_logger_gets_the_lines_of_the_metrics(short_config: RunConfig, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run = train(short_config, tmp_path / "mine", device="cpu", logger=seen.append)
    assert [(one.done, one.total, one.stage) for one in seen] == [(s, 12, "mine") for s in STEPS]
    lines = [{"step": one.done, "train_loss": None, **one.metrics} for one in seen]
    assert lines == run.metrics


def test_a_resumed_run_logs_each_evaluation_once(short_config: RunConfig, tmp_path: Path) -> None:
    seen: list[Progress] = []
    train_in_two_sessions(short_config, tmp_path, lambda: seen.append)
    assert [one.done for one in seen] == STEPS


def test_a_logger_does_not_change_a_training_and_its_errors_end_it(
    short_config: RunConfig, tmp_path: Path
) -> None:
    train(short_config, tmp_path / "a", device="cpu")
    train(short_config, tmp_path / "b", device="cpu", logger=lambda _: None)
    a, b = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab")
    assert a == b
    with pytest.raises(KeyboardInterrupt):
        train(short_config, tmp_path / "c", device="cpu", logger=stop)


def test_seeds_side_by_side_have_a_log_each(short_config: RunConfig, tmp_path: Path) -> None:
    seen: list[Progress] = []
    configs = [replace(short_config, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / name for name in "ab"]
    train_seeds(configs, folders, device="cpu", logger=seen.append)
    for folder in folders:
        own = [one for one in seen if one.stage == folder.name]
        losses = [line["test_loss"] for line in load_run(folder, device="cpu").metrics]
        assert [one.metrics["test_loss"] for one in own] == losses


def test_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TensorBoard("~/logs").folder == tmp_path / "logs"
    with pytest.raises(TypeError, match="path is None: must be a path"):
        TensorBoard(None)
    problem = train_folder("~/no-run")
    assert problem == f"run='{tmp_path}/no-run': there is no such folder"


@pytest.mark.filterwarnings("ignore")  # of the packages that read and write its files
def test_tensorboard_shows_a_resumed_run_once(short_config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_in_two_sessions(short_config, tmp_path / "mine", lambda: TensorBoard(tmp_path / "logs"))
    log = EventAccumulator(str(tmp_path / "logs" / "mine")).Reload()
    shown = [(event.step, event.value) for event in log.Scalars("test_loss")]
    metrics = load_run(tmp_path / "mine", device="cpu").metrics
    assert [step for step, _ in shown] == STEPS
    assert [value for _, value in shown] == pytest.approx([m["test_loss"] for m in metrics])
    assert [event.step for event in log.Scalars("train_loss")] == STEPS[1:]


class Service:
    """A stand-in for wandb and trackio: it keeps logs by the id or name of their run."""

    def __init__(self) -> None:
        self.logs: dict[str, list[int]] = {}
        self.opened: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Any:
        self.opened.append(settings)
        kept = self.logs.setdefault(settings["name"], [])
        if settings["resume"] != "allow":
            kept.clear()

        def log(metrics: dict[str, float], step: int) -> None:
            assert metrics["test_loss"] > 0
            kept.append(step)
            run.step = step + 1

        def finish() -> None:
            self.finished += 1

        run = types.SimpleNamespace(step=kept[-1] + 1 if kept else 0, log=log, finish=finish)
        return run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_each_evaluation_once(
    name: str, short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    train_in_two_sessions(short_config, tmp_path / "mine", lambda: tracker(name))
    assert service.logs == {"mine": STEPS}
    assert [one["resume"] for one in service.opened] in (["never", "allow"], [None, "allow"])
    assert {one["project"] for one in service.opened} == {"mesaopt"}
    assert service.finished == 1
    train(short_config, tmp_path / "again" / "mine", device="cpu", logger=tracker(name))
    assert service.logs == {"mine": STEPS}, "a run that begins anew"


def test_what_a_service_has_already_is_not_logged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    service.logs["mine"] = [0, 4]
    log = tracker("wandb")
    for step in (4, 8):
        log(Progress(step, 12, "mine", {"test_loss": 1.0}))
    assert service.logs["mine"] == [0, 4, 8]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    wanted = rf"{name} is not installed: pip install 'mesaopt\[track\]'"
    with pytest.raises(MissingPackageError, match=wanted):
        tracker(name)


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="track='wandbb': did you mean 'wandb'?"):
        tracker("wandbb")


def test_the_command_line_logs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "trackio", service)
    settings = ["train.steps=4", "train.batch_size=4", "train.evaluation_sequences=4"]
    line = ["train", "lsa-1", "--out", str(tmp_path / "a"), "--device", "cpu", "--set", *settings]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*line, "--track", "trackio"])
    assert service.logs == {"a": [0, 4]}
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = ["train", "lsa-1", "--out", str(tmp_path / "b"), "--track", "wandb"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(other)
    assert "pip install 'mesaopt[track]'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
