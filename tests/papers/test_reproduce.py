import csv
import json
from pathlib import Path

import pytest

from mesaopt.errors import ConfigError, RunError
from mesaopt.papers.claims import read_claims
from mesaopt.papers.plan import Item
from mesaopt.papers.reproduce import ITEMS, costs, get_item, reproduce
from mesaopt.training import RunFolder, train

FIGURES = ["core-in-context-loss", "core-learning-curves", "core-weights", "core-coefficients"]


def test_every_figure_is_saved_in_three_formats_with_its_numbers(results: Path) -> None:
    index = json.loads((results / "figures" / "index.json").read_text())
    assert index["figures"] == FIGURES
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for name in FIGURES:
        for ending, start in starts.items():
            assert (results / "figures" / f"{name}.{ending}").read_bytes().startswith(start)
        with (results / "figures" / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) >= 8
    assert not list(results.rglob(".part-*"))


def test_the_numbers_behind_the_curves(results: Path) -> None:
    with (results / "figures" / "core-in-context-loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_name = {row["predictor"] for row in rows}
    assert len(by_name) == 7
    first = {row["predictor"]: float(row["loss"]) for row in rows if row["position"] == "1"}
    # Nobody knows anything at position 1, and untrained models predict zero.
    assert max(first.values()) == pytest.approx(min(first.values()), rel=1e-3)
    last = {row["predictor"]: float(row["loss"]) for row in rows if row["position"] == "50"}
    assert last["least squares, all pairs"] < 1e-3 < last["one gradient step"]


def test_claims_that_need_no_training_hold_and_the_others_fail(results: Path) -> None:
    verdicts = {claim.id: claim.passed for claim in read_claims(results)}
    untrained = {
        "core/lsa-1-beside-gd-1",
        "core/lsa-1-step-size",
        "core/lsa-2-beyond-gd-1",
    }
    assert {name for name, passed in verdicts.items() if not passed} == untrained
    assert len(verdicts) == 12


def test_an_interrupted_reproduction_goes_on(
    results: Path, tiny_core: Item, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    plan = tiny_core.plan("smoke")

    def stop(step: int, _: float) -> None:
        raise KeyboardInterrupt

    name, config = next(iter(plan.configs.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mesaopt.papers.reproduce.ProgressDisplay.update", lambda *_: stop(0, 0.0))
        with pytest.raises(KeyboardInterrupt):
            reproduce("core", scale="smoke", out=out, device="cpu")
    assert not (out / "DONE").exists()
    with pytest.raises(RunError, match="go on with --resume"):
        reproduce("core", scale="smoke", out=out, device="cpu")
    claims = reproduce("core", scale="smoke", out=out, device="cpu", resume=True)
    assert claims == read_claims(results)
    for run in sorted((results / "runs").iterdir()):
        ours = (out / "runs" / run.name / "metrics.jsonl").read_bytes()
        assert ours == (run / "metrics.jsonl").read_bytes()
    assert RunFolder(out / "runs" / name).config == config


def test_a_finished_reproduction_is_not_repeated(results: Path, tiny_core: Item) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    claims = reproduce("core", scale="smoke", out=results, device="cpu", resume=True)
    assert claims == read_claims(results)
    assert before == {p: p.stat().st_mtime_ns for p in results.rglob("*")}


def test_other_settings_do_not_touch_a_folder(results: Path, tiny_core: Item) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    with pytest.raises(RunError, match=r"other settings \(trainings differ\)"):
        reproduce("core", scale="smoke", out=results, seeds=3, device="cpu", resume=True)
    with pytest.raises(RunError, match="go on with --resume"):
        reproduce("core", scale="smoke", out=results, device="cpu")
    assert before == {p: p.stat().st_mtime_ns for p in results.rglob("*")}


def test_a_run_is_not_taken_for_results(short_config, tiny_core: Item, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    with pytest.raises(RunError, match="holds results with other settings"):
        reproduce("core", scale="smoke", out=tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize(
    ("what", "scale", "seeds", "message"),
    [
        ("fig33", "smoke", None, "what='fig33': allowed: core"),
        ("core", "smal", None, "scale='smal': did you mean 'small'?"),
        ("core", "smoke", 0, "seeds=0: must be 1 or greater"),
    ],
)
def test_misuse_is_named(tmp_path: Path, what: str, scale: str, seeds: int | None, message) -> None:
    with pytest.raises(ConfigError) as error:
        reproduce(what, scale=scale, out=tmp_path / "out", seeds=seeds)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_has_three_scales_and_more_work_at_each(item: str) -> None:
    plans = get_item(item).plans
    assert list(plans) == ["smoke", "small", "paper"]
    work = [sum(c.train.steps for c in plan.configs.values()) for plan in plans.values()]
    assert work == sorted(work)
    assert get_item(item).plan("small", seeds=4).trainings[0].seeds == 4


def test_costs_are_measured_for_every_run(tiny_core: Item) -> None:
    plan = tiny_core.plan("smoke")
    found = costs(plan, device="cpu")
    assert [cost.run for cost in found] == list(plan.configs)
    assert [cost.step.parameters for cost in found] == [6400, 6400, 25_600, 12_804]
    assert all(cost.seconds > 0 for cost in found)
