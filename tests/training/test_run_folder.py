import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mesaopt import files
from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, MesaoptError, RunError
from mesaopt.training import RunFolder, load_run, step_cost, train, train_seeds
from mesaopt.training.tensors import narrowed, read_tensors


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def refused(path: Path, config: RunConfig, *, resume: bool) -> str:
    """The one line a refused run says; the folder must be as it was."""
    before = contents(path)
    with pytest.raises(MesaoptError) as error:
        train(config, path, resume=resume, device="cpu")
    assert contents(path) == before, "something was touched"
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_run_is_not_overwritten(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    message = refused(tmp_path, short_config, resume=False)
    assert "holds another run or other results; --resume (in Python resume=True) goes" in message


def test_other_settings_are_not_resumed(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    other = replace(short_config, train=replace(short_config.train, learning_rate=1e-3))
    message = refused(tmp_path, other, resume=True)
    assert "train.learning_rate: 0.001, not 0.0002" in message


def test_other_files_are_not_mixed_with_a_run(short_config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    for resume in (False, True):
        assert "holds other files" in refused(tmp_path, short_config, resume=resume)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file; give a folder"):
        train(short_config, tmp_path / "file", device="cpu")


@pytest.mark.parametrize("name", ["model", "optimizer"])
@pytest.mark.parametrize("kept", [0, 4, 100])
def test_a_truncated_checkpoint_is_named(
    short_config: RunConfig, tmp_path: Path, name: str, kept: int
) -> None:
    train(short_config, tmp_path, device="cpu")
    (tmp_path / "DONE").unlink()
    path = tmp_path / "checkpoints" / "step_000012" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(tmp_path, short_config, resume=True)
    assert f"{name}.safetensors: is damaged" in message
    assert "delete" in message
    # The advice holds: without it, the run goes on from the checkpoint before.
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    run = train(short_config, tmp_path, resume=True, device="cpu")
    assert run.metrics[-1]["step"] == 12


def test_a_misspelt_key_on_disk_is_refused(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data["train"]["batchsize"] = data["train"].pop("batch_size")
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        load_run(tmp_path)


def test_what_a_kill_leaves_behind_does_no_harm(short_config: RunConfig, tmp_path: Path) -> None:
    whole = train(short_config, tmp_path / "whole", device="cpu")
    path = tmp_path / "killed"
    path.mkdir()
    (path / ".part-config.json").write_text("{")  # killed while writing the very first file
    train(short_config, path, device="cpu")
    (path / "DONE").unlink()
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 16, "te')
    (path / "checkpoints" / ".part-step_000016").mkdir()
    (path / "checkpoints" / ".part-step_000016" / "model.safetensors").write_text("half")
    assert train(short_config, path, resume=True, device="cpu").metrics == whole.metrics


def test_a_step_that_is_not_there_lists_those_that_are(
    short_config: RunConfig, tmp_path: Path
) -> None:
    train(short_config, tmp_path, device="cpu")
    with pytest.raises(RunError, match="steps there are: 0, 4, 8, 12"):
        load_run(tmp_path, step=5)


def test_weights_that_do_not_fit_are_refused(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data["model"]["num_heads"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match="the weights do not fit"):
        load_run(tmp_path)


def test_meta_says_where_it_ran(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    meta = RunFolder(tmp_path).meta
    assert meta["packages"]["torch"]
    assert meta["num_threads"] >= 1
    assert meta["command"]
    assert json.loads((tmp_path / "DONE").read_text())["steps"] == 12


def test_folders_from_before_blocks_had_names_load_and_resume(
    short_config: RunConfig, tmp_path: Path
) -> None:
    finished = train(short_config, tmp_path, device="cpu")
    folder = tmp_path / "checkpoints" / "step_000012"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        old = {k.replace("blocks.0.mixer.", "mixers.0."): v for k, v in tensors.items()}
        assert old.keys() != tensors.keys()
        save_file(old, path, metadata={"step": "12", "seconds": "1.0"})
    for name, weight in load_run(tmp_path).model.state_dict().items():
        assert weight.equal(finished.model.state_dict()[name])
    (tmp_path / "DONE").unlink()
    train(short_config, tmp_path, resume=True, device="cpu")
    assert (tmp_path / "DONE").exists()


STRAY = ["step_000004-hf", "step_000012 (conflicted copy)", "step_", "step_x", "._step_000012"]
STRAY += [".DS_Store", "step_000016.zip", "step_٠٠٠٠١٦", "step_16", "best", "Thumbs.db"]


@pytest.fixture(scope="module")
def finished(short_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train(short_config, path, device="cpu")
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may write to."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/step_000012"])
def test_stray_names_are_ignored(
    short_config: RunConfig, run: Path, where: str, is_folder: bool
) -> None:
    wanted = load_run(run)
    for name in STRAY:
        stray = run / where / name
        stray.mkdir() if is_folder else stray.write_text("what a user or a sync tool left")
    assert load_run(run).metrics == wanted.metrics
    assert RunFolder(run).steps == [0, 4, 8, 12]
    (run / "DONE").unlink()
    assert train(short_config, run, resume=True, device="cpu").metrics == wanted.metrics


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "meta.json",
        "metrics.jsonl",
        "DONE",
        "model.safetensors",
        "optimizer.safetensors",
    ],
)
def test_a_file_that_cannot_be_opened_is_not_called_damaged(
    short_config: RunConfig, run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *arguments: object, original: Callable = os.open) -> int:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, *arguments)

    if name != "DONE":
        (run / "DONE").unlink()
    monkeypatch.setattr(os, "open", refuse)
    message = refused(run, short_config, resume=True)
    assert f"{name}: cannot be read: Permission denied" in message
    assert "damaged" not in message
    assert "delete" not in message


ADAMW = "blocks.0.mixer.key.weight/exp_avg"
WRONG_OPTIMIZERS = {
    "shape": {ADAMW: torch.zeros(3)},
    "no shape": {ADAMW: torch.zeros(())},
    "transposed": {ADAMW: torch.zeros(40, 80)},
    "dtype": {ADAMW: torch.zeros(80, 40, dtype=torch.float64)},
    "integers": {ADAMW: torch.zeros(80, 40, dtype=torch.int32)},
    "nan": {ADAMW: torch.full((80, 40), math.nan)},
    "negative squares": {ADAMW + "_sq": torch.full((80, 40), -1.0)},
    "missing": {ADAMW: None},
    "unknown": {"nothing/exp_avg": torch.zeros(3)},
    "no slash": {"nothing": torch.zeros(3)},
    "another step": {"blocks.0.mixer.key.weight/step": torch.tensor(11.0)},
    "step shape": {"blocks.0.mixer.key.weight/step": torch.tensor([12.0])},
    "step dtype": {"blocks.0.mixer.key.weight/step": torch.tensor(12)},
}
KEY = "blocks.0.mixer.key.weight"
WRONG_WEIGHTS = {
    "shape": {KEY: torch.zeros(3)},
    "dtype": {KEY: torch.zeros(80, 40, dtype=torch.float64)},
    "half": {KEY: torch.zeros(80, 40, dtype=torch.float16)},
    "nan": {KEY: torch.full((80, 40), math.nan)},
    "infinite": {KEY: torch.full((80, 40), math.inf)},
    "missing": {KEY: None},
    "unknown": {"more": torch.zeros(3)},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("optimizer", kind) for kind in WRONG_OPTIMIZERS),
        *(("model", kind) for kind in WRONG_WEIGHTS),
        ("optimizer", "facts"),
        ("model", "facts"),
        ("model", "seconds"),
    ],
)
def test_tensors_are_checked_before_they_are_used(
    short_config: RunConfig, run: Path, name: str, kind: str
) -> None:
    (run / "DONE").unlink()
    path = run / "checkpoints" / "step_000012" / f"{name}.safetensors"
    tensors, facts = load_file(path), {"step": "12", "seconds": "1.0"}
    changes = {"optimizer": WRONG_OPTIMIZERS, "model": WRONG_WEIGHTS}[name].get(kind, {})
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    facts |= {"facts": {"step": "8"}, "seconds": {"seconds": "nan"}}.get(kind, {})
    save_file(tensors, path, metadata=facts)
    message = refused(run, short_config, resume=True)
    assert f"{name}.safetensors: " in message
    assert "is damaged" in message or "the weights do not fit config.json" in message
    with pytest.raises(RunError):
        load_run(run)


