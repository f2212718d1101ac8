"""The commands of the command line: each takes its arguments, prints, and returns the exit status.

:mod:`mesaopt.cli` parses the arguments, :mod:`mesaopt.arguments` declares them. Libraries that are slow
to load are imported by the command that needs them.
"""

import json
import shutil
import webbrowser
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mesaopt import arguments as args
from mesaopt import files, recipes
from mesaopt.config import (
    MergedAttentionConfig,
    RunConfig,
    TaskConfig,
    override,
    require_count,
    to_dict,
)
from mesaopt.console import console, duration, print_json, print_line, print_table, words
from mesaopt.errors import ConfigError, RunError, printable

if TYPE_CHECKING:
    from mesaopt.analysis import Diagnosis, InContextLoss, Predictor
    from mesaopt.papers.laboratory import Plan
    from mesaopt.papers.plan import Study
    from mesaopt.training import Run, StepCost
    from mesaopt.zoo import Entry

_DIAGNOSIS_SECONDS = 20.0
_MOST_SEEDS, _MOST_SEQUENCES = 10**4, 10**8
_POSITIONS = (1, 2, 5, 10, 20, 30, 40, 50, 99)


def run(command: args.Command) -> int:
    """Carry out a command.

    Args:
        command: its arguments.

    Returns:
        The exit status: 0, or 1 where a claim fails.

    Raises:
        MesaoptError: it cannot be carried out.
    """
    values: dict[str, Any] = {f.name: getattr(command, f.name) for f in fields(command)}
    paths = {name: path for name, path in values.items() if isinstance(path, Path)}
    values |= {name: files.as_path(path) for name, path in paths.items()}
    command = type(command)(**values)
    match command:
        case args.List():
            return list_names(command)
        case args.Doctor():
            return doctor(command)
        case args.Demo():
            return demo(command)
        case args.Train():
            return train(command)
        case args.Evaluate():
            return evaluate(command)
        case args.Diagnose():
            return diagnose(command)
        case args.Reproduce():
            return reproduce(command)
        case args.ImportReleased():
            return import_released(command)
        case args.Claims():
            return show_claims(command)
        case args.Report():
            return write_report(command)
        case args.Bench():
            return bench(command)


def list_names(command: args.List) -> int:
    """Print recipes, trained models, figures and tasks."""
    lists: dict[str, list[dict[str, str]]] = {}
    if command.what in ("all", "recipes"):
        lists["recipes"] = [
            {"name": name, "summary": recipe.summary} for name, recipe in recipes.RECIPES.items()
        ]
    if command.what in ("all", "zoo"):
        from mesaopt import zoo

        lists["zoo"] = [_model_row(zoo.get(name)) for name in zoo.names()]
    if command.what in ("all", "figures"):
        from mesaopt.papers.reproduce import STUDIES, get_study

        lists["figures"] = [row for name in STUDIES for row in _names(get_study(name))]
    if command.what in ("all", "tasks"):
        lists["tasks"] = [
            {"name": task.kind, "summary": (task.__doc__ or "").splitlines()[0]}
            for task in get_args(TaskConfig)
        ]
    if command.json:
        print_json(lists)
        return 0
    for title, rows in lists.items():
        print_table(title, rows)
    return 0


def _model_row(entry: "Entry") -> dict[str, str]:
    """Give the row of a trained model of the package."""
    published = entry.published_loss
    return {
        "name": f"zoo:{entry.recipe}",
        "steps": f"{entry.steps[-1]:,}",
        "loss": f"{entry.loss.value:.4f} ± {entry.loss.error:.4f}",
        "published": "" if published is None else f"{published:.4f}",
        "checkpoints": str(len(entry.steps)),
        "kB": f"{entry.num_bytes / 1000:,.0f}",
    }


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


def doctor(command: args.Doctor) -> int:
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
    if command.json:
        print_json(facts)
        return 0
    rows = [{"": name.replace("_", " "), "here": words(value)} for name, value in facts.items()]
    print_table("this machine", rows)
    if free < 1:
        print("Less than 1 GiB of disk is free: runs may stop for lack of it.")
    return 0


