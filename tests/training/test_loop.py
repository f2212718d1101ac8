import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mesaopt import files, recipes
from mesaopt.config import RunConfig, TrainConfig
from mesaopt.errors import RunError
from mesaopt.training import DivergedError, RunFolder, Trainer, learning_rate, load_run, train


def metrics_of(path: Path) -> bytes:
    return (path / "metrics.jsonl").read_bytes()


def test_a_run_learns(tmp_path: Path) -> None:
    config = recipes.get("lsa-1")
    short = replace(config.train, steps=250, batch_size=64, evaluate_every=125, learning_rate=2e-3)
    run = train(replace(config, train=short), tmp_path / "run", device="cpu")
    losses = [line["test_loss"] for line in run.metrics]
    assert losses[0] == pytest.approx(1.67, abs=0.02)
    assert losses[-1] < 1.0
    assert run.metrics[-1]["step"] == 250


def test_the_same_run_gives_the_same_bytes(short_config: RunConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(short_config, tmp_path / name, device="cpu")
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    other = replace(short_config, seed=1)
    train(other, tmp_path / "c", device="cpu")
    assert metrics_of(tmp_path / "a") != metrics_of(tmp_path / "c")


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 5, 9, 11])
def test_a_stopped_run_continues_bit_for_bit(
    short_config: RunConfig, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(short_config, tmp_path / "whole", device="cpu")
    step = Trainer.step

    def stopping(self: Trainer, number: int) -> torch.Tensor:
        if number == stop_at:
            raise _Interrupted
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(_Interrupted):
        train(short_config, tmp_path / "halves", device="cpu")
    monkeypatch.undo()
    resumed = train(short_config, tmp_path / "halves", resume=True, device="cpu")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "halves")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


@pytest.mark.slow
def test_a_killed_process_continues_byte_for_byte(tmp_path: Path) -> None:
    settings = ["train.steps=600", "train.batch_size=32", "train.evaluation_sequences=64"]
    settings += ["train.evaluate_every=50", "task.length=20"]
    command = [sys.executable, "-m", "mesaopt", "train", "lsa-1", "--device", "cpu"]
    command += ["--resume", "--set", *settings, "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, str(tmp_path / name)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    whole = start("whole")
    kills = 0
    while kills < 3:
        process = start("killed")
        # From the first line of metrics on, at any moment.
        while not (tmp_path / "killed" / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert start("killed").wait() == 0
    assert whole.wait() == 0
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "killed")
    assert len(RunFolder(tmp_path / "killed").metrics) == 13


def test_a_full_disk_leaves_a_folder_that_resumes(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(short_config, tmp_path / "whole", device="cpu")
    for writes in range(2, 14):
        calls = iter(range(1000))

        def full(_: int, calls=calls, writes=writes) -> None:
            if next(calls) >= writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        folder = tmp_path / f"full-{writes}"
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(RunError, match="the disk is full"):
                train(short_config, folder, device="cpu")
        train(short_config, folder, resume=True, device="cpu")
        assert metrics_of(tmp_path / "whole") == metrics_of(folder)


def test_a_finished_run_is_loaded_and_not_repeated(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(short_config, tmp_path, device="cpu")
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    second = train(short_config, tmp_path, resume=True, device="cpu")
    assert first.metrics == second.metrics


def test_snapshots_of_weights_are_kept(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    folder = RunFolder(tmp_path)
    assert folder.steps == [0, 4, 8, 12]
    initial = load_run(tmp_path, step=0, device="cpu").model
    fresh = Trainer(short_config, torch.device("cpu")).model
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, initial.state_dict()[name])
    assert folder.load(4).optimizer == {}
    assert folder.load(12).optimizer != {}


def test_a_loss_that_is_no_number_stops_the_run(short_config: RunConfig, tmp_path: Path) -> None:
    broken = replace(
        short_config,
        model=replace(short_config.model, initial_std=1e19, activation_clip=None),
    )
    with pytest.raises(DivergedError, match=r"step 0: .* lower train\.learning_rate"):
        train(broken, tmp_path, device="cpu")


def test_a_ridge_that_left_its_range_stops_the_run(short_config: RunConfig, tmp_path: Path) -> None:
    config = replace(
        short_config,
        model=replace(short_config.model, mixers=("mesa",)),
        train=replace(short_config.train, learning_rate=3.0),
    )
    with pytest.raises(DivergedError, match="ridge has the value"):
        train(config, tmp_path, device="cpu")


def test_gradients_are_clipped_element_by_element(short_config: RunConfig) -> None:
    config = replace(
        short_config,
        model=replace(short_config.model, initial_std=1.0, activation_clip=None),
        train=replace(short_config.train, gradient_clip=0.25),
    )
    trainer = Trainer(config, torch.device("cpu"))
    trainer.step(0)
    gradients = torch.cat([p.grad.flatten() for p in trainer.parameters.values()])
    assert gradients.abs().max() == 0.25
    assert (gradients.abs() == 0.25).sum() > 1, "a norm would leave at most one at the bound"


def test_the_published_schedule() -> None:
    config = TrainConfig(schedule="warmup_cosine", learning_rate=3e-4, decay_steps=20_000)
    assert learning_rate(config, 0) == 0
    assert learning_rate(config, 500) == pytest.approx(1.5e-4)
    assert learning_rate(config, 1000) == pytest.approx(3e-4)
    # optax counts the warm-up in: half of the cosine is at 1000 + 19,000 / 2.
    assert learning_rate(config, 10_500) == pytest.approx((3e-4 + 1e-5) / 2)
    assert learning_rate(config, 20_000) == pytest.approx(1e-5)
    assert learning_rate(config, 50_000) == pytest.approx(1e-5)
    assert not math.isclose(learning_rate(config, 5000), 3e-4)


def test_the_device_is_looked_for_before_anything_is_written(
    short_config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="device='cuda:99': is not there; devices here: auto, cpu"):
        train(short_config, tmp_path / "run", device="cuda:99")
    assert not (tmp_path / "run").exists()
