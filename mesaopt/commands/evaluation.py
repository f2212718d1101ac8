"""The command `evaluate`: in-context losses of runs, and of the algorithms to compare them with."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt.commands import given
from mesaopt.commands.tokens import evaluate_tokens
from mesaopt.config import MergedAttentionConfig, TaskConfig, differences, to_dict
from mesaopt.console import print_csv, print_json, print_table
from mesaopt.errors import ConfigError

if TYPE_CHECKING:
    from mesaopt.analysis import Baseline, InContextLoss
    from mesaopt.training import Run

_TUNING_SECONDS = 3.0
BASELINES = (
    "predict zero",
    "one gradient step",
    "least squares",
    "guess",
    *(f"{n}-gram" for n in (1, 2, 3)),
    *(f"{n}-gram in context" for n in (2, 3)),
)
"""Names of what runs are compared with."""
POSITIONS = (1, 2, 5, 10, 20, 30, 40, 50, 99, 250, 500, 1000)
"""Positions that tables show."""


@dataclass
class Scores:
    """Runs of one task, and their losses on the same sequences."""

    runs: dict[str, "Run"]
    losses: dict[str, "InContextLoss"] = field(default_factory=dict)
    """Of the runs, then of the baselines."""
    baselines: dict[str, "Baseline"] = field(default_factory=dict)

    @property
    def task(self) -> TaskConfig:
        """The task; the runs may see other tokens of its sequences."""
        return next(iter(self.runs.values())).config.task

    @property
    def title(self) -> str:
        """Name the task."""
        return given.task_title(next(iter(self.runs.values())).config)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the baselines in tables and figures, with their tuned settings."""
        return {name: f"{name} {one.label}".strip() for name, one in self.baselines.items()}

    @property
    def num_sequences(self) -> int:
        """Number of test sequences."""
        return len(next(iter(self.losses.values())).losses)


def evaluate(command: args.Evaluate) -> int:
    """Print the in-context losses of runs and of the baselines."""
    given.check(command)
    folders = given.find_runs(command.runs)
    runs = given.load_runs(folders, task=command.task, model=command.model)
    if len(runs) == 1:
        runs = {given.title(run.config.recipe, run): run for run in runs.values()}
    for name in runs:
        if name in BASELINES:
            wanted = "must be another: tables name an algorithm so; rename the run"
            raise ConfigError(f"run={name!r}: {wanted}")
    if any(given.is_on_tokens(run.config.task) for run in runs.values()):
        return evaluate_tokens([group.runs for group in by_task(runs)], command)
    groups = score(runs, command, baselines=True)
    if command.json:
        several = [_group_to_json(group) for group in groups]
        print_json(several if len(runs) > 1 else _losses_to_json(groups[0]))
    elif command.csv:
        print_csv([row for group in groups for row in _csv_lines(group)])
    else:
        for group in groups:
            where = f" on {group.title}" if len(runs) > 1 else ""
            count = f"{group.num_sequences:,} test sequences"
            print_table(f"in-context loss by position{where}, {count}", table_rows(group))
    if command.out is not None:
        _write(groups, command, given.lines_to_diagnose(command.runs, runs))
    return 0


def _write(groups: list[Scores], command: args.Evaluate, commands: list[str]) -> None:
    """Write the page or the figure."""
    from mesaopt.report import curves
    from mesaopt.report.page import Page, Table

    names = [name for group in groups for name in group.runs]
    panels = [curves.Panel(group.title, group.losses, labels=group.labels) for group in groups]
    page = Page(
        title=f"In-context loss of {', '.join(names)}",
        lead=f"{groups[0].num_sequences:,} test sequences of each task. ± is one standard error.",
        figure=curves.draw(panels),
        caption=curves.CAPTION,
        tables=[Table(group.title, table_rows(group)) for group in groups],
        commands=commands,
    )
    given.write(page, command)


