"""What the commands of the command line do; :mod:`mesaopt.cli` parses them."""

import json
import shutil
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from mesaopt import recipes
from mesaopt.config import MergedAttentionConfig, RunConfig, TaskConfig, override, to_dict
from mesaopt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mesaopt.analysis import Diagnosis
    from mesaopt.papers.laboratory import Plan
    from mesaopt.papers.plan import Study
    from mesaopt.training import StepCost

_POSITIONS = (1, 2, 5, 10, 20, 30, 40, 50, 99)


def list_things(what: str, *, as_json: bool) -> int:
    """Print recipes, items to reproduce and tasks."""
    from mesaopt.papers.reproduce import STUDIES

    found: dict[str, list[dict[str, str]]] = {}
    if what in ("all", "recipes"):
        found["recipes"] = [
            {"name": name, "summary": recipe.summary} for name, recipe in recipes.RECIPES.items()
        ]
    if what in ("all", "figures"):
        found["figures"] = [row for study in STUDIES.values() for row in _names(study)]
    if what in ("all", "tasks"):
        found["tasks"] = [
            {"name": task.kind, "summary": (task.__doc__ or "").splitlines()[0]}
            for task in get_args(TaskConfig)
        ]
    if as_json:
        return _print_json(found)
    for title, rows in found.items():
        _print_table(title, rows)
    return 0


def _names(study: "Study[Any]") -> list[dict[str, str]]:
    """Give a row for a study and one for each of its figures."""
    scales = ", ".join(study.plans)
    return [
        {"name": study.name, "summary": study.summary, "scales": scales},
        *(
            {"name": f"{study.name}/{figure.name}", "summary": figure.summary, "scales": ""}
            for figure in study.figures
        ),
    ]


def doctor(*, as_json: bool) -> int:
    """Print what this machine has and does."""
    import torch

    from mesaopt.bench.train import matmul_flops
    from mesaopt.training import describe

    facts = describe()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    facts |= {
        "matrix product, float32": f"{matmul_flops(torch.float32) / 1e9:.0f} GFLOP/s",
        "matrix product, float64": f"{matmul_flops(torch.float64) / 1e9:.0f} GFLOP/s",
        "free disk here": f"{free:.1f} GiB",
        "device that auto means": "cuda" if facts["gpus"] else "cpu",
    }
    del facts["started"], facts["command"]
    if as_json:
        return _print_json(facts)
    rows = [{"": name.replace("_", " "), "here": _words(value)} for name, value in facts.items()]
    _print_table("this machine", rows)
    if free < 1:
        print("Less than 1 GiB of disk is free: runs may stop for lack of it.")
    return 0


def train_recipe(
    name: str,
    *,
    out: Path | None,
    seed: int,
    seeds: int,
    changes: Sequence[str],
    device: str,
    resume: bool,
    dry_run: bool,
) -> int:
    """Train seeds of a recipe, or print what that would cost."""
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: must be 1 or greater")
    configs = [override(recipes.get(name, seed=seed + i), changes) for i in range(seeds)]
    from mesaopt.training import RunFolder, run_name, seed_batches, step_cost

    groups = seed_batches(configs, device)
    if seeds == 1:
        paths = {seed: out or Path("runs") / f"{name}-seed{seed}"}
    else:
        paths = {c.seed: (out or Path("runs")) / run_name(c) for c in configs}
    if not dry_run:
        RunFolder.open_all([paths[c.seed] for c in configs], configs, resume=resume)
    cost = step_cost(configs[0], device, seeds=[config.seed for config in groups[0]])
    if dry_run:
        return _print_training_cost(configs, cost)
    return _train_groups(groups, paths, cost.seconds, device)


def _print_training_cost(configs: list[RunConfig], cost: "StepCost") -> int:
    from mesaopt.training import peak_memory_bytes

    steps = configs[0].train.steps
    print(json.dumps(to_dict(configs[0]), indent=2))
    if len(configs) > 1:
        print(f"seeds       {', '.join(str(config.seed) for config in configs)}")
    print(f"parameters  {cost.parameters:,}")
    print(f"steps       {steps:,}")
    print(f"time        about {_duration(cost.seconds * steps * len(configs))} here")
    print(f"memory      about {peak_memory_bytes() / 2**20:.0f} MiB here")
    return 0