def demo(command: args.Demo) -> int:
    """Reproduce the main result from trained models, diagnose one, and show the page."""
    from mesaopt import analysis, zoo
    from mesaopt.papers import reproduce as papers
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.report import write_diagnosis, write_report
    from mesaopt.tasks import make_task
    from mesaopt.workers import parallel

    study, runs = papers.get_study("core"), None if command.train else zoo.FOLDER
    plan = papers.make_plan("core", scale="small")
    seconds = _DIAGNOSIS_SECONDS + sum(figure.seconds[plan.scale] for figure in study.figures)
    if runs is None:
        seconds += sum(cost.seconds for cost in papers.costs(plan, device="cpu"))
    models = "Training and measuring three models" if command.train else "Measuring three models"
    print_line(f"{models}: about {duration(seconds)} here, once. Results go to {command.out}.")
    papers.reproduce("core", out=command.out, resume=True, device="cpu", runs=runs)
    run, stage = zoo.load("lsa-1"), Stage("diagnosis of lsa-1", 1, _DIAGNOSIS_SECONDS)
    with ProgressDisplay([stage]) as display, parallel():
        display.begin(stage.name)
        task = make_task(run.config.task)
        diagnosis = analysis.diagnose(run.model, task, on_progress=display.advance)
    write_diagnosis(diagnosis, command.out / "diagnosis.html", name="lsa-1")
    page = write_report(command.out)
    print_line(diagnosis.verdict.sentence)
    print_line(f"Report: {page}")
    print_line(f"Diagnosis of lsa-1: {command.out / 'diagnosis.html'}")
    if not command.no_open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def train(command: args.Train) -> int:
    """Train seeds of a recipe, or print what that would cost."""
    require_count("seeds", command.seeds, smallest=1, largest=_MOST_SEEDS)
    seeds = range(command.seed, command.seed + command.seeds)
    configs = [override(recipes.get(command.recipe, seed=seed), command.set) for seed in seeds]
    from mesaopt.training import RunFolder, run_name, seed_batches, step_cost

    groups = seed_batches(configs, command.device)
    folder = command.out or Path("runs")
    paths = {config.seed: folder / run_name(config) for config in configs}
    if command.seeds == 1 and command.out is not None:
        paths = {command.seed: command.out}
    if not command.dry_run:
        RunFolder.check_all([paths[c.seed] for c in configs], configs, resume=command.resume)
    cost = step_cost(configs[0], command.device, seeds=[config.seed for config in groups[0]])
    if command.dry_run:
        return _print_training_cost(configs, cost)
    return _train_groups(groups, paths, cost.seconds, command.device)


def _print_training_cost(configs: list[RunConfig], cost: "StepCost") -> int:
    from mesaopt.training import peak_memory_bytes

    steps = configs[0].train.steps
    print(json.dumps(to_dict(configs[0]), indent=2))
    if len(configs) > 1:
        print(f"seeds       {', '.join(str(config.seed) for config in configs)}")
    print(f"parameters  {cost.parameters:,}")
    print(f"steps       {steps:,}")
    print(f"time        about {duration(cost.seconds * steps * len(configs))} here")
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
        loss = f"test loss {last['test_loss']:.4f} after {last['step']} steps"
        print_line(f"{loss}, {run.seconds:.0f} s: {run.path}")
    return 0


def evaluate(command: args.Evaluate) -> int:
    """Print the in-context losses of a run and of the baselines."""
    require_count("sequences", command.sequences, smallest=1, largest=_MOST_SEQUENCES)
    from mesaopt import zoo
    from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
    from mesaopt.tasks import make_task
    from mesaopt.training import load_run
    from mesaopt.workers import parallel

    run = load_run(zoo.locate(command.path), device="cpu")
    with parallel():
        baselines = _tuned_baselines(run)
        predictors = {name: baseline.predictor for name, baseline in baselines.items()}
        model = model_predictor(run.model, run.config.task.token_slots)
        losses = in_context_loss(
            {run.config.recipe: model, **predictors},
            make_task(run.config.task),
            Evaluation(num_sequences=command.sequences),
        )
    settings = {name: baseline.setting for name, baseline in baselines.items()}
    if command.json:
        print_json({n: _loss_to_json(loss) | settings.get(n, {}) for n, loss in losses.items()})
        return 0
    titles = {name: f"{name} {baseline.label}" for name, baseline in baselines.items()}
    rows = [{"predictor": titles.get(n, n)} | _loss_row(loss) for n, loss in losses.items()]
    count = len(next(iter(losses.values())).losses)
    print_table(f"in-context loss by position, {count:,} test sequences", rows)
    return 0


@dataclass(frozen=True)
class _Baseline:
    """A predictor to compare a run with, and its tuned setting."""

    predictor: "Predictor"
    setting: dict[str, float]
    label: str


def _tuned_baselines(run: "Run") -> dict[str, _Baseline]:
    """Tune gradient descent and least squares on the task of a run."""
    from mesaopt.analysis import line_search_step_size, tune_ridge
    from mesaopt.tasks import make_task
    from mesaopt.theory import gradient_descent, ridge_least_squares

    task = make_task(run.config.task)
    # Merged attention divides by the number of pairs: its step is one on their mean.
    merged = isinstance(run.config.model, MergedAttentionConfig)
    objective, unit = ("mean", " / (t - 1)") if merged else ("sum", "")
    step_size = line_search_step_size(task, objective=objective)
    ridge = tune_ridge(task).value
    return {
        "one gradient step": _Baseline(
            lambda batch: gradient_descent(
                batch.observed, step_size=step_size, objective=objective
            ),
            {"step_size": step_size},
            f"of {step_size:.4f}{unit}",
        ),
        "least squares": _Baseline(
            lambda batch: ridge_least_squares(batch.observed, ridge=ridge),
            {"ridge": ridge},
            f"with ridge {ridge:.2g}",
        ),
    }