def test_weights_that_say_they_were_rounded_are_read_in_their_own_type(run: Path) -> None:
    path = run / "checkpoints" / "step_000012" / "model.safetensors"
    whole, facts = read_tensors(path)
    path.write_bytes(narrowed(whole, facts))
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    found = load_run(run).model.state_dict()
    assert found.keys() == whole.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        # Half of the last of 11 bits, and below the least normal number half of 2^-24.
        assert ((tensor - whole[name]).abs() <= 2.0**-11 * whole[name].abs() + 2.0**-25).all()
    path.write_bytes(narrowed({**whole, KEY: 1e9 * whole[KEY]}, facts))
    with pytest.raises(RunError, match=f"{KEY} holds a number that is not finite"):
        load_run(run)


def test_a_checkpoint_beyond_the_end_is_refused(short_config: RunConfig, run: Path) -> None:
    (run / "DONE").unlink()
    (run / "checkpoints" / "step_000012").rename(run / "checkpoints" / "step_000016")
    message = refused(run, short_config, resume=True)
    assert "step_000016: is of a longer run: must be at most 12, train.steps" in message


def test_a_finished_run_is_loaded_at_its_end_or_not_at_all(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step_000012")
    with pytest.raises(RunError, match="step=12: there is no such checkpoint"):
        load_run(run)
    assert load_run(run, step=8).metrics[-1]["step"] == 12


LINE = '{"step": 0, "train_loss": null, "test_loss": 1.5, "learning_rate": 0.1}\n'
DAMAGED = {
    "meta.json": ["", "[]", "null", "{}", '{"num_threads": 0}', '{"num_threads": 1e9}', "[" * 9999],
    "metrics.jsonl": [
        "\n",
        "{}\n",
        "[]\n",
        "no json\n",
        LINE.replace("1.5", "NaN"),
        LINE.replace("1.5", "null"),
        LINE.replace("1.5", '"low"'),
        LINE.replace("0,", "0.5,"),
        LINE.replace("0,", "4,"),
        LINE + LINE,
        LINE,
    ],
    "DONE": ["", "[]", "3", '{"steps": 4, "seconds": 1.0}', '{"steps": 12, "seconds": "long"}'],
    "config.json": ["", "[]", "null", "{}", '{"recipe": 3}', "\xff", "1" * 9999],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_every_damaged_file_is_named_in_one_line(
    short_config: RunConfig, run: Path, name: str, text: str
) -> None:
    if name != "DONE":
        (run / "DONE").unlink()
    (run / name).write_bytes(text.encode("latin-1"))
    message = refused(run, short_config, resume=True)
    assert name in message
    if name != "meta.json" and not (name == "metrics.jsonl" and text == LINE):
        with pytest.raises(MesaoptError, match=name):
            load_run(run)


@pytest.mark.parametrize("text", [None, "", LINE])
def test_metrics_that_a_finished_run_has_lost_are_missed(run: Path, text: str | None) -> None:
    (run / "metrics.jsonl").unlink()
    if text is not None:
        (run / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl: is damaged: lines are missing"):
        load_run(run)


def test_links_are_not_written_through(short_config: RunConfig, run: Path, tmp_path: Path) -> None:
    (run / "DONE").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("important")
    (run / "checkpoints" / ".part-step_000012").symlink_to(elsewhere)
    shutil.rmtree(run / "checkpoints" / "step_000012")
    train(short_config, run, resume=True, device="cpu")
    assert contents(elsewhere) == {"kept.txt": b"important"}
    for path in (run / "metrics.jsonl", run / "meta.json"):
        target = elsewhere / path.name
        shutil.copy(path, target)
        path.unlink()
        path.symlink_to(target)
    before = contents(elsewhere)
    with pytest.raises(RunError, match="is a link"):
        RunFolder(run).log({"step": 16})
    assert contents(elsewhere) == before


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/step_000012", "checkpoints/step_000004"]
)
@pytest.mark.parametrize("target", ["there", "missing"])
def test_a_run_does_not_go_on_through_a_link(
    short_config: RunConfig, run: Path, tmp_path: Path, name: str, target: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / name, elsewhere)
    (run / name).symlink_to(elsewhere if target == "there" else tmp_path / "missing")
    if target == "there":
        assert load_run(run).metrics[-1]["step"] == 12, "an ended run is read"
        assert train(short_config, run, resume=True, device="cpu").metrics[-1]["step"] == 12
    (run / "DONE").unlink()
    before = contents(elsewhere)
    assert "leads out of the folder" in refused(run, short_config, resume=True)
    with pytest.raises(RunError, match="leads out of the folder"):
        train_seeds([short_config], [run], resume=True, device="cpu")
    assert contents(elsewhere) == before
    assert not (tmp_path / "missing").exists()


def test_the_folder_of_a_run_may_be_a_link(
    short_config: RunConfig, run: Path, tmp_path: Path
) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "DONE").unlink()
    shutil.rmtree(run / "checkpoints" / "step_000012")
    link = tmp_path / "link"
    link.symlink_to(run)
    train(short_config, link, resume=True, device="cpu")
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert RunFolder(run).is_done
    assert link.is_symlink()


def test_another_default_dtype_changes_nothing(
    short_config: RunConfig, finished: Path, tmp_path: Path
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        train(short_config, tmp_path, device="cpu")
        assert load_run(finished).model.readout is not None
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_home_is_meant_by_a_tilde(
    short_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = train(short_config, "~/runs/x", device="cpu")
    assert run.path == tmp_path / "runs" / "x"
    assert load_run("~/runs/x").metrics == run.metrics
    assert not (tmp_path / "~").exists()
    with pytest.raises(ConfigError, match="no such home folder"):
        train(short_config, "~nobody-of-this-name/x", device="cpu")


def test_the_global_generator_is_left_alone(
    short_config: RunConfig, short_ar_config: RunConfig, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    train(short_config, tmp_path / "a", device="cpu")
    train(short_ar_config, tmp_path / "b", device="cpu")
    seeds = [replace(short_config, seed=seed) for seed in (1, 2)]
    train_seeds(seeds, [tmp_path / "c", tmp_path / "d"], device="cpu")
    step_cost(short_config, "cpu")
    load_run(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_another_process_works_in_is_left_alone(
    short_config: RunConfig, run: Path
) -> None:
    (run / "DONE").unlink()
    other = replace(short_config, seed=1)
    with files.only_one_process(run):
        assert "another process is working in this folder" in refused(
            run, short_config, resume=True
        )
        with pytest.raises(RunError, match="another process is working in this folder"):
            train_seeds([short_config, other], [run, run.parent / "b"], resume=True, device="cpu")
    train(short_config, run, resume=True, device="cpu")


def test_a_run_goes_back_to_a_checkpoint_and_forgets_what_came_after(run: Path) -> None:
    (run / "DONE").unlink()
    folder = RunFolder(run)
    checkpoint = folder.rewind(8)
    assert checkpoint is not None
    assert checkpoint.step == 8
    assert folder.steps == [0, 4, 8]
    assert [line["step"] for line in folder.metrics] == [0, 4, 8]
    assert folder.rewind(-1) is None
    assert (folder.steps, folder.metrics) == ([], [])
