"""Seeds trained side by side: the runs that each would be alone."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Interrupted, interrupt

from mesaopt.config import ModelConfig, RunConfig
from mesaopt.errors import ConfigError, RunError
from mesaopt.training import (
    DivergedError,
    RunFolder,
    SeedsTrainer,
    Trainer,
    run_name,
    seed_batches,
    step_cost,
    train,
    train_seeds,
)

MODELS = {
    "linear": ModelConfig(initial_std=0.05),
    "hybrid": ModelConfig(
        mixers=("softmax_attention", "mesa"),
        positions="first_layer",
        unit_queries_keys="after_first",
        mlp_dim=6,
        readout="linear",
        initial_std=0.05,
    ),
    "unit values": ModelConfig(
        mixers=("softmax_attention", "mesa"), unit_queries_values="after_first", initial_std=0.05
    ),
}


def seeds_of(config: RunConfig, count: int = 3) -> list[RunConfig]:
    return [replace(config, seed=seed) for seed in range(count)]


def folders_in(path: Path, configs: list[RunConfig]) -> list[Path]:
    return [path / run_name(config) for config in configs]


def files_of(path: Path) -> dict[str, bytes]:
    """Files whose bytes do not depend on the time of day, or on how long training took."""
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("meta.json", "DONE")}


@pytest.mark.parametrize("kind", MODELS)
def test_seeds_side_by_side_are_the_runs_they_would_be_alone(
    short_config: RunConfig, tmp_path: Path, kind: str
) -> None:
    settings = replace(short_config.train, learning_rate=2e-3)
    configs = seeds_of(replace(short_config, model=MODELS[kind], train=settings))
    together = train_seeds(configs, folders_in(tmp_path / "together", configs), device="cpu")
    for config, found in zip(configs, together, strict=True):
        wanted = train(config, tmp_path / "alone" / run_name(config), device="cpu")
        assert found.config == wanted.config == config
        assert set(files_of(found.path)) == set(files_of(wanted.path))
        assert [line.keys() for line in found.metrics] == [line.keys() for line in wanted.metrics]
        for ours, theirs in zip(found.metrics, wanted.metrics, strict=True):
            # Twelve steps of AdamW in float32. A gradient of rounding size is normalised to one of size
            # 1 by AdamW, so a weight may differ by 12 learning rates; losses by much less.
            assert list(ours.values())[2:] == pytest.approx(list(theirs.values())[2:], rel=1e-4)
            assert (ours["train_loss"] or 0.0) == pytest.approx(
                theirs["train_loss"] or 0.0, rel=1e-4
            )
        weights = wanted.model.state_dict()
        for name, weight in found.model.state_dict().items():
            difference = (weight - weights[name]).norm() / weights[name].norm()
            assert difference < 1e-3, name
        state = RunFolder(found.path).load(12).optimizer
        assert {n: t.shape for n, t in state.items()} == {
            n: t.shape for n, t in RunFolder(wanted.path).load(12).optimizer.items()
        }
    losses = {run.metrics[-1]["test_loss"] for run in together}
    assert len(losses) == 3, "seeds differ"


def test_data_and_weights_are_those_of_each_seed(short_config: RunConfig) -> None:
    configs = seeds_of(replace(short_config, model=MODELS["linear"]))
    together = SeedsTrainer(configs, torch.device("cpu"))
    alone = [Trainer(config, torch.device("cpu")) for config in configs]
    for step in range(3):
        wanted = torch.stack([trainer.step(step) for trainer in alone])
        # Means of 64 squared errors in float32, and weights that differ by roundings.
        torch.testing.assert_close(together.step(step), wanted, rtol=1e-5, atol=0)
    assert together.test_losses() == pytest.approx(
        [trainer.test_loss() for trainer in alone], rel=1e-5
    )


@pytest.fixture(scope="module")
def uninterrupted(short_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three seeds that were trained side by side in one session."""
    configs = seeds_of(replace(short_config, model=MODELS["hybrid"]))
    folders = folders_in(tmp_path_factory.mktemp("uninterrupted"), configs)
    train_seeds(configs, folders, device="cpu")
    return folders