def score(
    runs: dict[str, "Run"], command: args.Evaluate | args.Compare, *, baselines: bool
) -> list[Scores]:
    """Score runs, those of one task on the same sequences, with a progress bar."""
    from mesaopt.analysis import Evaluation
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.workers import parallel

    groups = by_task(runs)
    evaluation = Evaluation(num_sequences=command.sequences, seed=command.seed)
    titles = [", ".join(group.runs) for group in groups]
    tuning = [Stage(f"algorithms to compare with {title}", 1, _TUNING_SECONDS) for title in titles]
    scoring = [
        Stage(f"losses of {title}", evaluation.num_batches, 0.2 * len(group.runs))
        for title, group in zip(titles, groups, strict=True)
    ]
    stages = list(zip(tuning if baselines else scoring, scoring, strict=True))
    with ProgressDisplay(list(dict.fromkeys(itertools.chain(*stages)))) as display, parallel():
        for group, (first, second) in zip(groups, stages, strict=True):
            if baselines:
                display.begin(first.name)
                group.baselines = _tuned_baselines(group)
            display.begin(second.name)
            _score(group, replace(evaluation, progress=display.update))
    return groups


def by_task(runs: dict[str, "Run"]) -> list[Scores]:
    """Sort runs by the task, whatever tokens they see of its sequences."""
    groups: list[Scores] = []
    for name, run in runs.items():
        for group in groups:
            if not task_differences(run.config.task, group.task):
                group.runs[name] = run
                break
        else:
            groups.append(Scores({name: run}))
    return groups


def task_differences(one: TaskConfig, other: TaskConfig) -> list[str]:
    """List the settings in which the sequences of two tasks differ; slots of tokens do not count."""
    return [line for line in differences(one, other) if not line.startswith("token_slots:")]


def _score(group: Scores, evaluation: Any) -> None:
    """Fill in the losses."""
    from mesaopt.analysis import in_context_loss, model_predictor
    from mesaopt.tasks import make_task

    models = {
        name: model_predictor(run.model, getattr(run.config.task, "token_slots", ()))
        for name, run in group.runs.items()
    }
    others = {name: baseline.predictor for name, baseline in group.baselines.items()}
    group.losses = in_context_loss(models | others, make_task(group.task), evaluation)


def _tuned_baselines(group: Scores) -> dict[str, "Baseline"]:
    """Tune gradient descent and least squares on the task of runs."""
    from mesaopt.analysis import tuned_baselines
    from mesaopt.tasks import make_task

    # Merged attention divides by the number of pairs: its step is one on their mean.
    merged = all(isinstance(run.config.model, MergedAttentionConfig) for run in group.runs.values())
    return tuned_baselines(make_task(group.task), objective="mean" if merged else "sum")


def table_rows(group: Scores) -> list[dict[str, str]]:
    """Return the lines of the table of one task."""
    return [
        {"predictor": group.labels.get(name, name)} | _loss_row(loss)
        for name, loss in group.losses.items()
    ]


def _loss_row(loss: "InContextLoss") -> dict[str, str]:
    by_position = zip(loss.positions, loss.curve, strict=True)
    return {
        "mean": f"{loss.mean:.4f} ± {loss.mean_error:.4f}",
        **{str(p): f"{value:.3g}" for p, value in by_position if p in POSITIONS},
    }


def _group_to_json(group: Scores) -> dict[str, Any]:
    return {"task": to_dict(group.task), "losses": _losses_to_json(group)}


def _losses_to_json(group: Scores) -> dict[str, Any]:
    settings = {name: baseline.setting for name, baseline in group.baselines.items()}
    return {n: loss_to_json(loss) | settings.get(n, {}) for n, loss in group.losses.items()}


def loss_to_json(loss: "InContextLoss") -> dict[str, Any]:
    """Return the mean and the curve."""
    return {
        "mean": loss.mean,
        "standard_error": loss.mean_error,
        "positions": list(loss.positions),
        "by_position": loss.curve.tolist(),
    }


def _csv_lines(group: Scores) -> Iterator[dict[str, Any]]:
    for name, loss in group.losses.items():
        kind = "run" if name in group.runs else "baseline"
        for row in csv_rows(loss):
            yield {"task": group.title, "predictor": name, "kind": kind} | row


def csv_rows(loss: "InContextLoss") -> Iterator[dict[str, Any]]:
    """Give a line for the mean, without a position, and one for each position."""
    yield {"position": "", "value": loss.mean, "standard_error": loss.mean_error}
    curve, errors = loss.curve.tolist(), loss.curve_error.tolist()
    for position, value, error in zip(loss.positions, curve, errors, strict=True):
        yield {"position": position, "value": value, "standard_error": error}
