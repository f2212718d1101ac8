"""Reproduce an item of a paper: train its runs, then compute the figures and claims of its parts."""

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.config import RunConfig, to_dict
from mesaopt.errors import ConfigError, RunError, suggest
from mesaopt.papers.claims import Claim, read_claims, write_claims
from mesaopt.papers.emergence2024.emergence import EMERGENCE
from mesaopt.papers.figures import save_figure, style
from mesaopt.papers.plan import Item, Part, Plan, Results, Runs
from mesaopt.papers.uncovering2023.core import CORE
from mesaopt.papers.uncovering2023.uncovering import UNCOVERING
from mesaopt.progress import ProgressDisplay, Stage
from mesaopt.training import (
    Run,
    RunFolder,
    StepCost,
    describe,
    reserve_folder,
    resolve_device,
    run_name,
    seed_batches,
    step_cost,
    train_seeds,
)

ITEMS: dict[str, Item[Any]] = {item.name: item for item in (CORE, UNCOVERING, EMERGENCE)}
"""All that can be reproduced, by name."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a plan costs on this machine."""

    run: str
    steps: int
    step: StepCost

    @property
    def seconds(self) -> float:
        """Expected training time."""
        return self.steps * self.step.seconds


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """What is kept of a part, in `parts/<name>.json`: a later session need not compute it again."""

    figures: list[str]
    claims: list[Claim]
    seconds: float


def get_item(name: str) -> Item[Any]:
    """Look an item up.

    Args:
        name: one of `ITEMS`.

    Returns:
        The item.

    Raises:
        ConfigError: there is no such item.

    Example:
        >>> get_item("cor")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: what='cor': did you mean 'core'?
    """
    if name not in ITEMS:
        raise ConfigError(f"what={name!r}: {suggest(name, ITEMS)}")
    return ITEMS[name]


def make_plan(
    what: str, *, scale: str = "small", seeds: int | None = None, only: Sequence[str] = ()
) -> Plan:
    """Make the plan of what a user asks for.

    Args:
        what: name of an item, such as "core", or of one part, such as "emergence2024/fig1".
        scale: "smoke", "small" or "paper".
        seeds: training seeds of every recipe; the scale's own numbers if not given.
        only: names of parts, in any order, besides one that `what` names; all of them if there is none.

    Returns:
        The plan.

    Raises:
        ConfigError: there is no such item, part or scale, seeds is less than 1, or there is no choice of
            seeds or parts.

    Example:
        >>> make_plan("core", scale="smoke").num_sequences
        2048
    """
    name, _, part = what.partition("/")
    return get_item(name).plan(scale, seeds=seeds, parts=(part, *only) if part else only)


def costs(plan: Plan, *, device: str = "auto") -> list[Cost]:
    """Find out what the runs of a plan cost here, by trying a few steps of each recipe.

    Args:
        plan: what would be run.
        device: where.

    Returns:
        One entry per run.
    """
    by_recipe = {
        group[0].recipe: step_cost(group[0], device, seeds=[config.seed for config in group])
        for training in plan.trainings
        for group in seed_batches(training.configs, device)[:1]
    }
    return [
        Cost(run=name, steps=config.train.steps, step=by_recipe[config.recipe])
        for name, config in plan.configs.items()
    ]


def reproduce(
    what: str,
    *,
    scale: str = "small",
    out: str | Path,
    seeds: int | None = None,
    only: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
) -> list[Claim]:
    """Train, measure and judge one item in a folder.

    The folder gets `runs/`, `figures/`, `parts/` and `claims.json`; :func:`mesaopt.report.write_report`
    makes its page. Runs and parts that an earlier session has finished are kept.

    Args:
        what: name of an item, such as "core", or of one part, such as "emergence2024/fig1".
        scale: "smoke", "small" or "paper".
        out: folder of the results, new or empty unless resumed.
        seeds: training seeds of every recipe; the scale's own numbers if not given.
        only: names of parts, in any order, besides one that `what` names; all of them if there is none.
        resume: continue what is in `out`.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Returns:
        The claims, judged.

    Raises:
        ConfigError: there is no such item, part or scale, seeds is less than 1, or there is no choice of
            seeds or parts.
        RunError: the folder, a checkpoint or the device does not allow it, or the disk is full.
    """
    plan = make_plan(what, scale=scale, seeds=seeds, only=only)
    resolve_device(device)
    out = files.as_path(out)
    _claim(out, plan, resume=resume)
    if files.exists(out / "DONE"):
        return read_claims(out)
    with files.only_one_process(out):
        return _reproduce_in(out, get_item(plan.what), plan, device)