def _loss_to_json(loss: "InContextLoss") -> dict[str, Any]:
    return {
        "mean": loss.mean,
        "standard_error": loss.mean_error,
        "positions": list(loss.positions),
        "by_position": loss.curve.tolist(),
    }


def _loss_row(loss: "InContextLoss") -> dict[str, str]:
    by_position = zip(loss.positions, loss.curve, strict=True)
    return {
        "mean": f"{loss.mean:.4f} ± {loss.mean_error:.4f}",
        **{str(p): f"{value:.3g}" for p, value in by_position if p in _POSITIONS},
    }


def diagnose(command: args.Diagnose) -> int:
    """Print whether there is a mesa-optimizer in a run, and write the page if asked."""
    require_count("sequences", command.sequences, smallest=1, largest=_MOST_SEQUENCES)
    if command.out is not None and files.is_folder(command.out):
        raise ConfigError(f"out={str(command.out)!r}: is a folder; give a file")
    if command.out is not None:
        files.require_writable(command.out)
    from mesaopt import analysis, zoo
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.report import write_diagnosis
    from mesaopt.tasks import make_task
    from mesaopt.training import load_run
    from mesaopt.workers import parallel

    run = load_run(zoo.locate(command.path), device="cpu", step=command.step)
    name = command.path.resolve().name + ("" if command.step is None else f", step {command.step}")
    stage = Stage(f"diagnosis of {name}", steps=1, seconds_per_step=_DIAGNOSIS_SECONDS)
    with ProgressDisplay([stage]) as display, parallel():
        display.begin(stage.name)
        try:
            diagnosis = analysis.diagnose(
                run.model,
                make_task(run.config.task),
                num_sequences=command.sequences,
                on_progress=display.advance,
            )
        except ValueError as error:
            raise RunError(f"run={str(command.path)!r}: {error}") from error
    # The page comes last: where it cannot be written, the answer is not lost.
    if command.json:
        print_json(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis, name)
    if command.out is not None:
        write_diagnosis(diagnosis, command.out, name=name)
        if not command.json:
            print_line(f"Page: {command.out}")
    return 0


def print_diagnosis(diagnosis: "Diagnosis", name: str) -> None:
    """Print a diagnosis in sections, the answer first."""
    from mesaopt.report.diagnosis import ANSWERS, NOTE, QUESTION, sections

    screen = console()
    verdict = diagnosis.verdict
    color = {"yes": "green", "no": "red", "unclear": "yellow"}[verdict.answer]
    screen.print(QUESTION.format(printable(name)), style="bold", markup=False)
    screen.print(ANSWERS[verdict.answer], style=f"bold {color}", end=" ")
    screen.print(f"{verdict.sentence}\n", markup=False)
    for section in sections(diagnosis):
        screen.print(section.title, style="bold")
        screen.print(section.summary, markup=False)
        if section.rows:
            print_table(None, section.rows)
        else:
            screen.print()
    screen.print(NOTE, style="dim", markup=False)


def reproduce(command: args.Reproduce) -> int:
    """Reproduce a study and print its claims, or print what it would cost."""
    from mesaopt.papers import reproduce as papers
    from mesaopt.report import write_report

    only = command.only.replace(",", " ").split()
    if command.seeds is not None:
        require_count("seeds", command.seeds, smallest=1, largest=_MOST_SEEDS)
    runs = _given_runs(command)
    if command.dry_run:
        plan = papers.make_plan(command.what, scale=command.scale, seeds=command.seeds, only=only)
        plan = plan if runs is None else replace(plan, trainings=())
        return _print_costs(plan, command.device)
    papers.reproduce(
        command.what,
        scale=command.scale,
        out=command.out,
        seeds=command.seeds,
        only=only,
        resume=command.resume,
        device=command.device,
        runs=runs,
    )
    page = write_report(command.out)
    status = print_claims(command.out)
    print_line(f"Report: {page}")
    return status


def _given_runs(command: args.Reproduce) -> Path | None:
    """Give the folder of runs that are measured in place of training any."""
    if not command.from_zoo:
        return command.runs
    if command.runs is not None:
        raise ConfigError(f"from={str(command.runs)!r}: cannot be given with --from-zoo")
    from mesaopt import zoo

    for name in zoo.names():
        zoo.get(name).verify()
    return zoo.FOLDER


