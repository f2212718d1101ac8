"""Commands about runs: `train`, `evaluate`, `diagnose`, `import-released`."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt import files
from mesaopt.commands import own
from mesaopt.commands.tokens import evaluate_tokens
from mesaopt.config import (
    ContinuousMQARConfig,
    MergedAttentionConfig,
    OwnTaskConfig,
    RunConfig,
    TextConfig,
    TokenTaskConfig,
    require_count,
    to_dict,
)
from mesaopt.console import console, duration, print_json, print_line, print_table
from mesaopt.errors import ConfigError, RunError, printable

if TYPE_CHECKING:
    from mesaopt.analysis import Diagnosis, InContextLoss, Predictor
    from mesaopt.training import Run, StepCost

DIAGNOSIS_SECONDS = 20.0
"""Rough time that a diagnosis takes."""
MOST_SEEDS = 10**4
_MOST_SEQUENCES = 10**8
_POSITIONS = (1, 2, 5, 10, 20, 30, 40, 50, 99, 250, 500, 1000)


def train(command: args.Train) -> int:
    """Train seeds of a recipe, or of a task of one's own, or print what that would cost."""
    require_count("seeds", command.seeds, smallest=1, largest=MOST_SEEDS)
    configs = own.configs_of(command)
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
    print_line(f"Next: mesaopt {_next_command(runs[0])}")
    return 0


def _next_command(run: "Run") -> str:
    """Return what one may want to do with a trained run."""
    path = shlex.quote(str(run.path))
    if not isinstance(run.config.task, TokenTaskConfig):
        return f"diagnose {path}"
    writes = isinstance(run.config.task, TextConfig)
    return f"generate {path} --prompt 'def '" if writes else f"evaluate {path}"


def evaluate(command: args.Evaluate) -> int:
    """Print the in-context losses of a run and of the baselines."""
    require_count("sequences", command.sequences, smallest=1, largest=_MOST_SEQUENCES)
    from mesaopt.analysis import Evaluation, in_context_loss
    from mesaopt.tasks import make_task
    from mesaopt.workers import parallel

    run = own.load(command)
    if isinstance(run.config.task, ContinuousMQARConfig | TokenTaskConfig):
        return evaluate_tokens(run, num_sequences=command.sequences, as_json=command.json)
    with parallel():
        baselines = _tuned_baselines(run)
        predictors = {name: baseline.predictor for name, baseline in baselines.items()}
        losses = in_context_loss(
            {run.config.recipe: run.model, **predictors},
            make_task(run.config.task),
            Evaluation(num_sequences=command.sequences),
        )
    settings = {name: baseline.setting for name, baseline in baselines.items()}
    if command.json:
        print_json({n: _loss_to_json(loss) | settings.get(n, {}) for n, loss in losses.items()})
        return 0
    titles = {name: f"{name} {baseline.label}".strip() for name, baseline in baselines.items()}
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
    """Tune gradient descent and least squares on the task of a run, where it has states."""
    from mesaopt.analysis import line_search_step_size, tune_ridge
    from mesaopt.tasks import make_task
    from mesaopt.theory import gradient_descent, ridge_least_squares

    task, baselines = make_task(run.config.task), {}
    if isinstance(run.config.task, OwnTaskConfig):
        baselines["predict zero"] = _Baseline(lambda batch: 0 * batch.targets, {}, "")
        batch = task.sample(1, seed=0, step=0, split="validation")
        if batch.states is None or batch.states[:, 1:].shape != batch.targets.shape:
            return baselines
    # Merged attention divides by the number of pairs: its step is one on their mean.
    merged = isinstance(run.config.model, MergedAttentionConfig)
    objective, unit = ("mean", " / (t - 1)") if merged else ("sum", "")
    step_size = line_search_step_size(task, objective=objective)
    ridge = tune_ridge(task).value
    return baselines | {
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
    from mesaopt import zoo
    from mesaopt.report import write_diagnosis
    from mesaopt.training import load_run

    run = load_run(zoo.locate(command.path), device="cpu", step=command.step)
    name = command.path.resolve().name + ("" if command.step is None else f", step {command.step}")
    try:
        diagnosis = diagnose_run(run, name, num_sequences=command.sequences)
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


def diagnose_run(run: "Run", name: str, *, num_sequences: int = 1024) -> "Diagnosis":
    """Diagnose the model of a run, with a progress bar and as many threads as torch computes with."""
    from mesaopt import analysis
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.workers import parallel

    stage = Stage(f"diagnosis of {name}", steps=1, seconds_per_step=DIAGNOSIS_SECONDS)
    with ProgressDisplay([stage]) as display, parallel():
        display.begin(stage.name)
        return analysis.diagnose(run, num_sequences=num_sequences, on_progress=display.advance)


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