def _train_groups(
    groups: list[list[RunConfig]], paths: dict[int, Path], seconds: float, device: str
) -> int:
    """Train each group side by side, one group after the other."""
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.training import train_seeds

    titles = [f"{g[0].recipe}, seed {', '.join(str(c.seed) for c in g)}" for g in groups]
    stages = [
        Stage(title, group[0].train.steps, seconds * len(group))
        for title, group in zip(titles, groups, strict=True)
    ]
    runs = []
    with ProgressDisplay(stages) as display:
        for title, group in zip(titles, groups, strict=True):
            display.begin(title)
            folders = [paths[config.seed] for config in group]
            runs += train_seeds(group, folders, resume=True, device=device, on_step=display.update)
    for run in runs:
        last = run.metrics[-1]
        told = f"test loss {last['test_loss']:.4f} after {last['step']} steps, {run.seconds:.0f} s"
        print(f"{told}: {run.path}")
    return 0


def evaluate(path: Path, *, sequences: int, as_json: bool) -> int:
    """Print the in-context losses of a run and of the baselines."""
    if sequences < 1:
        raise ConfigError(f"sequences={sequences}: must be 1 or greater")
    from mesaopt.analysis import (
        in_context_loss,
        line_search_step_size,
        model_predictor,
        tune_ridge,
    )
    from mesaopt.tasks import make_task
    from mesaopt.theory import gradient_descent, ridge_least_squares
    from mesaopt.training import load_run

    run = load_run(path, device="cpu")
    task = make_task(run.config.task)
    # Merged attention divides by the number of pairs: its step is one on their mean.
    merged = isinstance(run.config.model, MergedAttentionConfig)
    objective, unit = ("mean", " / (t - 1)") if merged else ("sum", "")
    step_size = line_search_step_size(task, objective=objective)
    ridge = tune_ridge(task).value
    predictors = {
        run.config.recipe: model_predictor(run.model, run.config.task.token_slots),
        "one gradient step": lambda batch: gradient_descent(
            batch.observed, step_size=step_size, objective=objective
        ),
        "least squares": lambda batch: ridge_least_squares(batch.observed, ridge=ridge),
    }
    tuned = {
        "one gradient step": ("step_size", step_size, f"of {step_size:.4f}{unit}"),
        "least squares": ("ridge", ridge, f"with ridge {ridge:.2g}"),
    }
    losses = in_context_loss(predictors, task, num_sequences=sequences)
    if as_json:
        return _print_json(
            {
                name: {
                    "mean": loss.mean,
                    "standard_error": loss.mean_error,
                    "positions": list(loss.positions),
                    "by_position": loss.curve.tolist(),
                    **({tuned[name][0]: tuned[name][1]} if name in tuned else {}),
                }
                for name, loss in losses.items()
            }
        )
    rows = [
        {
            "predictor": f"{name} {tuned[name][2]}" if name in tuned else name,
            "mean": f"{loss.mean:.4f} ± {loss.mean_error:.4f}",
            **{
                str(position): f"{value:.3g}"
                for position, value in zip(loss.positions, loss.curve, strict=True)
                if position in _POSITIONS
            },
        }
        for name, loss in losses.items()
    ]
    count = len(next(iter(losses.values())).losses)
    _print_table(f"in-context loss by position, {count:,} test sequences", rows)
    return 0


def diagnose(
    path: Path, *, step: int | None, sequences: int, out: Path | None, as_json: bool
) -> int:
    """Print whether there is a mesa-optimizer in a run, and write the page if asked."""
    if sequences < 1:
        raise ConfigError(f"sequences={sequences}: must be 1 or greater")
    if out is not None and out.is_dir():
        raise ConfigError(f"out={str(out)!r}: is a folder; give a file")
    from mesaopt import analysis
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.report import write_diagnosis
    from mesaopt.tasks import make_task
    from mesaopt.training import load_run

    run = load_run(path, device="cpu", step=step)
    name = path.resolve().name + ("" if step is None else f", step {step}")
    stage = Stage(f"diagnosis of {name}", steps=1, seconds_per_step=20.0)
    with ProgressDisplay([stage]) as display:
        display.begin(stage.name)
        try:
            found = analysis.diagnose(
                run.model,
                make_task(run.config.task),
                num_sequences=sequences,
                report=display.advance,
            )
        except ValueError as error:
            raise RunError(f"run={str(path)!r}: {error}") from error
    if out is not None:
        write_diagnosis(found, out, name=name)
    if as_json:
        return _print_json(found.to_json())
    _print_diagnosis(found, name)
    if out is not None:
        print(f"Page: {out}")
    return 0


def _print_diagnosis(found: "Diagnosis", name: str) -> None:
    from mesaopt.report.diagnosis import ANSWERS, NOTE, QUESTION, sections

    console = _console()
    verdict = found.verdict
    color = {"yes": "green", "no": "red", "unclear": "yellow"}[verdict.answer]
    console.print(QUESTION.format(name), style="bold", markup=False)
    console.print(ANSWERS[verdict.answer], style=f"bold {color}", end=" ")
    console.print(f"{verdict.sentence}\n", markup=False)
    for section in sections(found):
        console.print(section.title, style="bold")
        console.print(section.says, markup=False)
        if section.rows:
            _print_table(None, section.rows)
        else:
            console.print()
    console.print(NOTE, style="dim", markup=False)


