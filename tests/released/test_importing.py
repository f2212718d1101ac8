"""Run folders from a clone: its models to the digit, whole folders or none, and nothing overwritten."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Interrupted, exit_status, interrupt
from released_files import pickled, predictions, write_clone

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.errors import RunError
from mesaopt.released import RELEASED, Network, config_of, import_released, importing
from mesaopt.training import RunFolder, load_run, train

CHOSEN = (
    "lsa-1-seed68",
    "mesa-1-seed68",
    "tf-3-seed11111",
    "token-probes/hybrid-mesa-seed42",
    "full-mesa-published-seed42",
    "hybrid-mesa-nonlinear-seed1",
    "fixed-lsa-2-seed68",
)


def short(network: Network) -> RunConfig:
    config = config_of(network)
    train = replace(config.train, evaluation_sequences=4)
    return replace(config, task=replace(config.task, length=6), train=train)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[Network, RunConfig]:
    """Let only a few networks be released, with tests that take no time."""
    chosen = {network: short(network) for network in RELEASED if network.run in CHOSEN}
    monkeypatch.setattr(importing, "RELEASED", tuple(chosen))
    monkeypatch.setattr(importing, "config_of", short)
    return chosen


def all_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_table_names_27_networks_in_25_files_by_recipes() -> None:
    assert len({network.run for network in RELEASED}) == len(RELEASED) == 27
    assert len({network.file for network in RELEASED}) == 25
    for network in RELEASED:
        config, recipe = config_of(network), recipes.get(network.recipe, seed=network.seed)
        assert config.train.steps == (network.steps or recipe.train.steps)
        assert replace(config, task=recipe.task, model=recipe.model, train=recipe.train) == recipe
        changed = config.model != recipe.model
        assert changed == (network.recipe == "hybrid-mesa-nonlinear")
    assert config_of(RELEASED[0]).seed == 68


def test_an_imported_model_computes_what_the_authors_model_computes(
    tmp_path: Path, networks: dict[Network, RunConfig]
) -> None:
    drawn = write_clone(tmp_path / "clone", networks)
    runs = import_released(tmp_path / "clone", tmp_path / "out")
    assert [str(run.path.relative_to(tmp_path / "out")) for run in runs] == list(CHOSEN)
    for imported, (network, tree) in zip(runs, drawn.items(), strict=True):
        run = load_run(imported.path, device="cpu")
        tokens = np.random.default_rng(1).uniform(-1, 1, (6, run.config.sequence_model.token_dim))
        found = run.model.double()(torch.from_numpy(tokens)[None])[0].detach().numpy()
        wanted = predictions(run.config.sequence_model, tree, tokens)
        # Both in float64 from the same float32 weights; systems with condition numbers below 1e4.
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9, err_msg=network.run)


def test_a_run_folder_says_where_it_comes_from(
    tmp_path: Path, networks: dict[Network, RunConfig]
) -> None:
    write_clone(tmp_path / "clone", networks)
    named = []
    runs = import_released(
        tmp_path / "clone", tmp_path / "out", progress=lambda run: named.append(run.stage)
    )
    assert named == list(CHOSEN)
    folder, (network, *_) = RunFolder(runs[0].path), networks
    assert folder.config == networks[network]
    assert folder.is_done
    assert folder.is_imported
    assert folder.steps == [5000]
    (line,) = folder.metrics
    assert line["step"] == 5000
    assert line["train_loss"] is None
    assert line["test_loss"] == runs[0].test_loss > 0
    imported = folder.meta["imported"]
    assert imported["from"] == "the authors' release"
    assert imported["commit"] == "c8c1e37"
    assert imported["file"] == "experiment_results/linear_seq_fully/model_lin_1l_constr.pkl"
    assert len(imported["sha256"]) == 64
    assert imported["steps"] == 5000
    assert train(folder.config, folder.path, resume=True, device="cpu").seconds == 0.0


def test_commands_take_an_imported_run_like_any_other(
    tmp_path: Path, networks: dict[Network, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write_clone(tmp_path / "clone", networks)
    out = tmp_path / "out"
    assert exit_status("import-released", str(tmp_path / "clone"), "--out", str(out)) == 0
    shown = capsys.readouterr()
    assert "0.8942" in shown.out, "the loss that the authors stored"
    assert "interpol_results_multi.pkl" in shown.out
    assert "lsa-1-seed68" in shown.err
    again = ("import-released", str(tmp_path / "clone"), "--out", str(out), "--json")
    assert exit_status(*again) == 2
    assert exit_status(*again, "--overwrite") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["steps"] for row in rows][:2] == [5000, 5000]
    assert exit_status("evaluate", str(out / CHOSEN[1]), "--sequences", "8", "--json") == 0
    losses = json.loads(capsys.readouterr().out)
    assert set(losses) == {"mesa-1", "one gradient step", "least squares"}


def test_a_clone_at_another_commit_is_told_how_to_get_the_files(tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    with pytest.raises(RunError) as error:
        import_released(tmp_path / "clone", tmp_path / "out")
    message = str(error.value)
    assert "25 of 25 files in experiment_results are missing (linear_seq_fully/model" in message
    assert f"git -C {tmp_path / 'clone'} checkout c8c1e37" in message
    assert not (tmp_path / "out").exists()


def test_single_missing_files_are_named(tmp_path: Path, networks: dict[Network, RunConfig]) -> None:
    write_clone(tmp_path / "clone", networks)
    (tmp_path / "clone/experiment_results/linear_seq_fully/model_mesa_constr.pkl").unlink()
    with pytest.raises(RunError, match=r"1 of 6 files .* \(linear_seq_fully/model_mesa_constr.pkl"):
        import_released(tmp_path / "clone", tmp_path / "out")


def broken(change: Callable[[dict], object]) -> Callable[[Path, dict], None]:
    def break_it(path: Path, networks: dict[Network, RunConfig]) -> None:
        network = list(networks)[-1]
        tree = write_clone(path / "clone", networks)[network]
        change(tree["tf_block"]["blocklist_1"]["self_attn"])
        file = path / "clone" / "experiment_results" / network.file
        file.write_bytes(pickled({"params": tree}))

    return break_it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.pop("q_proj"), "blocklist_1/self_attn/q_proj/kernel is missing"),
        (lambda part: part.update(x=np.ones(2)), "blocklist_1/self_attn/x belongs to no weight of"),
        (
            lambda part: part["k_proj"].update(kernel=np.ones((40, 60))),
            r"k_proj/kernel makes blocks.1.mixer.key.weight of shape \[60, 40\]: must be \[80, 40\]",
        ),
        (
            lambda part: part["v_proj"]["kernel"].fill(np.nan),
            "v_proj/kernel holds a number that is not finite",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path,
    networks: dict[Network, RunConfig],
    change: Callable[[dict], object],
    message: str,
) -> None:
    broken(change)(tmp_path, networks)
    with pytest.raises(RunError, match=message):
        import_released(tmp_path / "clone", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_trained_is_never_overwritten(
    tmp_path: Path, networks: dict[Network, RunConfig], overwrite: bool, short_config: RunConfig
) -> None:
    write_clone(tmp_path / "clone", networks)
    trained = replace(short_config, train=replace(short_config.train, steps=2))
    train(trained, tmp_path / "out" / CHOSEN[3], device="cpu")
    before = all_files(tmp_path / "out")
    with pytest.raises(RunError, match="exists already|something else than an imported run"):
        import_released(tmp_path / "clone", tmp_path / "out", overwrite=overwrite)
    assert all_files(tmp_path / "out") == before, "not one run is written"


def test_an_import_is_replaced_when_asked(
    tmp_path: Path, networks: dict[Network, RunConfig]
) -> None:
    write_clone(tmp_path / "clone", networks)
    import_released(tmp_path / "clone", tmp_path / "out")
    before = all_files(tmp_path / "out")
    with pytest.raises(RunError, match="lsa-1-seed68': exists already; --overwrite replaces"):
        import_released(tmp_path / "clone", tmp_path / "out")
    assert all_files(tmp_path / "out") == before
    write_clone(tmp_path / "clone", networks, seed=1)
    import_released(tmp_path / "clone", tmp_path / "out", overwrite=True)
    after = all_files(tmp_path / "out")
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert {name for name in after if name.endswith(".safetensors")} <= changed


@pytest.mark.parametrize("method", ["log", "save", "finish"])
def test_an_interrupted_import_leaves_whole_folders_and_can_be_repeated(
    tmp_path: Path, networks: dict[Network, RunConfig], method: str
) -> None:
    write_clone(tmp_path / "clone", networks)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(RunFolder, method, after=2, patch=patch)
        with pytest.raises(Interrupted):
            import_released(tmp_path / "clone", tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert found == set(CHOSEN[:2])
    assert all(load_run(tmp_path / "out" / name).metrics for name in found)
    import_released(tmp_path / "clone", tmp_path / "out", overwrite=True)
    names = {str(path.parent.relative_to(tmp_path / "out")) for path in _configs(tmp_path / "out")}
    assert names == set(CHOSEN)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name[0] == "."]


def _configs(folder: Path) -> list[Path]:
    return list(folder.rglob("config.json"))
