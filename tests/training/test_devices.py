"""Trainings by several processes: the numbers of one, whoever is killed and however many go on."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import Processes, command, command_that_fails_once, train_some
from safetensors.torch import load_file
from torch import nn

from mesaopt import json_files, recipes
from mesaopt.config import (
    CopyingConfig,
    LanguageModelConfig,
    RunConfig,
    TrainConfig,
)
from mesaopt.errors import ConfigError, RunError
from mesaopt.models import own_model
from mesaopt.tasks import Batch
from mesaopt.training import Devices, RunFolder, load_run, step_cost, train
from mesaopt.training.shared import ProcessGroup, SharedTrainer
from mesaopt.workers import num_threads

TRAIN = TrainConfig(
    steps=12, batch_size=12, evaluate_every=4, evaluation_sequences=7, learning_rate=1e-3
)
TASK = CopyingConfig(shortest=2, longest=4, test_shortest=4, test_longest=4)
# One head and odd widths: what one of the processes has of a weight may be smaller, or nothing.
LANGUAGE = LanguageModelConfig(
    vocabulary=TASK.vocabulary, mixers=("mesanet2025",), width=9, num_heads=1, mlp_dim=5, tied=False
)
CONFIGS = {
    "language": RunConfig(recipe="tiny", task=TASK, model=LANGUAGE, train=TRAIN),
    "sequence": replace(
        recipes.get("mesa-1"),
        task=replace(recipes.get("mesa-1").task, length=8),
        model=replace(recipes.get("mesa-1").model, mlp_dim=5),
        train=TRAIN,
    ),
}
CONFIGS["descent"] = replace(
    CONFIGS["sequence"], train=replace(TRAIN, optimizer="gradient_descent", learning_rate=0.1)
)
SHARED = Devices(shard=True, parts=2, recompute=True)


@pytest.fixture(params=["language", "sequence"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    return CONFIGS[request.param]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Train with some processes, and return what they say; None means that all must succeed."""

    def run(size: int, config: RunConfig, name: str, *how, fails: bool = False) -> str:
        said = tmp_path / f"{name}.said"
        statuses = Processes(size, train_some, config, tmp_path / name, *how, said=said).end()
        assert any(statuses) == fails, said.read_text()
        return said.read_text()

    return run


def assert_close(ours: Path, theirs: Path) -> None:
    """Compare the curves and weights of two runs: sums of the same numbers in another order."""
    ours, theirs = load_run(ours), load_run(theirs)
    for own, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert own | {"train_loss": own["train_loss"] or 0.0} == pytest.approx(
            other | {"train_loss": other["train_loss"] or 0.0}, rel=2e-5
        )
    weights = theirs.model.state_dict()
    for name, weight in ours.model.state_dict().items():
        assert torch.allclose(weight, weights[name], rtol=1e-3, atol=2e-5), name


@pytest.mark.parametrize("devices", [Devices(), SHARED], ids=["data parallel", "shared"])
def test_two_processes_train_like_one(
    config: RunConfig, devices: Devices, run: Callable[..., str], tmp_path: Path
) -> None:
    train(config, tmp_path / "alone", device="cpu")
    run(2, config, "two", devices)
    assert_close(tmp_path / "two", tmp_path / "alone")
    assert RunFolder(tmp_path / "two").is_done


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("language", (2, 1, 2)),
        ("sequence", (2, 1, 2)),
        ("sequence", (1, 3, None)),
        ("sequence", (None, 2, None)),
        ("descent", (2, 1, None)),
    ],
)
def test_any_number_of_processes_goes_on(
    name: str, sizes: tuple, run: Callable[..., str], tmp_path: Path
) -> None:
    """None is one process as ever, not one of torchrun."""
    config = CONFIGS[name]
    train(config, tmp_path / "whole", device="cpu")
    for size, last in zip(sizes, (5, 9, None), strict=True):
        if size is not None:
            run(size, config, "parts", SHARED, last)
        elif last is None:
            train(config, tmp_path / "parts", device="cpu", resume=True)
        else:
            first = replace(config, train=replace(config.train, steps=4))
            train(first, tmp_path / "parts", device="cpu")
            (tmp_path / "parts/DONE").unlink()
            (tmp_path / "parts/config.json").write_bytes(
                (tmp_path / "whole/config.json").read_bytes()
            )
    assert_close(tmp_path / "parts", tmp_path / "whole")