def _print_costs(plan: "Plan", device: str) -> int:
    from mesaopt.papers.reproduce import get_study
    from mesaopt.training import peak_memory_bytes, resolve_device

    resolve_device(device)
    study = get_study(plan.what)
    figures = study.chosen(plan)
    training = _print_trainings(plan, device)
    times = [figure.seconds[plan.scale] for figure in figures]
    rows = [
        {"figure": figure.name, "summary": figure.summary, "time": f"about {duration(seconds)}"}
        for figure, seconds in zip(figures, times, strict=True)
    ]
    print_table(f"{plan.what} at scale {plan.scale}: figures", rows)
    memory = peak_memory_bytes() + study.memory(plan)
    print(f"time in all  about {duration(training + sum(times))} here")
    print(f"memory       about {memory / 2**20:.0f} MiB here")
    return 0


def _print_trainings(plan: "Plan", device: str) -> float:
    """Print what each run costs as soon as it is known, and give the sum of the times."""
    from mesaopt.papers.reproduce import costs

    if not plan.configs:
        return 0.0
    width, total = max(map(len, plan.configs)), 0.0
    print_line(f"{plan.what} at scale {plan.scale}: training")
    columns = ("parameters", "steps", "ms a step here", "time")
    print_line("  ".join(["run".ljust(width), *columns]))
    for cost in costs(plan, device=device):
        numbers = (
            f"{cost.step.parameters:,}",
            f"{cost.steps:,}",
            f"{cost.step.seconds * 1000:.1f}",
            duration(cost.seconds),
        )
        cells = (one.ljust(len(name)) for one, name in zip(numbers, columns, strict=True))
        print_line("  ".join([cost.run.ljust(width), *cells]).rstrip())
        total += cost.seconds
    print_line("")
    return total


def import_released(command: args.ImportReleased) -> int:
    """Write run folders of the released weights, and print their losses beside the stored ones."""
    from mesaopt import released
    from mesaopt.progress import ProgressDisplay, Stage

    with ProgressDisplay([Stage(network.run, 1, 3.0) for network in released.RELEASED]) as display:
        runs = released.import_released(
            command.clone, command.out, overwrite=command.overwrite, on_run=display.begin
        )
    if command.json:
        print_json([run.to_json() for run in runs])
        return 0
    title = f"released networks in {command.out}; in no clone: {', '.join(released.MISSING)}"
    print_table(title, [run.describe() for run in runs])
    return 0


def show_claims(command: args.Claims) -> int:
    """Print the claims of a folder; the status says whether all hold."""
    from mesaopt.papers.claims import read_claims

    if not command.json:
        return print_claims(command.folder)
    claims = read_claims(command.folder)
    print_json([claim.to_json() for claim in claims])
    return 0 if all(claim.passed for claim in claims) else 1


def print_claims(folder: Path) -> int:
    """Print the claims of a folder as a table; the status says whether all hold."""
    from mesaopt.papers.claims import read_claims

    claims = read_claims(folder)
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
        print_table("claims", rows)
    passed = sum(claim.passed for claim in claims)
    print(f"{passed} of {len(claims)} claims hold.")
    return 0 if passed == len(claims) else 1


def write_report(command: args.Report) -> int:
    """Write the report of a folder, and show it if asked."""
    from mesaopt import report

    if not files.is_folder(command.folder):
        raise RunError(f"folder={str(command.folder)!r}: there is no such folder")
    if command.redraw:
        from mesaopt.papers.reproduce import redraw

        redraw(command.folder)
    page = report.write_report(command.folder)
    print_line(page)
    if command.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def bench(command: args.Bench) -> int:
    """Measure a training step, or the operators."""
    return _bench_operators(command) if command.what == "ops" else _bench_training(command)


def _bench_training(command: args.Bench) -> int:
    from mesaopt.bench.official import OfficialCode
    from mesaopt.bench.train import measure_training_step

    if command.threads is not None:
        require_count("threads", command.threads, smallest=1, largest=4096)
    if (command.official is None) != (command.python is None):
        raise ConfigError("official: must be given with python, and python with official")
    official = None
    if command.official is not None and command.python is not None:
        official = OfficialCode(clone=command.official, python=command.python)
    result = measure_training_step(
        command.recipe, repeats=command.repeats, threads=command.threads, official=official
    )
    if command.json:
        print_json(asdict(result))
        return 0
    rows = [{"": name, "here": value} for name, value in result.describe()]
    print_table(f"training step of {result.recipe}", rows)
    return 0


def _bench_operators(command: args.Bench) -> int:
    from mesaopt.bench.ops import measure_operators

    result = measure_operators(quick=command.quick)
    if command.json:
        print_json(result.to_json())
        return 0
    for title, rows in result.tables():
        print_table(title, rows)
    if reason := result.flash_linear_attention_skipped:
        print(f"flash-linear-attention: skipped, {reason}")
    return 0
