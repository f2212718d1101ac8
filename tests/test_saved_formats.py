"""Folders of an earlier version still open; `data/README.md` says how they were made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import exit_status

from mesaopt.papers.claims import read_claims
from mesaopt.papers.reproduce import reproduce
from mesaopt.training import RunFolder, load_run, train

DATA = Path(__file__).parent / "data"


def test_an_old_run_loads() -> None:
    run = load_run(DATA / "run", device="cpu")
    assert run.config.recipe == "lsa-1"
    assert run.config.train.steps == 4
    assert run.sequence_model.mixers[0].head_dim == 5
    assert [line["step"] for line in run.metrics] == [0, 2, 4]
    assert run.metrics[0]["train_loss"] is None
    assert run.seconds > 0
    assert RunFolder(DATA / "run").is_done
    before = load_run(DATA / "run", step=0, device="cpu").model.state_dict()
    assert not torch.equal(
        run.model.state_dict()["blocks.0.mixer.key.weight"], before["blocks.0.mixer.key.weight"]
    )


def test_an_old_run_that_has_ended_is_not_trained_again(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "run", tmp_path / "run")
    run = train(RunFolder(folder).config, folder, resume=True, device="cpu")
    assert run.metrics == load_run(DATA / "run").metrics


def test_an_old_run_goes_on(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "stopped-run", tmp_path / "run")
    run = train(RunFolder(folder).config, folder, resume=True, device="cpu")
    wanted = load_run(DATA / "run", device="cpu")
    assert run.metrics[0] == wanted.metrics[0]
    for ours, theirs in zip(run.metrics[1:], wanted.metrics[1:], strict=True):
        # Float32 on another processor, or by another version of torch.
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, weight in wanted.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], weight, rtol=1e-3, atol=1e-5)


def test_an_old_run_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("evaluate", str(DATA / "run"), "--sequences", "1", "--json") == 0
    losses = json.loads(capsys.readouterr().out)
    assert list(losses) == ["lsa-1", "one gradient step", "least squares"]
    assert len(losses["lsa-1"]["by_position"]) == 10


def test_claims_of_old_results_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    saved = json.loads((DATA / "results" / "claims.json").read_text())
    assert [claim.to_json() for claim in read_claims(DATA / "results")] == saved
    assert exit_status("claims", str(DATA / "results"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == saved


def test_the_report_of_old_results_is_written_anew(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "results", tmp_path / "results")
    assert exit_status("report", str(folder)) == 0
    page = (folder / "index.html").read_text()
    figure = json.loads((folder / "figures" / "emergence2024-fig4.json").read_text())
    assert "<svg" in page
    assert figure["title"] in page


def test_old_results_are_continued(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "results", tmp_path / "results")
    settings = {"scale": "smoke", "only": ["fig4"], "resume": True, "device": "cpu"}
    assert reproduce("emergence2024", out=folder, **settings) == read_claims(DATA / "results")
    (folder / "DONE").unlink()
    before = (folder / "claims.json").read_bytes()
    # What is there already is not computed again, which would take half a minute.
    assert reproduce("emergence2024", out=folder, **settings) == read_claims(DATA / "results")
    assert (folder / "DONE").exists()
    assert (folder / "claims.json").read_bytes() == before
