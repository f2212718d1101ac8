import errno
import math
import multiprocessing
import multiprocessing.process
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Interrupted, interrupt

from mesaopt import files, json_files, recipes
from mesaopt.config import ContinuousMQARConfig, ModelConfig, RunConfig, TrainConfig, override
from mesaopt.errors import ConfigError, InitialisationWarning, RunError
from mesaopt.progress import Progress
from mesaopt.tasks import make_task
from mesaopt.training import (
    DivergedError,
    RunFolder,
    SeedsTrainer,
    Trainer,
    learning_rate,
    load_run,
    train,
)
from mesaopt.training import trainer as trainer_module
from mesaopt.training.trainer import Data


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


def stopped_and_resumed(
    config: RunConfig, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train in one piece and in two, and compare everything."""
    whole = train(config, tmp_path / "whole", device="cpu")
    interrupt(Trainer, "step", after=stop_at, patch=monkeypatch)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "halves", device="cpu")
    monkeypatch.undo()
    resumed = train(config, tmp_path / "halves", resume=True, device="cpu")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "halves")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


@pytest.mark.parametrize("stop_at", [1, 4, 5, 9, 11])
def test_a_stopped_run_continues_bit_for_bit(
    short_config: RunConfig, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_and_resumed(short_config, tmp_path, stop_at, monkeypatch)


@pytest.mark.parametrize("stop_at", [1, 4, 11])
@pytest.mark.parametrize("optimizer", ["gradient_descent", "adamw"])
@pytest.mark.parametrize("data", ["fixed", "fresh"])
def test_a_stopped_complex_run_continues_bit_for_bit(
    short_ar_config: RunConfig,
    tmp_path: Path,
    stop_at: int,
    optimizer: str,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"optimizer": optimizer, "data": data, "gradient_clip": 0.5}
    config = replace(short_ar_config, train=replace(short_ar_config.train, **settings))
    stopped_and_resumed(config, tmp_path, stop_at, monkeypatch)


@pytest.mark.slow
def test_a_killed_process_continues_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train.steps=240", "train.batch_size=32", "train.evaluation_sequences=64"]
    settings += ["train.evaluate_every=20", "task.length=20"]
    config = override(recipes.get("lsa-1"), settings)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")  # torch is imported once for all
    processes.set_forkserver_preload(["mesaopt.training", "torch._dynamo"])

    def start(name: str) -> multiprocessing.process.BaseProcess:
        how = {"resume": True, "device": "cpu"}
        process = processes.Process(target=train, args=(config, tmp_path / name), kwargs=how)
        process.start()
        return process

    whole = start("whole")
    for _ in range(3):
        process = start("killed")
        # From the first line of metrics on, at any moment.
        while not (tmp_path / "killed" / "metrics.jsonl").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.5))
        process.kill()
        process.join()
    last = start("killed")
    for process in (whole, last):
        process.join()
        assert process.exitcode == 0
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
    gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
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


def test_a_complex_run_learns(tmp_path: Path) -> None:
    config = recipes.get("ar-sparse")
    changes = ["task.dim=2", "model.dim=2", "task.length=20", "train.batch_size=100"]
    changes += ["train.steps=100", "train.learning_rate=0.03", "train.evaluate_every=50"]
    run = train(override(config, changes), tmp_path / "run", device="cpu")
    losses = [line["test_loss"] for line in run.metrics]
    # T - 2 = 18 predictions of sparse states: 18 / 2 (1 - a b)^2 with a b = 0.01 at first, in float32.
    assert losses[0] == pytest.approx(9 * 0.99**2, rel=1e-5)
    # The limit recovers the sequence; complex64 leaves the published official run at 3e-8 to 7e-7.
    assert losses[-1] < 1e-5
    product = (run.model.key_query_block.diagonal() * run.model.value_block.diagonal()).real
    torch.testing.assert_close(product, torch.ones(2), rtol=0, atol=1e-3)


def test_fixed_data_are_the_same_at_every_step_and_fresh_ones_are_not(
    short_ar_config: RunConfig,
) -> None:
    for data in ("fixed", "fresh"):
        config = replace(short_ar_config, train=replace(short_ar_config.train, data=data))
        config = replace(config, task=replace(config.task, start="gaussian"))
        at = [Trainer(config, torch.device("cpu")).step(number) for number in (0, 7)]
        assert (at[0] == at[1]) == (data == "fixed")


def test_the_sum_over_positions_is_their_number_times_the_mean(short_ar_config: RunConfig) -> None:
    losses = {}
    for positions in ("sum", "mean"):
        config = replace(short_ar_config, train=replace(short_ar_config.train, positions=positions))
        trainer = Trainer(config, torch.device("cpu"))
        losses[positions] = (trainer.test_loss(), trainer.step(0).item())
    for total, mean in zip(*losses.values(), strict=True):
        assert total == pytest.approx(6 * mean, rel=1e-6)  # T - 2 positions, rounded to float32


def test_a_step_in_parts_is_the_step(short_ar_config: RunConfig) -> None:
    weights, losses = [], []
    for part in (8, 3):
        trainer = Trainer(short_ar_config, torch.device("cpu"), part_size=part)
        losses.append(trainer.step(0))
        weights.append(trainer.model.layer.key_query.detach())
    # Sums of 8 sequences in another order, in float32.
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-8)
    assert not torch.equal(
        weights[0], trainer_module.make_model(short_ar_config.model).layer.key_query
    )


def test_gradient_descent_is_plain(short_ar_config: RunConfig) -> None:
    settings = {"weight_decay": 0.5, "learning_rate": 0.01}
    config = replace(short_ar_config, train=replace(short_ar_config.train, **settings))
    trainer = Trainer(config, torch.device("cpu"))
    weight = trainer.model.layer.key_query
    for step in range(3):  # momentum would show at the second step
        before = weight.detach().clone()
        trainer.step(step)
        torch.testing.assert_close(weight.detach(), before - 0.01 * weight.grad)


def test_a_step_size_past_the_stable_one_stops_the_run(
    short_ar_config: RunConfig, tmp_path: Path
) -> None:
    settings = {"learning_rate": 10.0, "steps": 40}
    config = replace(short_ar_config, train=replace(short_ar_config.train, **settings))
    with pytest.raises(DivergedError, match=r"lower train\.learning_rate"):
        train(config, tmp_path, device="cpu")


def test_token_layouts_train_alike(short_ar_config: RunConfig) -> None:
    slots = ("zero", "current", "previous")
    paper = replace(
        short_ar_config,
        task=replace(short_ar_config.task, token_slots=slots),
        model=replace(short_ar_config.model, token_slots=slots),
    )
    trainers = [Trainer(config, torch.device("cpu")) for config in (short_ar_config, paper)]
    for step in range(12):
        losses = [trainer.step(step) for trainer in trainers]
        # The wider products add zeros, perhaps in another order: roundings of float32.
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    assert trainers[0].test_loss() == pytest.approx(trainers[1].test_loss(), rel=1e-5)


def test_dead_ends_are_warned_of_in_training_and_not_when_a_run_is_loaded(
    short_ar_config: RunConfig, tmp_path: Path
) -> None:
    stuck = replace(short_ar_config.model, initial_key_query=0.0, initial_value=0.0)
    with pytest.warns(InitialisationWarning, match="training never moves"):
        run = train(replace(short_ar_config, model=stuck), tmp_path, device="cpu")
    assert len({line["test_loss"] for line in run.metrics}) == 1
    load_run(tmp_path, device="cpu")  # a warning would fail the test


def test_a_run_knows_whether_its_model_is_a_sequence_model(
    tmp_path: Path, short_config: RunConfig, short_ar_config: RunConfig
) -> None:
    run = train(short_config, tmp_path / "real", device="cpu")
    assert run.sequence_model is run.model
    assert run.config.sequence_model is run.config.model
    other = train(short_ar_config, tmp_path / "complex", device="cpu")
    with pytest.raises(RunError, match="holds a 'merged_attention' model; must be a 'sequence'"):
        _ = other.sequence_model
    with pytest.raises(ConfigError, match="kind='merged_attention': must be 'sequence'"):
        _ = other.config.sequence_model


def expected_test_loss(config: RunConfig, trainer: Trainer) -> float:
    """The mean loss of the test sequences, drawn and scored anew, in float64."""
    task, total, losses = make_task(config.task), config.train.evaluation_sequences, []
    for step, done in enumerate(range(0, total, 256)):
        drawn = task.sample(min(256, total), seed=0, step=step, split="test")
        batch = next(drawn.split(min(256, total - done)))
        error = (trainer.model(batch.tokens) - batch.targets)[:, batch.scored]
        squares = error.abs().double().square().sum(-1) / 2
        losses.append(squares.sum(1) if config.train.positions == "sum" else squares.mean(1))
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_test_loss_is_that_of_the_test_sequences(
    short_config: RunConfig, short_ar_config: RunConfig, kind: str, seed: int
) -> None:
    config = short_config if kind == "real" else short_ar_config
    task = config.task if kind == "real" else replace(config.task, start="gaussian")
    settings = replace(config.train, evaluation_sequences=300)
    config = replace(config, seed=seed, task=task, train=settings)
    trainer = Trainer(config, torch.device("cpu"))
    # Means of 300 losses in float32.
    assert trainer.test_loss() == pytest.approx(expected_test_loss(config, trainer), rel=1e-5)
    if kind == "real":
        together = SeedsTrainer([config, replace(config, seed=9)], torch.device("cpu"))
        assert together.test_losses()[0] == pytest.approx(trainer.test_loss(), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, [4] * 3), (256, [86] * 3), (1000, [256] * 3 + [78] * 3)]
)
def test_every_setting_has_as_many_test_sequences(count: int, sizes: list[int]) -> None:
    task = ContinuousMQARConfig(dim=4, pairs=3, codes=16, test_on=(1, 2, 3))
    model = ModelConfig(embed_dim=8, token_dim=8, output_dim=4, readout="linear", num_heads=1)
    config = RunConfig(
        recipe="mine", task=task, model=model, train=TrainConfig(evaluation_sequences=count)
    )
    trainer = Trainer(config, torch.device("cpu"))
    batches = [trainer.data.test_batch(i) for i in range(trainer.data.num_test_batches)]
    assert [len(batch.tokens) for batch in batches] == sizes
    assert [len(batch.positions) for batch in batches[:3]] == [1, 2, 3]
    assert trainer.data.num_test_sequences == sum(sizes)
    losses = [trainer.data.loss(batch, trainer.model(batch.tokens)) for batch in batches]
    wanted = sum(x.item() * size for x, size in zip(losses, sizes, strict=True)) / sum(sizes)
    assert trainer.test_loss() == pytest.approx(wanted, rel=1e-5)


def test_no_test_sequence_of_a_text_comes_twice(tmp_path: Path) -> None:
    tokens = torch.randint(97, 123, (200_000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_bytes(bytes(tokens.tolist()))
    config = override(
        recipes.get("lm-softmax"),
        [
            f"task.corpus={tmp_path / 'text.txt'}",
            "task.length=16",
            "train.evaluation_sequences=400",
        ],
    )
    data = Data(config, torch.device("cpu"))
    first, second = (data.test_batch(i).tokens.tolist() for i in range(data.num_test_batches))
    assert (len(first), len(second)) == (256, 144)
    assert len({tuple(row) for row in first + second}) == 400


@pytest.mark.parametrize("data", ["fresh", "fixed"])
def test_a_step_trains_on_the_training_sequences_of_its_seed_and_step(
    short_config: RunConfig, data: str
) -> None:
    config = replace(short_config, seed=5, train=replace(short_config.train, data=data))
    trainer = Trainer(config, torch.device("cpu"))
    for step in (0, 3):
        batch = trainer.data.batch(step)
        drawn = 0 if data == "fixed" else step
        wanted = make_task(config.task).sample(8, seed=5, step=drawn, split="train")
        assert torch.equal(batch.tokens, wanted.tokens)


@pytest.mark.parametrize("method", ["log", "save", "finish"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_stopped_between_its_files_continues_bit_for_bit(
    short_config: RunConfig,
    tmp_path: Path,
    method: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method == "finish" and count > 0:
        pytest.skip("a run ends once")
    train(short_config, tmp_path / "whole", device="cpu")
    interrupt(RunFolder, method, after=count, patch=monkeypatch)
    with pytest.raises(Interrupted):
        train(short_config, tmp_path / "halves", device="cpu")
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "halves")
    lines = [line["step"] for line in folder.metrics]
    assert set(folder.steps) <= set(lines), "a checkpoint has its line of metrics"
    train(short_config, folder.path, resume=True, device="cpu")
    assert metrics_of(tmp_path / "whole") == metrics_of(folder.path)


def test_metrics_are_the_mean_training_loss_the_test_loss_and_the_rate_of_their_step(
    short_config: RunConfig, tmp_path: Path
) -> None:
    schedule = {"schedule": "warmup_cosine", "warmup_steps": 5, "decay_steps": 11}
    config = replace(short_config, train=replace(short_config.train, **schedule))
    run = train(config, tmp_path, device="cpu")
    trainer, losses = Trainer(config, torch.device("cpu")), []
    assert run.metrics[0]["train_loss"] is None
    for step in range(13):
        if step % 4 == 0:
            line = run.metrics[step // 4]
            assert line["step"] == step
            assert line["test_loss"] == trainer.test_loss()
            assert line["learning_rate"] == learning_rate(config.train, step)
            if losses:
                assert line["train_loss"] == torch.stack(losses).mean().item()
            losses = []
        losses.append(trainer.step(step))


def test_the_rate_of_a_step_is_that_of_the_schedule(short_ar_config: RunConfig) -> None:
    schedule = {"schedule": "warmup_cosine", "warmup_steps": 2, "decay_steps": 5}
    settings = replace(short_ar_config.train, gradient_clip=None, **schedule)
    config = replace(short_ar_config, train=settings)
    trainer = Trainer(config, torch.device("cpu"))
    weight = trainer.model.layer.key_query
    for step in range(7):
        before = weight.detach().clone()
        trainer.step(step)
        rate = learning_rate(config.train, step)
        torch.testing.assert_close(weight.detach(), before - rate * weight.grad)
        assert rate > 0 or torch.equal(weight, before)


def test_weight_decay_is_decoupled(short_config: RunConfig) -> None:
    moved = {}
    for decay in (0.0, 0.5):
        settings = replace(short_config.train, weight_decay=decay, learning_rate=0.1)
        model = replace(short_config.model, initial_std=0.1)
        trainer = Trainer(replace(short_config, model=model, train=settings), torch.device("cpu"))
        weight = trainer.model.get_parameter("blocks.0.mixer.key.weight")
        before = weight.detach().clone()
        trainer.step(0)
        moved[decay] = weight.detach() - before
    # AdamW: w <- (1 - rate * decay) w - rate * step, with the same step.
    torch.testing.assert_close(moved[0.5] - moved[0.0], -0.05 * before, rtol=1e-4, atol=1e-6)


def test_progress_is_called_every_ten_steps_and_at_the_end(
    short_config: RunConfig, tmp_path: Path
) -> None:
    called: list[Progress] = []
    config = replace(short_config, train=replace(short_config.train, steps=25))
    train(config, tmp_path, device="cpu", progress=called.append)
    assert [(one.done, one.total, one.stage) for one in called] == [
        (step, 25, tmp_path.name) for step in (10, 20, 25)
    ]
    trainer = Trainer(config, torch.device("cpu"))
    losses = [trainer.step(step).item() for step in range(25)]
    assert [one.metrics["train_loss"] for one in called] == [losses[9], losses[19], losses[24]]


def test_a_resumed_run_keeps_its_threads_its_origin_and_its_time(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(Trainer, "step", after=9, patch=monkeypatch)
    with pytest.raises(Interrupted):
        train(short_config, tmp_path, device="cpu")
    monkeypatch.undo()
    folder = RunFolder(tmp_path)
    # A run that began before there were workers, whose sums depend on its threads.
    changes = {"num_threads": 3, "started": "long ago", "part_size": None}
    json_files.write(tmp_path / "meta.json", folder.meta | changes)
    folder.save(replace(folder.load(8), seconds=1000.0))
    seen: list[int] = []
    original = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda *a: seen.append(torch.get_num_threads()) or original(*a)
    )
    run = train(short_config, tmp_path, resume=True, device="cpu")
    assert set(seen) == {3}
    assert torch.get_num_threads() == 1, "as before"
    assert folder.meta["started"] == "long ago"
    assert 1000 < run.seconds < 1100
    assert 1000 < json_files.read(tmp_path / "DONE")["seconds"] < 1100