def test_a_killed_process_ends_all_with_one_message(tmp_path: Path) -> None:
    arguments = ["train", "mesa-1", "--device", "cpu", "--shard", "--resume", "--set"]
    arguments += ["train.steps=80", "train.batch_size=4", "train.evaluate_every=10"]
    arguments += ["train.evaluation_sequences=4", "task.length=8"]
    said = tmp_path / "said"
    out = ["--out", str(tmp_path / "killed")]
    both = Processes(2, command, *arguments, *out, said=said)
    while not (tmp_path / "killed/checkpoints/step_000020").exists():
        assert all(process.is_alive() for process in both.all), said.read_text()
        time.sleep(0.01)
    os.kill(both.all[1].pid, signal.SIGKILL)
    assert both.end()[1] == -signal.SIGKILL
    messages = [line for line in said.read_text().splitlines() if line.startswith("mesaopt:")]
    ended = "another process of this training has ended, and so do all; go on with --resume"
    assert messages == [f"mesaopt: {ended}"]
    assert not RunFolder(tmp_path / "killed").is_done
    again = Processes(2, command, *arguments, *out, said=said, after=both)
    assert again.end() == [0, 0], said.read_text()
    out = ["--out", str(tmp_path / "whole")]
    assert Processes(2, command, *arguments, *out, said=said).end() == [0, 0]
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("killed", "whole")]
    assert lines[0] == lines[1]


def test_what_fails_in_one_process_is_what_all_say(tmp_path: Path) -> None:
    arguments = ["train", "lsa-1", "--device", "cpu", "--out", str(tmp_path / "run"), "--set"]
    arguments += ["train.steps=9", "train.batch_size=4", "train.evaluation_sequences=4"]
    said = tmp_path / "said"
    statuses = Processes(2, command_that_fails_once, *arguments, said=said).end()
    assert statuses[1] == 1
    assert statuses[0] != 0
    assert said.read_text() == "mesaopt: step 2: a ridge is negative; lower train.learning_rate\n"


def test_a_full_disk_leaves_a_folder_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["sequence"]
    whole = train(config, tmp_path / "whole", device="cpu", devices=SHARED)
    for writes in range(2, 12, 2):
        calls = iter(range(1000))

        def full(_: int, calls=calls, writes=writes) -> None:
            if next(calls) >= writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        folder = tmp_path / f"full-{writes}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RunError, match="the disk is full"):
                train(config, folder, device="cpu", devices=SHARED)
        again = train(config, folder, resume=True, device="cpu", devices=SHARED)
        assert again.metrics == whole.metrics


def test_what_processes_cannot_share_is_refused_before_training(
    run: Callable[..., str], tmp_path: Path
) -> None:
    config = CONFIGS["sequence"]
    config = replace(config, train=replace(config.train, batch_size=8))
    said = run(3, config, "three", Devices(), fails=True)
    problem = "train.batch_size=8: must be a multiple of 3, the number of processes\n"
    # Each process says so, but for those that are stopped because another was quicker.
    assert said in (problem, problem * 2, problem * 3)
    assert not (tmp_path / "three").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").touch()
    said = run(2, config, "taken", Devices(), fails=True)
    assert said.count("holds other files") in (1, 2)
    merged = replace(recipes.get("ar-full-one"), train=TRAIN)
    with pytest.raises(ConfigError, match=r"^model\.kind='merged_attention': must be 'sequence'"):
        train(merged, tmp_path / "merged", device="cpu", devices=Devices())
    with pytest.raises(ConfigError, match="^parts=0: must be 1 or greater"):
        Devices(parts=0)


@pytest.mark.parametrize("how", [{"parts": 5}, {"recompute": True}])
def test_one_process_may_save_memory(how: dict, config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, steps=4))
    train(config, tmp_path / "alone", device="cpu")
    train(config, tmp_path / "how", device="cpu", devices=Devices(**how))
    assert_close(tmp_path / "how", tmp_path / "alone")


@pytest.mark.parametrize(("began_with", "threads"), [(1, 2), (3, 1)])
def test_as_many_processes_as_before_go_on_with_as_many_threads(
    began_with: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen, step = CONFIGS["sequence"], [], SharedTrainer.step

    def watched(trainer: SharedTrainer, number: int) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return step(trainer, number)

    with num_threads(2):
        meta = RunFolder.open(tmp_path, config, resume=False).meta
    json_files.write(tmp_path / "meta.json", meta | {"processes": began_with})
    monkeypatch.setattr(SharedTrainer, "step", watched)
    train(config, tmp_path, resume=True, device="cpu", devices=Devices(parts=2))
    assert set(seen) == {threads}
    assert torch.get_num_threads() == 1


def test_bfloat16_is_shared_like_float32(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, steps=4, precision="bfloat16"))
    train(config, tmp_path / "alone", device="cpu")
    train(config, tmp_path / "group", device="cpu", devices=Devices(shard=True))
    assert_close(tmp_path / "group", tmp_path / "alone")


