import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_study
from helpers import Here
from toy_study import Toy

from mesaopt import files, recipes
from mesaopt.config import RunConfig, to_dict
from mesaopt.errors import ConfigError, RunError
from mesaopt.papers.claims import read_claims
from mesaopt.papers.laboratory import Plan
from mesaopt.papers.plan import Study
from mesaopt.papers.reproduce import (
    STUDIES,
    find_runs,
    get_study,
    make_plan,
    redraw,
    reproduce,
)
from mesaopt.papers.trainings import costs
from mesaopt.papers.untrained import read_untrained
from mesaopt.training import RunFolder, StepCost, StepCosts, run_name, train

FIGURES = [
    "core-in-context-loss",
    "core-training",
    "core-learning-curves",
    "core-weights",
    "core-coefficients",
    "core-ridge",
]


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
    first = {row["predictor"]: float(row["loss"]) for row in rows if row["place"] == "1"}
    # Nobody knows anything at position 1, and untrained models predict zero.
    assert max(first.values()) == pytest.approx(min(first.values()), rel=1e-3)
    last = {row["predictor"]: float(row["loss"]) for row in rows if row["place"] == "50"}
    assert last["least squares"] < 1e-3 < last["one gradient step"]


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
    results: Path, tiny_core: Study, tmp_path: Path
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
    with pytest.raises(RunError, match=r"--resume \(in Python resume=True\) goes on with"):
        reproduce("core", scale="smoke", out=out, device="cpu")
    claims = reproduce("core", scale="smoke", out=out, device="cpu", resume=True)
    assert claims == read_claims(results)
    for run in sorted((results / "runs").iterdir()):
        ours = (out / "runs" / run.name / "metrics.jsonl").read_bytes()
        assert ours == (run / "metrics.jsonl").read_bytes()
    assert RunFolder(out / "runs" / name).config == config


def test_an_engine_trains_the_runs_and_the_numbers_are_the_same(
    results: Path, tiny_core: Study, tmp_path: Path
) -> None:
    out, failing, engine = tmp_path / "results", Here(failing="mesa-1"), Here()
    with pytest.raises(RunError, match=r"^1 of 4 runs failed: mesa-1-seed0: no luck$"):
        reproduce("core", scale="smoke", out=out, device="cpu", engine=failing)
    assert len(failing.given) == 5
    claims = reproduce("core", scale="smoke", out=out, device="cpu", engine=engine, resume=True)
    assert engine.given == ["check", "mesa-1-seed0"]
    assert claims == read_claims(results)
    for run in sorted((results / "runs").iterdir()):
        ours = (out / "runs" / run.name / "metrics.jsonl").read_bytes()
        assert ours == (run / "metrics.jsonl").read_bytes()


def test_a_finished_reproduction_is_not_repeated(results: Path, tiny_core: Study) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    claims = reproduce("core", scale="smoke", out=results, device="cpu", resume=True)
    assert claims == read_claims(results)
    assert before == {p: p.stat().st_mtime_ns for p in results.rglob("*")}


def test_runs_that_are_finished_are_not_timed_again(
    results: Path, tiny_core: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    shutil.copytree(results, out)
    (out / "DONE").unlink()
    unfinished = next(iter(tiny_core.plan("smoke").configs))
    (out / "runs" / unfinished / "DONE").unlink()
    timed: list[str] = []

    class Spy(StepCosts):
        def of(self, configs: Sequence[RunConfig]) -> StepCost:
            timed.extend(map(run_name, configs))
            return super().of(configs)

    monkeypatch.setattr("mesaopt.papers.trainings.StepCosts", Spy)
    assert reproduce("core", scale="smoke", out=out, device="cpu", resume=True)
    assert timed == [unfinished]


@pytest.mark.parametrize("place", ["figures", "parts", "runs", "run"])
def test_results_do_not_go_on_through_a_link(
    results: Path, tiny_core: Study, tmp_path: Path, place: str
) -> None:
    out, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    shutil.copytree(results, out)
    run = f"runs/{next(iter(tiny_core.plan('smoke').configs))}"
    path = out / (run if place == "run" else place)
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    assert reproduce("core", scale="smoke", out=out, device="cpu", resume=True), "ended: only read"
    (out / "DONE").unlink()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="leads out of the folder"):
        reproduce("core", scale="smoke", out=out, device="cpu", resume=True)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_other_settings_do_not_touch_a_folder(results: Path, tiny_core: Study) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    with pytest.raises(RunError, match=r"other settings \(trainings differ\)"):
        reproduce("core", scale="smoke", out=results, seeds=3, device="cpu", resume=True)
    with pytest.raises(RunError, match=r"--resume \(in Python resume=True\) goes on with"):
        reproduce("core", scale="smoke", out=results, device="cpu")
    assert before == {p: p.stat().st_mtime_ns for p in results.rglob("*")}


