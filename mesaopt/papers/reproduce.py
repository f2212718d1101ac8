"""Reproduce a study: train its runs, then measure, draw and judge its figures, in a results folder."""

import importlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mesaopt import files, json_files
from mesaopt.config import to_dict
from mesaopt.errors import RESUME, ConfigError, RunError, suggest
from mesaopt.papers.claims import Claim, read_claims, write_claims
from mesaopt.papers.figure import Figure, draw_figure, is_possible, judge, save_figure
from mesaopt.papers.index import STUDIES, read_index
from mesaopt.papers.laboratory import Laboratory, Plan, Runs
from mesaopt.papers.plan import Study
from mesaopt.papers.trainings import Trainer, total_parameters
from mesaopt.papers.untrained import FILE as UNTRAINED
from mesaopt.papers.untrained import Untrained, write_untrained
from mesaopt.progress import AnyProgress, ProgressDisplay, Stage
from mesaopt.sweeps import Engine, make_engine
from mesaopt.training import (
    Run,
    RunFolder,
    describe,
    load_run,
    reserve_folder,
    resolve_device,
)
from mesaopt.workers import parallel

__all__ = ["redraw", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A finished figure, as kept in `parts/<name>.json`: a later session does not compute it again."""

    figures: list[str]
    """Names of its files, without ending: one, or none where it was left out."""
    claims: list[Claim]
    waiting: list[Claim]
    """Claims for which there were no models."""
    seconds: float


def get_study(name: str) -> Study[Any]:
    """Look a study up.

    Args:
        name: one of `STUDIES`.

    Returns:
        The study.

    Raises:
        ConfigError: there is no such study.

    Example:
        >>> get_study("cor")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: what='cor': did you mean 'core'?
    """
    if name not in STUDIES:
        figures = [row["name"] for row in read_index() if row["name"].endswith(f"/{name}")]
        hint = f"must be {' or '.join(figures)}" if figures else suggest(name, STUDIES)
        raise ConfigError(f"what={name!r}: {hint}")
    return importlib.import_module(STUDIES[name]).STUDY


def make_plan(
    what: str, *, scale: str = "small", seeds: int | None = None, only: Sequence[str] = ()
) -> Plan:
    """Make the plan of what a user asks for.

    Args:
        what: name of a study, such as "core", or of one figure, such as "emergence2024/fig1".
        scale: "smoke", "small" or "paper".
        seeds: training seeds of every recipe; the scale's own numbers if not given.
        only: names of figures, in any order, besides one that `what` names; all of them if there is none.

    Returns:
        The plan.

    Raises:
        ConfigError: there is no such study, figure or scale, seeds is less than 1, or there is no choice
            of seeds.

    Example:
        >>> make_plan("core", scale="smoke").num_sequences
        2048
    """
    name, _, figure = what.partition("/")
    figures = (figure, *only) if figure else only
    return get_study(name).plan(scale, seeds=seeds, figures=figures)


def find_runs(plan: Plan, folder: Path) -> Runs:
    """Load the finished runs of a folder that some figure of a plan reads.

    Args:
        plan: the figures.
        folder: of run folders, with any names.

    Returns:
        The runs by recipe, the first seeds first.

    Raises:
        ConfigError: a figure trains models of its own.
        RunError: there are none that a figure could be made from, those of a recipe differ by more than
            their seeds, or a run is damaged.
    """
    study = get_study(plan.what)
    if own := [figure.name for figure in study.chosen(plan) if figure.trains]:
        problem = f"but figures that train models of their own were chosen: {', '.join(own)}"
        raise ConfigError(f"runs={str(folder)!r}: must train nothing, {problem}")
    wanted = {recipe for figure in study.chosen(plan) for recipe in figure.recipes}
    folders = [RunFolder(folder / name) for name in files.names(folder)]
    ended = [one for one in folders if files.exists(one.path / "config.json") and one.is_done]
    read = [one for one in ended if one.config.recipe in wanted]
    _check_seeds(folder, read)
    runs: Runs = {}
    for one in sorted(read, key=lambda one: one.config.seed):
        runs.setdefault(one.config.recipe, []).append(load_run(one.path, device="cpu"))
    missing = sorted(wanted - runs.keys())
    possible = any(is_possible(figure, runs) for figure in study.chosen(plan))
    if missing and (study.needs_all_runs or not possible):
        raise RunError(
            f"{folder}: holds no finished run of {', '.join(missing)}; "
            "`mesaopt train NAME` trains one as published"
        )
    return runs


def _check_seeds(folder: Path, runs: Sequence[RunFolder]) -> None:
    """Make sure that the runs of a recipe differ by their seeds, and by nothing else."""
    by_recipe: dict[str, list[RunFolder]] = {}
    for one in runs:
        by_recipe.setdefault(one.config.recipe, []).append(one)
    for recipe, same in by_recipe.items():
        seeds = {one.config.seed for one in same}
        settings = [replace(one.config, seed=0) for one in same]
        if len(seeds) < len(same) or any(other != settings[0] for other in settings):
            names = ", ".join(one.path.name for one in same)
            raise RunError(
                f"{folder}: holds {names}: must be runs of {recipe} that differ by their seeds alone"
            )


def measuring_seconds(plan: Plan, runs: Runs | None = None) -> dict[str, float]:
    """Estimate the time to measure and draw each figure of a plan.

    Args:
        plan: the figures and their scale.
        runs: the models there are, if none are trained; figures with fewer or smaller ones take less.

    Returns:
        Seconds by the name of the figure.

    Example:
        >>> plan = make_plan("uncovering2023/fig6c", scale="paper")
        >>> measuring_seconds(plan) == {"fig6c": 18.0}, measuring_seconds(plan, {}) == {"fig6c": 1.0}
        (True, True)
    """
    study, scale = get_study(plan.what), plan.scale
    trainings = study.plans[scale].trainings

    def share(figure: Figure[Any]) -> float:
        planned = {one.recipe: one.seeds for one in trainings if one.recipe in figure.recipes}
        if runs is None or not planned:
            return 1.0
        there = {recipe: len(runs.get(recipe, [])) for recipe in figure.recipes}
        return total_parameters(there) / total_parameters(planned)

    return {
        figure.name: max(1.0, share(figure) * figure.seconds[scale])
        for figure in study.chosen(plan)
    }


def reproduce(
    what: str,
    *,
    scale: str = "small",
    out: str | Path,
    seeds: int | None = None,
    only: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    runs: str | Path | None = None,
    runs_name: str | None = None,
    engine: str | Engine | None = None,
    progress: AnyProgress = True,
) -> list[Claim]:
    """Train, measure and judge one study in a folder.

    The folder gets `runs/`, `figures/`, `parts/` and `claims.json`; :func:`mesaopt.report.write_report`
    makes its page. Runs and figures that an earlier session has finished are kept.

    Args:
        what: name of a study, such as "core", or of one figure, such as "emergence2024/fig1".
        scale: "smoke", "small" or "paper".
        out: folder of the results, new or empty unless resumed.
        seeds: training seeds of every recipe; the scale's own numbers if not given.
        only: names of figures, in any order, besides one that `what` names; all of them if there is none.
        resume: continue what is in `out`, of the same settings; there may be more figures than before.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        runs: folder of finished run folders, which are measured in place of training any; what has no runs
            there is left out, and named in `not-trained.json`.
        runs_name: what the report calls this folder; its path if not given.
        engine: trains the runs, several at once, as in :func:`mesaopt.sweep`; one after another in this
            process if not given.
        progress: a display of all stages on the standard error, which are plain lines where that is no
            terminal; nothing; or a function that is called with the steps of each stage.

    Returns:
        The claims, judged.

    Raises:
        ConfigError: there is no such study, figure or scale, seeds is less than 1, there is no choice of
            seeds, or runs are given and a figure trains models of its own.
        RunError: the folder, a checkpoint or the device does not allow it, or the disk is full.
    """
    plan = make_plan(what, scale=scale, seeds=seeds, only=only)
    if runs is not None:
        runs = files.as_path(runs)
        plan = replace(plan, trainings=(), runs=runs_name or str(runs))
    resolve_device(device)
    out, study = files.as_path(out), get_study(plan.what)
    chosen = None if engine is None else make_engine(engine)
    given = None if runs is None else find_runs(plan, runs)
    is_ended = files.exists(out / "DONE") and settings_of(out) == to_dict(plan)
    if chosen is not None and not is_ended:
        chosen.check(device)
    _reserve(out, plan, resume=resume)
    if is_ended:
        return read_claims(out)
    with files.only_one_process(out):
        _take_over(out, plan)
        trainer = Trainer(out, device, chosen)
        return _reproduce_in(out, study, plan, trainer, given=given, progress=progress)


def redraw(out: str | Path) -> list[str]:
    """Draw all figures of a results folder again, from their saved numbers.

    Args:
        out: folder that :func:`reproduce` filled; runs and models are not needed.

    Returns:
        Names of the figures' files, without ending.

    Raises:
        RunError: the folder or a figure's numbers are missing or damaged, or the disk is full.
    """
    out = files.as_path(out)
    folder = files.inside(out, "figures")
    index = json_files.read(files.inside(out, "figures", "index.json"), {"figures": [str]})
    study = get_study(json_files.read(files.inside(out, "config.json"), {"what": str})["what"])
    figures = {f"{study.name}-{figure.name}": figure for figure in study.figures}
    for name in index["figures"]:
        if name not in figures:
            raise RunError(f"{folder / name}.json: {suggest(name, figures)}")
        try:
            draw_figure(figures[name], name, folder)
        except RunError:
            raise
        except Exception as error:  # whatever drawing makes of numbers that are not the figure's
            raise RunError(f"{folder / name}.csv: cannot be drawn: {error!r}") from error
    return index["figures"]


def _reproduce_in(
    out: Path,
    study: Study[Any],
    plan: Plan,
    trainer: Trainer,
    *,
    given: Runs | None,
    progress: AnyProgress,
) -> list[Claim]:
    started = time.perf_counter()
    figures, seconds = study.chosen(plan), measuring_seconds(plan, given)
    stages = trainer.stages(plan)
    stages += [Stage(figure.name, 1, seconds[figure.name]) for figure in figures]
    with ProgressDisplay(stages, progress=progress) as display:
        runs = given or trainer.train(plan, display)

        def open_laboratory() -> Laboratory:
            lab = study.laboratory(plan, runs)
            lab.on_progress = display.update
            lab.folder, lab.device = trainer.folder, trainer.device
            lab.train_ahead = lambda configs: trainer.train_ahead(configs, display.update)
            return lab

        _compute_all(study, figures, open_laboratory, out, display)
    finished = [_read_finished(_file_of(figure, out)) for figure in figures]
    claims = [claim for one in finished for claim in one.claims]
    trained = list(itertools.chain.from_iterable(runs.values()))
    index = {
        "title": study.title,
        "introduction": f"{study.introduction} {_origin(plan, trained)}".strip(),
        "figures": [name for one in finished for name in one.figures],
        "source": None if study.source is None else to_dict(study.source),
        "headlines": _headlines(study, claims),
        "runs": [_run_summary(run) for run in trained],
    }
    json_files.write(out / "figures" / "index.json", index)
    write_claims(out, claims)
    if plan.runs is not None:
        write_untrained(out, _untrained(figures, runs, finished))
    spent = {
        "training": sum(run.seconds for run in trained) if plan.runs is None else 0.0,
        "measuring": sum(one.seconds for one in finished),
        "this_session": time.perf_counter() - started,
    }
    json_files.write(out / "DONE", {name: round(value, 1) for name, value in spent.items()})
    return claims


def _reserve(out: Path, plan: Plan, *, resume: bool) -> None:
    """Reserve a folder for a plan, or make sure that it holds this plan, or one of fewer figures."""
    settings = to_dict(plan)
    if reserve_folder(out, resume=resume):
        theirs = settings_of(out)
        if theirs != settings and not _has_more(settings, theirs):
            different = [k for k in settings if k not in theirs]
            different = different or [k for k in settings if theirs[k] != settings[k]]
            wanted = "give the same settings or a new folder"
            if "figures" in different and theirs.get("figures"):
                wanted += (
                    f"; to add figures, name those it has, too: {', '.join(theirs['figures'])}"
                )
            raise RunError(
                f"out={str(out)!r}: holds results with other settings ({', '.join(different)} differ); "
                f"{wanted}"
            )
        if theirs != settings or not files.exists(out / "DONE"):
            for place in ("figures", "parts", "runs", *(f"runs/{name}" for name in plan.configs)):
                files.inside(out, place)
    else:
        json_files.write(out / "config.json", settings)
    if not files.exists(out / "meta.json"):
        json_files.write(out / "meta.json", describe())


def settings_of(out: Path) -> dict[str, Any]:
    """Read the settings of a folder of results, in today's words.

    Args:
        out: the folder.

    Returns:
        The plan as plain values; nothing where there is no plan.

    Raises:
        RunError: the file is damaged.

    Example:
        >>> settings_of(Path("no/such/folder"))
        {}
    """
    path = out / "config.json"
    settings = json_files.read(path) if files.exists(path) else None
    if not isinstance(settings, dict):
        return {}
    if "parts" in settings:  # as figures were called before
        settings["figures"] = settings.pop("parts")
    return {"runs": None} | settings  # of results from before runs could be given


def _has_more(settings: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Say whether a plan differs from an earlier one by more figures, and by what these train, alone."""
    alike: dict[str, Any] = {"figures": [], "trainings": []}
    return (
        settings | alike == theirs | alike
        and bool(theirs.get("figures"))
        and (not settings["figures"] or set(theirs["figures"]) <= set(settings["figures"]))
        and all(training in settings["trainings"] for training in theirs.get("trainings", ()))
    )


def _take_over(out: Path, plan: Plan) -> None:
    """Let a folder that holds fewer figures hold all of a plan; what is finished there is kept."""
    if settings_of(out) != to_dict(plan):
        for of_fewer in ("DONE", "claims.json", UNTRAINED, "figures/index.json"):
            files.remove(out / of_fewer)
        json_files.write(out / "meta.json", describe())
        json_files.write(out / "config.json", to_dict(plan))


def _untrained(
    figures: Sequence[Figure[Any]], runs: Runs, finished: Sequence[_Finished]
) -> list[Untrained]:
    """List the figures that lack runs of some of their recipes."""
    lacking = [tuple(name for name in figure.recipes if name not in runs) for figure in figures]
    return [
        Untrained(
            figure=figure.name,
            recipes=recipes,
            drawn=bool(one.figures),
            claims=tuple(one.waiting),
        )
        for figure, one, recipes in zip(figures, finished, lacking, strict=True)
        if recipes
    ]


def _origin(plan: Plan, trained: Sequence[Run]) -> str:
    """Say where the models of a report are from."""
    if plan.runs is not None:
        measured = "all else was measured on this machine"
        return f"The models are those trained before, in {plan.runs}; {measured}."
    return "Everything below was trained and measured on this machine." if trained else ""


def _run_summary(run: Run) -> dict[str, Any]:
    return {
        "name": run.path.name,
        "recipe": run.config.recipe,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.config.train.steps,
        "batch_size": run.config.train.batch_size,
        "learning_rate": run.config.train.learning_rate,
        "test_loss": run.metrics[-1]["test_loss"],
        "seconds": run.seconds,
    }


def _compute_all(
    study: Study[Any],
    figures: Sequence[Figure[Any]],
    open_laboratory: Callable[[], Laboratory],
    out: Path,
    display: ProgressDisplay,
) -> None:
    """Compute the figures that are missing; a figure is finished once its file in `parts` is there."""
    lab: Laboratory | None = None
    for figure in figures:
        if files.exists(_file_of(figure, out)):
            display.skip(figure.name)
            continue
        display.begin(figure.name)
        lab = lab or open_laboratory()
        with parallel():
            _compute(study, figure, lab, out)


def _compute(study: Study[Any], figure: Figure[Any], lab: Laboratory, out: Path) -> None:
    started = time.perf_counter()
    name = save_figure(figure, lab, out / "figures")
    judged = [
        replace(
            claim,
            study=study.name,
            paper=study.paper,
            scale=lab.plan.scale,
            shown_in=claim.shown_in or figure.name,
        )
        for claim in judge(figure, lab, waiting=True)
    ]
    value = {
        "figures": [] if name is None else [name],
        "claims": [claim.to_json() for claim in judged if claim.measured is not None],
        "waiting": [claim.to_json() for claim in judged if claim.measured is None],
        "seconds": round(time.perf_counter() - started, 2),
    }
    json_files.write(_file_of(figure, out), value)


def _file_of(figure: Figure[Any], out: Path) -> Path:
    return out / "parts" / f"{figure.name}.json"


def _read_finished(path: Path) -> _Finished:
    value, again = json_files.read(path), f"delete it and go on with {RESUME}"
    try:
        json_files.check(value, {"figures": [str], "claims": [{}], "seconds": float}, str(path))
        claims = [Claim.from_json(claim) for claim in value["claims"]]
        waiting = [Claim.from_json(claim) for claim in value.get("waiting", [])]
        return _Finished(
            figures=value["figures"], claims=claims, waiting=waiting, seconds=value["seconds"]
        )
    except RunError as error:
        raise RunError(f"{error}; {again}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: is damaged: {error!r}; {again}") from None


def _headlines(study: Study[Any], claims: Sequence[Claim]) -> list[dict[str, str]]:
    """Give the numbers for the head of the report, by the ids of their claims, as far as measured."""
    measured = {claim.name: claim.id for claim in claims}
    return [
        {"claim": measured[headline.claim], "text": headline.text}
        for headline in study.headlines
        if headline.claim in measured
    ][:3]