@pytest.mark.parametrize(
    ("owner", "method", "count"),
    [
        *((SeedsTrainer, "step", count) for count in (1, 4, 5, 11)),
        # Between the folders: four evaluations of three seeds.
        *((RunFolder, "log", count) for count in (1, 4, 11)),
        *((RunFolder, "save", count) for count in (1, 2, 5, 9, 10)),
        (RunFolder, "finish", 1),
    ],
)
def test_stopped_seeds_continue_bit_for_bit(
    uninterrupted: list[Path], tmp_path: Path, owner: type, method: str, count: int
) -> None:
    configs = [RunFolder(path).config for path in uninterrupted]
    halves = folders_in(tmp_path, configs)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(owner, method, after=count, patch=patch)
        with pytest.raises(Interrupted):
            train_seeds(configs, halves, device="cpu")
    runs = train_seeds(configs, halves, resume=True, device="cpu")
    assert all(RunFolder(run.path).is_done for run in runs)
    for path, other in zip(uninterrupted, halves, strict=True):
        ours, theirs = files_of(path), files_of(other)
        assert ours["metrics.jsonl"] == theirs["metrics.jsonl"]
        assert set(ours) == set(theirs)
        found, wanted = (RunFolder(folder).load() for folder in (path, other))
        for tensors in ("model", "optimizer"):
            states = getattr(found, tensors), getattr(wanted, tensors)
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_seed_goes_on_alone_and_seeds_alone_go_on_together(
    short_config: RunConfig, tmp_path: Path
) -> None:
    configs = seeds_of(replace(short_config, model=MODELS["linear"]), 2)
    folders = folders_in(tmp_path / "together", configs)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(SeedsTrainer, "step", after=6, patch=patch)
        with pytest.raises(Interrupted):
            train_seeds(configs, folders, device="cpu")
    run = train(configs[0], folders[0], resume=True, device="cpu")
    assert [line["step"] for line in run.metrics] == [0, 4, 8, 12]
    runs = train_seeds(configs, folders, resume=True, device="cpu")
    wanted = [train(c, tmp_path / f"alone-{c.seed}", device="cpu") for c in configs]
    for found, alone in zip(runs, wanted, strict=True):
        # As above: twelve steps in float32.
        losses = [[line["test_loss"] for line in r.metrics] for r in (found, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_runs_at_different_steps_are_trained_in_groups(
    short_config: RunConfig, tmp_path: Path
) -> None:
    configs = seeds_of(replace(short_config, model=MODELS["linear"]))
    folders = folders_in(tmp_path, configs)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(Trainer, "step", after=9, patch=patch)
        with pytest.raises(Interrupted):
            train(configs[1], folders[1], device="cpu")  # comes to step 8
    seen: list[tuple[int, ...]] = []

    def record(step: Callable, seeds_of_trainer: Callable) -> Callable:
        def recording(self: Trainer | SeedsTrainer, number: int) -> torch.Tensor:
            seen.append((number, *seeds_of_trainer(self)))
            return step(self, number)

        return recording

    with pytest.MonkeyPatch.context() as patch:
        single = record(Trainer.step, lambda trainer: [trainer.config.seed])
        several = record(SeedsTrainer.step, lambda t: [config.seed for config in t.configs])
        patch.setattr(Trainer, "step", single)
        patch.setattr(SeedsTrainer, "step", several)
        runs = train_seeds(configs, folders, resume=True, device="cpu")
    assert seen == [(n, 0, 2) for n in range(12)] + [(n, 1) for n in range(8, 12)]
    assert all([line["step"] for line in run.metrics] == [0, 4, 8, 12] for run in runs)


def test_finished_seeds_are_not_trained_again(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = seeds_of(short_config)
    folders = folders_in(tmp_path, configs)
    first = train_seeds(configs, folders, device="cpu")
    for trainer in (Trainer, SeedsTrainer):
        monkeypatch.setattr(trainer, "step", lambda *_: pytest.fail("trained again"))
    second = train_seeds(configs, folders, resume=True, device="cpu")
    assert [run.metrics for run in first] == [run.metrics for run in second]


def test_seconds_are_the_share_of_each_run(short_config: RunConfig, tmp_path: Path) -> None:
    configs = seeds_of(short_config)
    runs = train_seeds(configs, folders_in(tmp_path, configs), device="cpu")
    assert len({run.seconds for run in runs}) == 1
    assert step_cost(short_config, "cpu", seeds=[0, 1, 2]).parameters == 6400


def test_a_seed_that_diverges_is_named(short_config: RunConfig, tmp_path: Path) -> None:
    wild = replace(short_config.model, initial_std=1e19, activation_clip=None)
    configs = seeds_of(replace(short_config, model=wild), 2)
    with pytest.raises(DivergedError, match=r"step 0: seed 0: .* lower train\.learning_rate"):
        train_seeds(configs, folders_in(tmp_path, configs), device="cpu")
    mesa = replace(
        short_config,
        model=replace(short_config.model, mixers=("mesa",)),
        train=replace(short_config.train, learning_rate=3.0),
    )
    configs = seeds_of(mesa, 2)
    with pytest.raises(DivergedError, match=r"ridge has the value .* in one of the seeds 0, 1;"):
        train_seeds(configs, folders_in(tmp_path / "mesa", configs), device="cpu")


def test_what_cannot_be_trained_side_by_side_is_refused(
    short_config: RunConfig, short_ar_config: RunConfig, tmp_path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    longer = replace(short_config, seed=1, train=replace(short_config.train, steps=13))
    wrong: list[tuple[list[RunConfig], list[Path], str]] = [
        ([], [], "0 folders: must be one for each"),
        ([short_config], [a, b], "2 folders: must be one for each"),
        ([short_config, longer], [a, b], "seed alone .train.steps: 13, not 12"),
        ([short_config, short_config], [a, b], r"seeds=\[0, 0\]: must all be different"),
        (seeds_of(short_config, 2), [a, a], "outs=.* must all be different"),
        (seeds_of(short_ar_config, 2), [a, b], "model.kind='merged_attention': must be 'sequence'"),
    ]
    for configs, outs, message in wrong:
        with pytest.raises(ConfigError, match=message):
            train_seeds(configs, outs, device="cpu")
    assert not a.exists()
    assert not b.exists()


def test_groups_follow_the_device_and_the_model(
    short_config: RunConfig, short_ar_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = seeds_of(short_config)
    assert seed_batches(configs, "cpu") == [[config] for config in configs]
    monkeypatch.setattr("mesaopt.training.seeds.resolve_device", torch.device)
    assert seed_batches(configs, "cuda") == [configs]
    others = seeds_of(short_ar_config)
    assert seed_batches(others, "cuda") == [[config] for config in others]


def test_without_the_optimiser_a_run_cannot_go_on(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    for path in tmp_path.rglob("optimizer.safetensors"):
        path.unlink()
    (tmp_path / "DONE").unlink()
    with pytest.raises(RunError, match="optimizer.safetensors: there is no such file"):
        train(short_config, tmp_path, resume=True, device="cpu")
    assert RunFolder(tmp_path).steps == [0, 4, 8, 12], "nothing is lost"


def test_no_seed_is_begun_where_another_cannot(short_config: RunConfig, tmp_path: Path) -> None:
    configs = seeds_of(short_config, 2)
    free, taken = tmp_path / "free", tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("not a run")
    with pytest.raises(RunError, match="taken.*holds other files"):
        train_seeds(configs, [free, taken], device="cpu")
    assert not free.exists()


def test_a_run_of_several_is_charged_its_share_of_the_time(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=6.0)
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("mesaopt.training.seeds.time", fake)
    configs = seeds_of(short_config)
    runs = train_seeds(configs, folders_in(tmp_path, configs), device="cpu")
    # Four evaluations read the clock after it was started: 24 seconds for three runs.
    assert [run.seconds for run in runs] == [8.0, 8.0, 8.0]