def test_a_run_is_not_taken_for_results(short_config, tiny_core: Study, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    with pytest.raises(RunError, match="holds results with other settings"):
        reproduce("core", scale="smoke", out=tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize(
    ("what", "scale", "seeds", "message"),
    [
        ("fig33", "smoke", None, "what='fig33': allowed: core"),
        ("core", "smal", None, "scale='smal': did you mean 'small'?"),
        ("core", "smoke", 0, "seeds=0: must be 1 or greater"),
        ("core/wights", "smoke", None, "figure='wights': did you mean 'weights'?"),
        ("toy/fg2", "smoke", None, "figure='fg2': did you mean 'fig2'?"),
        ("toy/x", "smoke", None, "figure='x': allowed: fig1, fig2, fig3"),
        ("toi/fig1", "smoke", None, "what='toi': did you mean 'toy'?"),
    ],
)
def test_misuse_is_named(
    tmp_path: Path, toy: Toy, what: str, scale: str, seeds: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        reproduce(what, scale=scale, out=tmp_path / "out", seeds=seeds)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_three_scales_and_more_work_at_each(study: str) -> None:
    plans = get_study(study).plans
    assert list(plans) == ["smoke", "small", "paper"]
    work = [sum(c.train.steps for c in plan.configs.values()) for plan in plans.values()]
    assert work == sorted(work)
    figures = get_study(study).figures
    seconds = [sum(figure.seconds[scale] for figure in figures) for scale in plans]
    assert seconds == sorted(seconds)
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names))


def test_seeds_are_those_of_every_recipe() -> None:
    assert [t.seeds for t in make_plan("core", seeds=4).trainings] == [4, 4, 4]


def test_costs_are_measured_for_every_run(tiny_core: Study) -> None:
    plan = tiny_core.plan("smoke")
    found = list(costs(plan, device="cpu"))
    assert [cost.run for cost in found] == list(plan.configs)
    assert [cost.step.parameters for cost in found] == [6400, 6400, 25_600, 12_804]
    assert all(cost.seconds > 0 for cost in found)


def test_a_cost_is_known_before_the_next_one_is_measured(tiny_core: Study) -> None:
    plan = tiny_core.plan("smoke")
    bad = replace(plan.trainings[0], recipe="no-such-recipe")
    found = costs(replace(plan, trainings=(*plan.trainings[:1], bad)), device="cpu")
    assert next(found).step.parameters == 6400
    with pytest.raises(ConfigError):
        list(found)


def test_figures_run_in_the_studys_order_and_share_what_is_measured(
    tmp_path: Path, toy: Toy
) -> None:
    claims = reproduce("toy", scale="smoke", out=tmp_path, only=["fig3", "fig1", "fig3"])
    assert toy.log == ["fig1", "numbers", "fig3"]
    assert [claim.figure for claim in claims] == ["fig1", "fig1", "fig3", "fig3"]
    assert claims == read_claims(tmp_path)
    index = json.loads((tmp_path / "figures" / "index.json").read_text())
    assert index["figures"] == ["toy-fig1", "toy-fig3"]
    assert [claim.shown_in for claim in claims] == ["fig1", "fig1", "fig3", "fig3"]
    assert (index["source"], index["headlines"]) == (None, [])
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["figures"] == ["fig1", "fig3"]
    assert settings["draws"] == 2, "a plan keeps settings of its own"


def test_all_figures_chosen_are_the_whole_study(toy: Toy) -> None:
    whole = make_plan("toy", scale="smoke")
    assert whole.figures == ()
    assert make_plan("toy", scale="smoke", only=["fig2", "fig3", "fig1"]) == whole
    assert make_plan("toy/fig2", only=["fig1"]).figures == ("fig1", "fig2")


def test_a_plan_without_training_has_seeds_of_its_own_or_none(toy: Toy) -> None:
    assert make_plan("toy", seeds=7).draws == 7
    with pytest.raises(ConfigError, match="seeds=7: what was chosen of toy has no seeds"):
        Plan(what="toy", scale="smoke").with_seeds(7)
    assert list(costs(make_plan("toy"))) == []


@pytest.mark.parametrize("more", [["fig2", "fig3"], []], ids=["two", "all"])
def test_a_folder_takes_more_figures_and_keeps_those_it_has(
    tmp_path: Path, toy: Toy, more: list[str]
) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig2"])
    first = (tmp_path / "parts" / "fig2.json").read_bytes()
    toy.log.clear()
    reproduce("toy", scale="smoke", out=tmp_path, only=more, resume=True)
    assert "fig2" not in toy.log
    assert (tmp_path / "parts" / "fig2.json").read_bytes() == first
    plan = make_plan("toy", scale="smoke", only=more)
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(plan)
    index = json.loads((tmp_path / "figures" / "index.json").read_text())
    assert index["figures"] == [f"toy-{name}" for name in more or toy_study.FIGURES]
    before = (tmp_path / "claims.json").read_bytes()
    for other in ({"only": ["fig2"]}, {"only": more, "seeds": 5}, {"only": ["fig1"]}):
        with pytest.raises(RunError, match="other settings"):
            reproduce("toy", scale="smoke", out=tmp_path, resume=True, **other)
    assert (tmp_path / "claims.json").read_bytes() == before


@pytest.mark.parametrize("interrupted", [False, True])
def test_more_figures_train_what_is_missing(
    tiny_core: Study, tmp_path: Path, interrupted: bool
) -> None:
    reproduce("core", scale="smoke", out=tmp_path, device="cpu", only=["weights"])
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    before, meta = len(read_claims(tmp_path)), json.loads((tmp_path / "meta.json").read_text())
    if interrupted:
        (tmp_path / "DONE").unlink()
    more = make_plan("core", scale="smoke")
    assert len(more.configs) > len(make_plan("core", scale="smoke", only=["weights"]).configs)
    claims = reproduce("core", scale="smoke", out=tmp_path, device="cpu", resume=True)
    assert len(claims) > before
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(more.configs)
    assert json.loads((tmp_path / "meta.json").read_text())["started"] > meta["started"]


def test_results_of_fewer_figures_are_none_of_more(toy: Toy, tmp_path: Path) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig1"])
    toy.broken = "fig2"
    with pytest.raises(RuntimeError, match="fig2 is broken"):
        reproduce("toy", scale="smoke", out=tmp_path, resume=True)
    with pytest.raises(RunError, match="there is no such file; mesaopt reproduce writes it"):
        read_claims(tmp_path)
    reproduce("toy", scale="smoke", out=tmp_path / "other", only=["fig1"])
    with pytest.raises(RunError, match="to add figures, name those it has, too: fig1$"):
        reproduce("toy", scale="smoke", out=tmp_path / "other", only=["fig3"], resume=True)


def test_more_figures_are_not_taken_while_another_process_works(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig2"])
    before = (tmp_path / "config.json").read_bytes()
    with files.only_one_process(tmp_path), pytest.raises(RunError, match="another process"):
        reproduce("toy", scale="smoke", out=tmp_path, resume=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "DONE").exists()


def test_figures_that_were_finished_are_kept(tmp_path: Path, toy: Toy) -> None:
    toy.broken = "fig2"
    with pytest.raises(RuntimeError, match="fig2 is broken"):
        reproduce("toy", scale="smoke", out=tmp_path)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["fig1.json"]
    assert not (tmp_path / "claims.json").exists()
    with pytest.raises(RunError, match=r"other settings \(figures differ\)"):
        reproduce("toy", scale="smoke", out=tmp_path, only=["fig1"], resume=True)
    toy.broken = ""
    toy.log.clear()
    claims = reproduce("toy", scale="smoke", out=tmp_path, resume=True)
    assert toy.log == ["fig2", "numbers", "fig3"]
    assert [claim.figure for claim in claims] == ["fig1", "fig1", "fig3", "fig3"]
    part = json.loads((tmp_path / "parts" / "fig3.json").read_text())
    assert part["figures"] == ["toy-fig3"]
    assert [claim["id"] for claim in part["claims"]] == ["toy/fig3-low", "toy/fig3-lower"]


def test_nothing_is_measured_where_all_figures_are_finished(tmp_path: Path, toy: Toy) -> None:
    claims = reproduce("toy", scale="smoke", out=tmp_path)
    (tmp_path / "DONE").unlink()
    (tmp_path / "claims.json").unlink()
    toy.log.clear()
    with pytest.MonkeyPatch.context() as patch:
        blind = replace(toy.study, laboratory=None)
        patch.setattr(toy_study, "STUDY", blind)
        assert reproduce("toy", scale="smoke", out=tmp_path, resume=True) == claims
    assert toy.log == []
    assert (tmp_path / "DONE").exists()


def test_a_damaged_result_is_named(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path)
    (tmp_path / "DONE").unlink()
    (tmp_path / "parts" / "fig2.json").write_text("[]")
    with pytest.raises(RunError, match=r"fig2\.json: is damaged.*delete it"):
        reproduce("toy", scale="smoke", out=tmp_path, resume=True)


def test_progress_goes_through_the_figures(
    tmp_path: Path, toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesaopt.progress._PLAIN_EVERY_SECONDS", 0.0)
    toy.broken = "fig2"
    with pytest.raises(RuntimeError):
        reproduce("toy", scale="smoke", out=tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fig1"
    assert lines[1].startswith("fig1: step 1/2 "), "progress of a measurement"
    assert lines[2:] == ["fig2"]
    toy.broken = ""
    reproduce("toy", scale="smoke", out=tmp_path, resume=True)
    assert capsys.readouterr().err.splitlines()[:2] == ["fig1: already done", "fig2"]


def test_a_figure_has_the_time_of_its_measurement(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig2"])
    part = json.loads((tmp_path / "parts" / "fig2.json").read_text())
    figure = json.loads((tmp_path / "figures" / "toy-fig2.json").read_text())
    assert part["seconds"] >= figure["seconds"] > 0


@pytest.mark.parametrize("study", ["core", "toy"])
def test_figures_are_drawn_again_from_their_numbers_alone(
    study: str, results: Path, tmp_path: Path, toy: Toy
) -> None:
    out = tmp_path / "results"
    if study == "core":
        shutil.copytree(results, out, ignore=shutil.ignore_patterns("runs"))
    else:
        reproduce("toy", scale="smoke", out=out)
        toy.log.clear()
    drawn = {p: p.read_bytes() for p in (out / "figures").iterdir() if p.suffix in (".png", ".svg")}
    for path in drawn:
        path.unlink()
    assert len(redraw(out)) == len(drawn) / 2
    assert {path: path.read_bytes() for path in drawn} == drawn
    assert toy.log == [], "nothing is measured"


def test_drawing_again_names_what_is_missing(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path)
    saved = tmp_path / "figures" / "toy-fig2.csv"
    text = saved.read_text()
    saved.write_text(text + "7\n")
    with pytest.raises(RunError, match=r"toy-fig2\.csv: has 3 rows: must have 2"):
        redraw(tmp_path)
    saved.unlink()
    with pytest.raises(RunError, match=r"toy-fig2\.csv"):
        redraw(tmp_path)
    saved.write_text(text)
    description = tmp_path / "figures" / "toy-fig2.json"
    old = json.loads(description.read_text())
    del old["panels"]
    description.write_text(json.dumps(old))
    with pytest.raises(RunError, match="written before figures could be redrawn"):
        redraw(tmp_path)


def test_a_name_without_its_letter_names_all_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Toy().study.figures
    both = [replace(figures[1], name=name) for name in ("fig2a", "fig2b")]
    study = replace(Toy().study, figures=(figures[0], *both, figures[2]))
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    monkeypatch.setattr(toy_study, "STUDY", study)
    assert make_plan("toy/fig2").figures == ("fig2a", "fig2b")
    assert make_plan("toy", only=["fig2b"]).figures == ("fig2b",)


def test_given_runs_are_measured_and_nothing_is_trained(
    results: Path, tiny_core: Study, tmp_path: Path
) -> None:
    runs = results / "runs"
    (tmp_path / "results").mkdir()
    claims = reproduce("core", scale="smoke", out=tmp_path / "results", runs=runs, device="cpu")
    assert claims == read_claims(results)
    assert not (tmp_path / "results" / "runs").exists()
    index = json.loads((tmp_path / "results" / "figures" / "index.json").read_text())
    assert f"trained before, in {runs}" in index["introduction"]
    spent = [
        json.loads((out / "DONE").read_text())["training"]
        for out in (results, tmp_path / "results")
    ]
    assert spent[0] > spent[1] == 0
    with pytest.raises(RunError, match=r"other settings \(.*runs"):
        reproduce("core", scale="smoke", out=tmp_path / "results", resume=True, device="cpu")


def test_runs_that_are_missing_are_named(results: Path, tiny_core: Study, tmp_path: Path) -> None:
    recipes = [config.recipe for config in tiny_core.plan("smoke").configs.values()]
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(
        RunError, match="holds no finished run of " + ", ".join(sorted(set(recipes)))
    ):
        reproduce("core", scale="smoke", out=tmp_path / "out", runs=runs, device="cpu")
    assert not (tmp_path / "out").exists()
    folder = next((results / "runs").glob("lsa-1-*"))
    shutil.copytree(folder, runs / "any name")
    shutil.copytree(folder, runs / "not ended")
    (runs / "not ended" / "DONE").unlink()
    others = sorted(set(recipes) - {"lsa-1"})
    with pytest.raises(RunError, match="holds no finished run of " + ", ".join(others)):
        reproduce("core", scale="smoke", out=tmp_path / "more", runs=runs, device="cpu")


@pytest.mark.parametrize("only", [(), ("fig2",)])
def test_figures_that_train_models_are_refused_where_runs_are_given(
    only: Sequence[str], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = Toy().study.figures
    study = replace(Toy().study, figures=(first, replace(second, trains=True), third))
    monkeypatch.setattr(toy_study, "STUDY", study)
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    given = {"scale": "smoke", "runs": results / "runs", "device": "cpu"}
    with pytest.raises(ConfigError, match="must train nothing, but .* were chosen: fig2$"):
        reproduce("toy", only=only, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    assert reproduce("toy", only=["fig1", "fig3"], out=tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("seed", "other", "passes"),
    [
        (1, {}, True),
        (0, {}, False),
        (1, {"learning_rate": 1e-3}, False),
        (1, {"steps": 2}, False),
    ],
)
def test_runs_of_a_recipe_may_differ_by_their_seeds_alone(
    seed: int,
    other: dict[str, Any],
    passes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toy_study, "STUDY", _toy_of_models(["lsa-1"]))
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    short: dict[str, Any] = {"steps": 1, "batch_size": 2, "evaluation_sequences": 2}
    for name, of, settings in (("first", 0, short), ("second", seed, short | other)):
        config = recipes.get("lsa-1", seed=of)
        config = replace(config, train=replace(config.train, **settings))
        train(config, tmp_path / name, device="cpu", progress=False)
    plan = make_plan("toy", scale="smoke")
    if passes:
        assert [run.config.seed for run in find_runs(plan, tmp_path)["lsa-1"]] == [0, 1]
    else:
        with pytest.raises(RunError, match="first, second: must be runs of lsa-1 that differ by"):
            find_runs(plan, tmp_path)


def _toy_of_models(recipes: Sequence[str], *, needs_runs: bool = True) -> Study:
    """Give the toy study, whose first figure reads models; its third claim waits for them."""
    first, *others = Toy().study.figures
    first = replace(first, recipes=tuple(recipes), needs_runs=needs_runs)
    return replace(Toy().study, figures=(first, *others))


def test_figures_that_lack_models_name_them(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = results / "runs", tmp_path / "out"
    monkeypatch.setattr(toy_study, "STUDY", _toy_of_models(["lsa-1", "tf-7", "tf-12"]))
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    claims = reproduce("toy", scale="smoke", out=out, runs=runs, runs_name="the zoo", device="cpu")
    (figure,) = read_untrained(out)
    assert (figure.figure, figure.recipes, figure.drawn) == ("fig1", ("tf-7", "tf-12"), True)
    assert [claim.name for claim in figure.claims] == ["fig1-lost"]
    assert "fig1-lost" not in {claim.name for claim in claims}
    index = json.loads((out / "figures" / "index.json").read_text())
    assert "trained before, in the zoo;" in index["introduction"]
    assert json.loads((out / "config.json").read_text())["runs"] == "the zoo"
    (out / "not-trained.json").write_text('[{"figure": "fig1"}]')
    with pytest.raises(RunError, match=r"not-trained\.json"):
        read_untrained(out)


def test_a_figure_without_any_of_its_models_is_left_out(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = results / "runs", tmp_path / "out"
    monkeypatch.setattr(toy_study, "STUDY", _toy_of_models(["tf-7"]))
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    reproduce("toy", scale="smoke", out=out, runs=runs, device="cpu")
    (figure,) = read_untrained(out)
    assert (figure.recipes, figure.drawn) == (("tf-7",), False)
    with pytest.raises(RunError, match="no finished run of tf-7; `mesaopt train NAME` trains one"):
        reproduce("toy/fig1", scale="smoke", out=tmp_path / "one", runs=runs, device="cpu")
    monkeypatch.setattr(toy_study, "STUDY", _toy_of_models(["tf-7"], needs_runs=False))
    reproduce("toy/fig1", scale="smoke", out=tmp_path / "two", runs=runs, device="cpu")
    assert read_untrained(tmp_path / "two")[0].drawn
    assert read_untrained(results) == [], "all its models were trained"
