"""The command `compare`: paired differences of losses, settings that differ, and what training cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt.commands import given
from mesaopt.commands.evaluation import (
    POSITIONS,
    Scores,
    csv_rows,
    loss_to_json,
    score,
    table_rows,
    task_differences,
)
from mesaopt.config import flat, in_words, to_dict
from mesaopt.console import duration, print_csv, print_json, print_table
from mesaopt.errors import ConfigError

if TYPE_CHECKING:
    from mesaopt.analysis import InContextLoss
    from mesaopt.training import Run

_TRAINING = ("parameters", "steps", "sequences", "seconds", "train_loss", "test_loss")


@dataclass(frozen=True)
class _Compared:
    """Runs of one task, compared with one of them."""

    to: str
    """Name of that run, the first of all."""
    scores: Scores
    differences: dict[str, "InContextLoss"]
    """Loss of a run less that of the first, sequence by sequence; of all others."""
    settings: dict[str, dict[str, Any]]
    """Settings that are not the same in all runs: by setting and run."""
    training: dict[str, dict[str, float]]
    """Cost and losses of the training: by run and quantity."""


def compare(command: args.Compare) -> int:
    """Print how runs differ from the first in losses, training and settings."""
    given.check(command)
    folders = given.find_runs(_in_order(command))
    if len(folders) < 2:
        raise ConfigError("run: compare needs two or more runs; evaluate scores a single one")
    _require_one_task(folders)
    runs = given.load_runs(folders, task=command.task, model=command.model)
    compared = _compare(runs, command)
    if command.json:
        print_json(_to_json(compared))
    elif command.csv:
        print_csv(list(_csv_rows(compared)))
    else:
        for title, rows in _tables(compared):
            print_table(title, rows)
    if command.out is not None:
        _write(compared, command)
    return 0


def _in_order(command: args.Compare) -> list[Path]:
    """Return the runs, the one that the others are compared with first."""
    if command.to is None:
        return list(command.runs)
    return [command.to, *(path for path in command.runs if path != command.to)]


def _require_one_task(folders: dict[str, Path]) -> None:
    from mesaopt.training import RunFolder

    (first, folder), *others = folders.items()
    task = RunFolder(folder).config.task
    for name, folder in others:
        if lines := task_differences(RunFolder(folder).config.task, task):
            raise ConfigError(
                f"run={name!r}: is of another task than {first!r} ({'; '.join(lines)}): must be of the "
                "same; evaluate takes runs of several"
            )


def _compare(runs: dict[str, "Run"], command: args.Compare) -> _Compared:
    """Score runs and list what differs."""
    (scores,) = score(runs, command, baselines=False)
    to, *others = runs
    losses = scores.losses
    return _Compared(
        to=to,
        scores=scores,
        differences={name: losses[name] - losses[to] for name in others},
        settings=_differing({name: flat(to_dict(run.config)) for name, run in runs.items()}),
        training={name: _training(run) for name, run in runs.items()},
    )


def _differing(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keep the settings that are not the same in all runs; a run may lack one."""
    names = dict.fromkeys(name for one in settings.values() for name in one)
    table = {name: {run: one.get(name) for run, one in settings.items()} for name in names}
    return {
        name: values
        for name, values in table.items()
        if any(value != next(iter(values.values())) for value in values.values())
    }


def _training(run: "Run") -> dict[str, float]:
    """Return what the training of a run has cost so far, and its last losses."""
    last = run.metrics[-1]
    steps = last["step"]
    train_loss = last["train_loss"]
    numbers = (
        sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        steps,
        steps * run.config.train.batch_size,
        run.seconds,
        math.nan if train_loss is None else train_loss,
        last["test_loss"],
    )
    return dict(zip(_TRAINING, numbers, strict=True))


def _tables(compared: _Compared) -> list[tuple[str, list[dict[str, str]]]]:
    """Return the titles and rows of the tables."""
    count = f"{compared.scores.num_sequences:,} test sequences"
    losses = [
        {"run": row.pop("predictor"), "mean": row.pop("mean")}
        for row in table_rows(compared.scores)
    ]
    rows = [row | _difference_row(compared, row["run"]) for row in losses]
    training = [{"run": name} | _training_row(one) for name, one in compared.training.items()]
    tables = [
        (f"in-context loss, less that of {compared.to}, {count}", rows),
        ("training", training),
    ]
    settings = [
        {"setting": name} | {run: in_words(value, longest=60) for run, value in values.items()}
        for name, values in compared.settings.items()
    ]
    return tables + ([("settings that differ", settings)] if settings else [])


def _difference_row(compared: _Compared, name: str) -> dict[str, str]:
    """Write a paired difference in cells, in all and at some positions."""
    shown = [p for p in compared.scores.losses[name].positions if p in POSITIONS]
    if name == compared.to:
        return {"difference": "", **{str(position): "" for position in shown}}
    loss = compared.differences[name]
    by_position = dict(zip(loss.positions, loss.curve.tolist(), strict=True))
    return {
        "difference": f"{loss.mean:+.4f} ± {loss.mean_error:.4f}",
        **{str(position): f"{by_position[position]:+.2g}" for position in shown},
    }


def _training_row(numbers: dict[str, float]) -> dict[str, str]:
    def loss(value: float) -> str:
        return f"{value:.4f}" if math.isfinite(value) else ""

    return {
        "parameters": f"{numbers['parameters']:,}",
        "steps": f"{numbers['steps']:,}",
        "sequences": f"{numbers['sequences']:,}",
        "time": duration(numbers["seconds"]),
        "last train loss": loss(numbers["train_loss"]),
        "last test loss": loss(numbers["test_loss"]),
    }


def _to_json(compared: _Compared) -> dict[str, Any]:
    return {
        "to": compared.to,
        "task": to_dict(compared.scores.task),
        "runs": {
            name: loss_to_json(loss)
            | {"training": {key: _number(value) for key, value in compared.training[name].items()}}
            | _difference_to_json(compared.differences.get(name))
            for name, loss in compared.scores.losses.items()
        },
        "settings": compared.settings,
    }


def _difference_to_json(loss: "InContextLoss | None") -> dict[str, Any]:
    return {} if loss is None else {"difference": loss_to_json(loss)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv_rows(compared: _Compared) -> Iterator[dict[str, Any]]:
    """Give a line for each run, quantity and position; means and training have no position."""
    for name, loss in compared.scores.losses.items():
        quantities = {"loss": loss}
        if name in compared.differences:
            quantities[f"difference from {compared.to}"] = compared.differences[name]
        for quantity, values in quantities.items():
            for row in csv_rows(values):
                yield {"run": name, "quantity": quantity} | row
        for quantity, value in compared.training[name].items():
            number = {"position": "", "value": _number(value), "standard_error": ""}
            yield {"run": name, "quantity": quantity} | number


def _write(compared: _Compared, command: args.Compare) -> None:
    """Write the page or the figure."""
    from mesaopt.report import curves
    from mesaopt.report.page import Page, Table

    scores, others = compared.scores, list(compared.differences)
    panels = [
        curves.Panel("the same sequences", scores.losses),
        curves.Panel("paired differences", scores.losses, reference=compared.to),
    ]
    page = Page(
        title=f"{', '.join(others)} compared with {compared.to}",
        lead=f"{scores.num_sequences:,} test sequences of {scores.title}. ± is one standard error.",
        figure=curves.draw(panels),
        caption=curves.CAPTION,
        tables=[Table(title, rows) for title, rows in _tables(compared)],
        commands=given.lines_to_diagnose(_in_order(command), scores.runs),
    )
    given.write(page, command)