def _reproduce_in(out: Path, item: Item[Any], plan: Plan, device: str) -> list[Claim]:
    started = time.perf_counter()
    parts = item.chosen(plan)
    groups = [group for t in plan.trainings for group in seed_batches(t.configs, device)]
    share = {cost.run: cost.step.seconds for cost in costs(_unfinished(plan, out), device=device)}
    stages = [
        Stage(_title(group), group[0].train.steps, sum(share.get(run_name(c), 0) for c in group))
        for group in groups
    ]
    stages += [Stage(part.name, 1, part.seconds(plan)) for part in parts]
    with ProgressDisplay(stages) as display:
        runs = _train_all(groups, out / "runs", device, display)
        _compute_all(item, plan, runs, out, display)
    finished = {part: _read_part(_file_of(part, out)) for part in parts}
    claims = [claim for results in finished.values() for claim in results.claims]
    trained = list(itertools.chain.from_iterable(runs.values()))
    index = {
        "title": item.title,
        "introduction": item.introduction,
        "figures": [name for results in finished.values() for name in results.figures],
        "headings": _headings(finished) if len(item.parts) > 1 else {},
        "runs": [_run_summary(run) for run in trained],
    }
    files.write_json(out / "figures" / "index.json", index)
    write_claims(out, claims)
    seconds = {
        "training": sum(run.seconds for run in trained),
        "measuring": sum(results.seconds for results in finished.values()),
        "this_sitting": time.perf_counter() - started,
    }
    files.write_json(out / "DONE", {name: round(value, 1) for name, value in seconds.items()})
    return claims


def _unfinished(plan: Plan, out: Path) -> Plan:
    """Give the plan without the recipes that an earlier session has trained."""
    waiting = tuple(
        training
        for training in plan.trainings
        if not all(RunFolder(out / "runs" / run_name(c)).is_done for c in training.configs)
    )
    return replace(plan, trainings=waiting)


def _claim(out: Path, plan: Plan, *, resume: bool) -> None:
    """Take a folder for a plan, or make sure that it holds this very plan."""
    settings = to_dict(plan)
    if reserve_folder(out, resume=resume):
        theirs = files.read_json(out / "config.json")
        if theirs != settings:
            different = [k for k in settings if not isinstance(theirs, dict) or k not in theirs]
            different = different or [k for k in settings if theirs[k] != settings[k]]
            raise RunError(
                f"out={str(out)!r}: holds results with other settings ({', '.join(different)} differ); "
                "give the same settings or a new folder"
            )
    else:
        files.write_json(out / "config.json", settings)
    if not files.exists(out / "meta.json"):
        files.write_json(out / "meta.json", describe())


def _run_summary(run: Run) -> dict[str, Any]:
    return {
        "name": run.path.name,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.config.train.steps,
        "batch_size": run.config.train.batch_size,
        "learning_rate": run.config.train.learning_rate,
        "test_loss": run.metrics[-1]["test_loss"],
        "seconds": run.seconds,
    }


def _title(group: Sequence[RunConfig]) -> str:
    return run_name(group[0]) if len(group) == 1 else f"{group[0].recipe}, {len(group)} seeds"


def _train_all(
    groups: Sequence[Sequence[RunConfig]], folder: Path, device: str, display: ProgressDisplay
) -> Runs:
    runs: Runs = {}
    for group in groups:
        paths = [folder / run_name(config) for config in group]
        if all(RunFolder(path).is_done for path in paths):
            display.skip(_title(group))
        else:
            display.begin(_title(group))
        trained = train_seeds(group, paths, resume=True, device=device, on_step=display.update)
        runs.setdefault(group[0].recipe, []).extend(trained)
    return runs


def _compute_all(
    item: Item[Any], plan: Plan, runs: Runs, out: Path, display: ProgressDisplay
) -> None:
    """Compute what is missing; a part is finished once its file is there, after its figures."""
    measure = functools.cache(lambda: item.measure(plan, runs))
    for part in item.chosen(plan):
        if files.exists(_file_of(part, out)):
            display.skip(part.name)
            continue
        display.begin(part.name)
        started = time.perf_counter()
        with style():
            results = part.compute(measure(), display.advance)
        seconds = time.perf_counter() - started
        for figure in results.figures:
            share = figure.seconds or seconds / len(results.figures)
            save_figure(replace(figure, seconds=share), out / "figures")
        _write_part(_file_of(part, out), results, seconds)


def _file_of(part: Part[Any], out: Path) -> Path:
    return out / "parts" / f"{part.name}.json"


def _write_part(path: Path, results: Results, seconds: float) -> None:
    value = {
        "figures": [figure.id for figure in results.figures],
        "claims": [claim.to_json() for claim in results.claims],
        "seconds": round(seconds, 2),
    }
    files.write_json(path, value)


def _read_part(path: Path) -> _Finished:
    value = files.read_json(path)
    try:
        files.check(value, {"figures": [str], "claims": [{}], "seconds": float}, str(path))
        claims = [Claim.from_json(claim) for claim in value["claims"]]
        return _Finished(figures=value["figures"], claims=claims, seconds=value["seconds"])
    except RunError as error:
        raise RunError(f"{error}; delete it and go on with --resume") from None
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is damaged: {error!r}; delete it and go on with --resume"
        raise RunError(f"{path}: {problem}") from None


def _headings(finished: dict[Part[Any], _Finished]) -> dict[str, str]:
    """What the report writes above a claim, by its id: the part that begins with it."""
    return {
        results.claims[0].id: f"{part.name} · {part.summary}"
        for part, results in finished.items()
        if results.claims
    }
