"""Adding trainings to the zoo."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mesaopt import recipes, zoo
from mesaopt.errors import RunError
from mesaopt.recipes.language import MIXERS
from mesaopt.training import Run, train
from mesaopt.training.tensors import read_tensors
from mesaopt.zoo.build import PUBLISHED, add, kept_steps, main, page


def test_a_model_that_is_added_again_is_the_same(tmp_path: Path) -> None:
    target = add(zoo.FOLDER / "lsa-1", tmp_path)
    copied = {
        path.relative_to(target): path.read_bytes()
        for path in target.rglob("*.*")
        if path.is_file()
    }
    for path, content in copied.items():
        assert (zoo.FOLDER / "lsa-1" / path).read_bytes() == content
    index = json.loads((tmp_path / zoo.INDEX).read_text())
    listed = json.loads((zoo.FOLDER / zoo.INDEX).read_text())["lsa-1"]
    assert index["lsa-1"]["files"] == listed["files"]
    assert index["lsa-1"]["loss"] == pytest.approx(
        listed["loss"], rel=1e-5
    )  # rounding of a machine
    assert index["lsa-1"].keys() == listed.keys()
    for fact in ("steps", "sequences", "checksum"):
        assert index["lsa-1"][fact] == listed[fact]


def test_weights_before_the_last_are_rounded_once(tmp_path: Path) -> None:
    source = tmp_path / "run"
    shutil.copytree(zoo.FOLDER / "lsa-1", source)
    paths = [f"checkpoints/step_{step:06d}/model.safetensors" for step in (300, 400, 3500)]
    for path in paths[:1]:
        weights, _ = read_tensors(source / path)
        fine = {name: weight.float() * (1 + 2**-13) for name, weight in weights.items()}
        save_file(fine, source / path)
    target = add(source, tmp_path)
    for path in paths:  # the first is rounded, the second was already, the last is whole
        found, wanted = load_file(target / path), load_file(zoo.FOLDER / "lsa-1" / path)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lsa-1", "must be trained as the recipe 'lsa-1' says"),
        ("delta-1", "recipe='delta-1': must be one of PUBLISHED or of zoo.FAMILIES"),
    ],
)
def test_another_training_is_refused(tmp_path: Path, name: str, message: str) -> None:
    config = recipes.get(name)
    short = replace(config.train, steps=2, batch_size=4, evaluation_sequences=4)
    run = train(replace(config, train=short), tmp_path / "run", device="cpu")
    with pytest.raises(RunError, match=message):
        add(run.path, tmp_path / "zoo")
    (run.path / "DONE").unlink()
    with pytest.raises(RunError, match="has not ended"):
        add(run.path, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_checkpoints_are_kept_where_a_figure_reads_them() -> None:
    run = zoo.load("lsa-1")
    steps = list(range(0, 3501, 100))
    kept = kept_steps(run, steps)
    assert {0, 200, 300, 400, 600, 1000, 2000, 2500, 3400, 3500} <= set(kept) < set(steps)
    other = replace(run, config=recipes.get("fixed-lsa-1"))
    assert kept_steps(other, steps) == [3500]
    read = replace(run, config=recipes.get("lsa-2-notebook"))
    assert kept_steps(read, steps) == [300, 400, 600, 1000, 2400, 3500], "no figure follows it"


def test_the_page_of_the_docs_is_up_to_date() -> None:
    docs = zoo.FOLDER.parents[2] / "docs" / "zoo.md"
    assert docs.read_text() == page(), "python -m mesaopt.zoo.build writes it anew"


def test_everything_in_the_zoo_belongs_there() -> None:
    assert set(zoo.names()) <= {*PUBLISHED, *zoo.FAMILIES}


def test_byte_models_are_of_all_mixers_that_are_compared() -> None:
    assert list(zoo.FAMILIES) == [f"lm-{short}" for short in MIXERS]
    assert {*zoo.FAMILIES.values()} == {"softmax", "linear", "delta", "mesa"}


def section(page: str) -> str:
    """The section on byte models."""
    return page.partition("## Byte models")[2].partition("\n## ")[0]


def test_the_page_names_the_command_for_every_byte_model_that_is_not_there(byte_zoo: Path) -> None:
    there, waiting = section(page()), set(zoo.FAMILIES) - {"lm-mesanet"}
    assert set(re.findall("^mesaopt train (.*?) ", there, re.MULTILINE)) == waiting
    assert re.search("train lm-softmax +# softmax: none yet$", there, re.MULTILINE)
    assert re.search("train lm-mesa +# mesa$", there, re.MULTILINE)
    shutil.rmtree(byte_zoo / "lm-mesanet")
    index = json.loads((byte_zoo / zoo.INDEX).read_text())
    (byte_zoo / zoo.INDEX).write_text(json.dumps({"fixed-lsa-1": index["fixed-lsa-1"]}))
    zoo.forget()
    nothing = section(page())
    assert "None is in the package yet" in nothing
    assert "|" not in nothing
    assert nothing.count("none yet") == len(zoo.FAMILIES)
    assert re.search("train lm-mesanet +# mesa: none yet$", nothing, re.MULTILINE)


@pytest.mark.usefixtures("byte_zoo")
def test_the_page_has_a_table_of_byte_models_alone() -> None:
    entry, there = zoo.get("lm-mesanet"), section(page())
    size = sum(weight.numel() for weight in zoo.load("lm-mesanet").model.parameters())
    header, _, row = [line for line in there.splitlines() if line.startswith("|")]
    assert header.count("|") == row.count("|")
    assert row.startswith(f"| mesa | `lm-mesanet` | {size:,} | 2 | {entry.loss_value:.4f} ± ")
    assert f" nats a byte | {math.exp(entry.loss_value):.1f}" in row
    assert "512 stretches of 256 bytes" in there
    assert "mesaopt generate zoo:lm-mesanet" in there
    assert page().count("| `lm-mesanet` |") == 1


def test_the_first_byte_model_needs_no_change_of_code(
    byte_run: Run, byte_zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(byte_zoo / "lm-mesanet")
    (byte_zoo / zoo.INDEX).unlink()
    (byte_zoo.parents[2] / "docs").mkdir()
    main([str(byte_run.path)])
    assert capsys.readouterr().out.strip() == str(byte_zoo / "lm-mesanet")
    assert zoo.names() == ["lm-mesanet"]
    assert zoo.get("lm-mesanet").num_sequences == 512
    assert (byte_zoo.parents[2] / "docs" / "zoo.md").read_text() == page()


@pytest.mark.usefixtures("byte_zoo")
def test_weights_of_a_byte_model_are_rounded_to_half_precision(byte_run: Run) -> None:
    trained, kept = byte_run.model.state_dict(), zoo.load("lm-mesanet").model.state_dict()
    assert trained.keys() == kept.keys()
    for name, weight in kept.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, trained[name].half().float())
    assert any(not torch.equal(weight, trained[name]) for name, weight in kept.items())
    (stored,) = zoo.get("lm-mesanet").path.glob("checkpoints/*/model.safetensors")
    assert {weight.dtype for weight in load_file(stored).values()} == {torch.float16}


@pytest.mark.usefixtures("byte_zoo")
def test_a_byte_model_is_not_measured_on_the_text_of_another_python(
    byte_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.99.1")
    with pytest.raises(RunError, match=r"must be added with Python 3\.[0-9.]+, not 3\.99\.1"):
        add(byte_run.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