def test_a_gpu_that_the_process_would_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    wanted = "device='cuda:0': must be 'cuda', of which process 1 takes the GPU of its number"
    with pytest.raises(ConfigError, match=wanted):
        ProcessGroup.join(torch.device("cuda:0"), Devices()).__enter__()


def test_several_seeds_are_trained_one_after_another(tmp_path: Path) -> None:
    """Four processes that join again find none of the addresses of their first group."""
    arguments = ["train", "lsa-1", "--device", "cpu", "--shard", "--seeds", "2", "--set"]
    arguments += ["train.steps=2", "train.batch_size=4", "train.evaluation_sequences=4"]
    said = tmp_path / "said"
    both = Processes(4, command, *arguments, "--out", str(tmp_path), said=said)
    assert both.end() == [0] * 4, said.read_text()
    for seed in (0, 1):
        folder = RunFolder(tmp_path / f"lsa-1-seed{seed}")
        assert folder.is_done
        assert folder.meta["processes"] == 4


@pytest.mark.slow
def test_compiled_blocks_train_alike(run: Callable[..., str], tmp_path: Path) -> None:
    base = CONFIGS["sequence"]
    model = replace(base.model, mixers=("linear_attention",))
    config = replace(base, model=model, train=replace(base.train, steps=4))
    train(config, tmp_path / "alone", device="cpu")
    run(1, config, "compiled", Devices(compile=True, shard=True, recompute=True))
    assert_close(tmp_path / "compiled", tmp_path / "alone")


def test_recomputing_keeps_less_for_the_gradients(config: RunConfig) -> None:
    from mesaopt.training.shared import ProcessGroup, SharedTrainer

    kept = []
    for recompute in (False, True):
        sizes = {}

        def pack(x: torch.Tensor, sizes: dict = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with ProcessGroup.join(torch.device("cpu"), Devices(recompute=recompute)) as group:
            trainer = SharedTrainer(config, group)
            batch = trainer.data.batch(0)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                loss = trainer._loss(batch)
            kept.append(sum(sizes.values()))
            loss.backward()
    assert kept[1] < kept[0] / 2


def test_a_module_of_ones_own_is_shared_whole(run: Callable[..., str], tmp_path: Path) -> None:
    base = CONFIGS["sequence"]
    config = replace(base, model=own_model(nn.Linear(40, 10)))
    train(config, tmp_path / "alone", device="cpu")
    run(2, config, "two", Devices(shard=True))
    last = "checkpoints/step_000012/model.safetensors"
    weights = [load_file(tmp_path / name / last)["weight"] for name in ("alone", "two")]
    assert torch.allclose(*weights, atol=1e-5)


@pytest.mark.parametrize("how", ["recompute", "compile"])
def test_blocks_that_a_module_does_not_have_are_not_recomputed(how: str, tmp_path: Path) -> None:
    config = replace(CONFIGS["sequence"], model=own_model(nn.Linear(40, 10)))
    message = f"^{how}=True: works on blocks, and 'Linear' has none: must have a torch.nn.ModuleLi"
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "own", device="cpu", devices=Devices(**{how: True}))
    assert not (tmp_path / "own").exists()


def test_the_cost_is_that_of_the_way_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, loss = [], SharedTrainer._loss

    def watched(trainer: SharedTrainer, part: Batch) -> torch.Tensor:
        seen.append(len(part.tokens))
        return loss(trainer, part)

    monkeypatch.setattr(SharedTrainer, "_loss", watched)
    cost = step_cost(CONFIGS["sequence"], "cpu", devices=Devices(parts=4, recompute=True))
    assert set(seen) == {3}
    assert cost.parameters == step_cost(CONFIGS["sequence"], "cpu").parameters


def test_missing_and_damaged_pieces_are_refused(run: Callable[..., str], tmp_path: Path) -> None:
    config = CONFIGS["language"]
    run(2, config, "two", Devices(shard=True), 5)
    step = tmp_path / "two/checkpoints/step_000004"
    pieces = sorted((step / "optimizer").iterdir())
    assert len(pieces) == 2
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 99)):
        for piece in pieces:
            whole = piece.read_bytes()
            damage(piece)
            with pytest.raises(RunError, match=rf"^{step}/optimizer: is damaged .* delete {step}"):
                train(config, tmp_path / "two", device="cpu", resume=True)
            piece.write_bytes(whole)
    train(config, tmp_path / "two", device="cpu", resume=True)