def reproduce_item(
    what: str,
    *,
    scale: str,
    out: Path,
    seeds: int | None,
    only: Sequence[str],
    device: str,
    resume: bool,
    dry_run: bool,
) -> int:
    """Reproduce an item and print its claims, or print what it would cost."""
    from mesaopt.papers.reproduce import make_plan, reproduce
    from mesaopt.report import write_report

    if dry_run:
        return _print_costs(make_plan(what, scale=scale, seeds=seeds, only=only), device)
    reproduce(what, scale=scale, out=out, seeds=seeds, only=only, resume=resume, device=device)
    page = write_report(out)
    status = show_claims(out, as_json=False)
    print(f"Report: {page}")
    return status


def _print_costs(plan: "Plan", device: str) -> int:
    from mesaopt.papers.reproduce import costs, get_study
    from mesaopt.training import peak_memory_bytes, resolve_device

    resolve_device(device)
    study = get_study(plan.what)
    figures = study.chosen(plan)
    trainings = costs(plan, device=device)
    if trainings:
        rows = [
            {
                "run": cost.run,
                "parameters": f"{cost.step.parameters:,}",
                "steps": f"{cost.steps:,}",
                "ms a step here": f"{cost.step.seconds * 1000:.1f}",
                "time": _duration(cost.seconds),
            }
            for cost in trainings
        ]
        _print_table(f"{plan.what} at scale {plan.scale}: training", rows)
    times = [figure.seconds[plan.scale] for figure in figures]
    rows = [
        {"figure": figure.name, "summary": figure.summary, "time": f"about {_duration(seconds)}"}
        for figure, seconds in zip(figures, times, strict=True)
    ]
    _print_table(f"{plan.what} at scale {plan.scale}: figures", rows)
    seconds = sum(cost.seconds for cost in trainings) + sum(times)
    memory = peak_memory_bytes() + study.memory(plan)
    print(f"time in all  about {_duration(seconds)} here")
    print(f"memory       about {memory / 2**20:.0f} MiB here")
    return 0


def show_claims(folder: Path, *, as_json: bool) -> int:
    """Print the claims of a folder; the status says whether all hold."""
    from mesaopt.papers.claims import read_claims

    claims = read_claims(folder)
    passed = sum(claim.passed for claim in claims)
    status = 0 if passed == len(claims) else 1
    if as_json:
        _print_json([claim.to_json() for claim in claims])
        return status
    rows = [
        {
            "": "holds" if claim.passed else "FAILS",
            "claim": f"{claim.statement} ({claim.figure})",
            "measured": f"{claim.value:.4g}",
            "passes": claim.threshold,
        }
        for claim in claims
    ]
    if rows:
        _print_table("claims", rows)
    print(f"{passed} of {len(claims)} claims hold.")
    return status


def report(folder: Path, *, show: bool) -> int:
    """Write the report of a folder, and show it if asked."""
    from mesaopt.report import write_report

    if not folder.is_dir():
        raise RunError(f"folder={str(folder)!r}: there is no such folder")
    page = write_report(folder)
    print(page)
    if show:
        webbrowser.open(page.resolve().as_uri())
    return 0


def bench_train(recipe: str, *, repeats: int, threads: int | None, as_json: bool) -> int:
    """Measure a training step."""
    from mesaopt.bench.train import measure_training_step

    result = measure_training_step(recipe, repeats=repeats, threads=threads)
    if as_json:
        return _print_json(asdict(result))
    rows = [{"": name, "here": value} for name, value in result.describe()]
    _print_table(f"training step of {result.recipe}", rows)
    return 0


def bench_ops(*, quick: bool, as_json: bool) -> int:
    """Measure the operators."""
    from mesaopt.bench.ops import measure_operators

    report = measure_operators(quick=quick)
    if as_json:
        return _print_json(report.to_json())
    for title, rows in report.tables():
        _print_table(title, rows)
    if report.peer_skipped:
        print(f"peer: skipped, {report.peer_skipped}")
    return 0


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _print_table(title: str | None, rows: list[dict[str, str]]) -> None:
    """Print rows as a table as wide as the terminal, or as wide as it needs where there is none."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(rows[0]):
        table.add_column(name, overflow="fold", no_wrap=index == 0, header_style="dim")
    for row in rows:
        table.add_row(*row.values())
    console = _console()
    console.print(table, markup=False)
    console.print()


def _console() -> Console:
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console.width = 120
    return console


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
