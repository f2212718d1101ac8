"""Reproduce an item of a paper: train its runs, compute its figures, judge its claims, write the report."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.config import to_dict
from mesaopt.errors import ConfigError, RunError, suggest
from mesaopt.papers.claims import Claim, read_claims, write_claims
from mesaopt.papers.figures import save_figure
from mesaopt.papers.plan import Item, Plan, Runs
from mesaopt.papers.uncovering2023.core import CORE
from mesaopt.progress import ProgressDisplay, Stage
from mesaopt.training import (
    Run,
    RunFolder,
    StepCost,
    claim_folder,
    describe,
    resolve_device,
    step_cost,
    train,
)

ITEMS: dict[str, Item] = {item.name: item for item in (CORE,)}
"""All that can be reproduced, by name."""

_MEASURING = "measuring and drawing"
_SECONDS_PER_MEASURED_BATCH = 0.25
_PREDICTORS_PER_RUN = 5  # its last weights, some earlier ones, a compressed form


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


def get_item(name: str) -> Item:
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


def costs(plan: Plan, *, device: str = "auto") -> list[Cost]:
    """Find out what the runs of a plan cost here, by trying a few steps of each recipe.

    Args:
        plan: what would be run.
        device: where.

    Returns:
        One entry per run.
    """
    by_recipe = {t.recipe: step_cost(t.configs[0], device) for t in plan.trainings}
    return [
        Cost(run=name, steps=config.train.steps, step=by_recipe[config.recipe])
        for name, config in plan.configs.items()
    ]


def measuring_seconds(plan: Plan) -> float:
    """Guess the time to score and draw what a plan has trained."""
    return _batches(plan) * _SECONDS_PER_MEASURED_BATCH


def measuring_bytes(plan: Plan) -> int:
    """Estimate the memory of the losses that scoring keeps: float32, by sequence and position."""
    lengths = [config.task.length for config in plan.configs.values()]
    predictors = _PREDICTORS_PER_RUN * (len(lengths) + 1)
    return 4 * predictors * plan.num_sequences * max(lengths)


def reproduce(
    what: str,
    *,
    scale: str = "small",
    out: str | Path,
    seeds: int | None = None,
    resume: bool = False,
    device: str = "auto",
) -> list[Claim]:
    """Train, measure and judge one item in a folder.

    The folder gets `runs/`, `figures/` and `claims.json`; :func:`mesaopt.report.write_report` makes
    its page. What an earlier sitting has finished is kept.

    Args:
        what: name of the item, such as "core".
        scale: "smoke", "small" or "paper".
        out: folder of the results, new or empty unless resumed.
        seeds: training seeds of every recipe; the scale's own numbers if not given.
        resume: continue what is in `out`.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Returns:
        The claims, judged.

    Raises:
        ConfigError: there is no such item or scale, or seeds is less than 1.
        RunError: the folder, a checkpoint or the device does not allow it, or the disk is full.
    """
    item = get_item(what)
    plan = item.plan(scale, seeds=seeds)
    resolve_device(device)
    out = Path(out)
    _claim(out, plan, resume=resume)
    if (out / "DONE").exists():
        return read_claims(out)
    with files.only_one_process(out):
        return _reproduce_in(out, item, plan, device)


def _reproduce_in(out: Path, item: Item, plan: Plan, device: str) -> list[Claim]:
    started = time.perf_counter()
    with ProgressDisplay(_stages(plan, costs(plan, device=device))) as display:
        runs = _train_all(plan, out / "runs", device, display)
        display.begin(_MEASURING)
        results = item.compute(plan, runs, lambda batches: display.update(batches, float("nan")))
    for figure in results.figures:
        save_figure(figure, out / "figures")
    index = {
        "title": item.title,
        "introduction": item.introduction,
        "figures": [figure.id for figure in results.figures],
        "runs": [_run_summary(run) for run in itertools.chain.from_iterable(runs.values())],
    }
    files.write_json(out / "figures" / "index.json", index)
    write_claims(out, results.claims)
    training = sum(run.seconds for run in itertools.chain.from_iterable(runs.values()))
    seconds = {
        "training": round(training, 1),
        "this_sitting": round(time.perf_counter() - started, 1),
    }
    files.write_json(out / "DONE", seconds)
    return results.claims


def _claim(out: Path, plan: Plan, *, resume: bool) -> None:
    """Take a folder for a plan, or make sure that it holds this very plan."""
    settings = to_dict(plan)
    if claim_folder(out, resume=resume):
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
    if not (out / "meta.json").exists():
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


def _batches(plan: Plan) -> int:
    return -(-plan.num_sequences // 256)


def _stages(plan: Plan, costs: list[Cost]) -> list[Stage]:
    stages = [Stage(cost.run, cost.steps, cost.step.seconds) for cost in costs]
    return [*stages, Stage(_MEASURING, _batches(plan), _SECONDS_PER_MEASURED_BATCH)]


def _train_all(plan: Plan, folder: Path, device: str, display: ProgressDisplay) -> Runs:
    runs: Runs = {}
    for name, config in plan.configs.items():
        if RunFolder(folder / name).is_done:
            display.skip(name)
        else:
            display.begin(name)
        run = train(config, folder / name, resume=True, device=device, report=display.update)
        runs.setdefault(config.recipe, []).append(run)
    return runs
