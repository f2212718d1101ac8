import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, MesaoptError, RunError
from mesaopt.training import RunFolder, load_run, train


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
    assert "holds another run or other results; --resume goes on" in refused(
        tmp_path, short_config, resume=False
    )


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
