"""The command `diagnose`: is there a mesa-optimizer in these runs?"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt.commands import given
from mesaopt.console import console, print_csv, print_json, print_table
from mesaopt.errors import RunError, printable

if TYPE_CHECKING:
    from mesaopt.analysis import Diagnosis
    from mesaopt.training import Run

DIAGNOSIS_SECONDS = 20.0
"""Rough time that a diagnosis takes."""


def diagnose(command: args.Diagnose) -> int:
    """Print whether there is a mesa-optimizer in runs, and write the page if asked."""
    given.check(command)
    folders = given.find_runs(command.runs)
    runs = given.load_runs(folders, task=command.task, model=command.model, step=command.step)
    suffix = "" if command.step is None else f", step {command.step}"
    runs = {f"{name}{suffix}": run for name, run in runs.items()}
    diagnoses = diagnose_runs(runs, num_sequences=command.sequences, seed=command.seed)
    # The page comes last: where it cannot be written, the answer is not lost.
    _print(diagnoses, command)
    if command.out is not None:
        _write(diagnoses, command.out, given.lines_to_diagnose(command.runs, runs))
        given.say_where(command)
    return 0


def diagnose_runs(
    runs: dict[str, "Run"], *, num_sequences: int = 1024, seed: int = 0
) -> dict[str, "Diagnosis"]:
    """Diagnose the models of runs, with a progress bar and as many threads as torch computes with."""
    from mesaopt import analysis
    from mesaopt.analysis.diagnosis.regression import regression_of
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.tasks import make_task
    from mesaopt.workers import parallel

    for name, run in runs.items():
        with _naming(name):
            regression_of(make_task(run.config.task))  # or says why not, before any work
    stages = {name: Stage(f"diagnosis of {name}", 1, DIAGNOSIS_SECONDS) for name in runs}
    diagnoses = {}
    with ProgressDisplay(list(stages.values())) as display, parallel():
        for name, run in runs.items():
            display.begin(stages[name].name)
            with _naming(name):
                diagnoses[name] = analysis.diagnose(
                    run, num_sequences=num_sequences, seed=seed, progress=display.update
                )
    return diagnoses


@contextlib.contextmanager
def _naming(run: str) -> Iterator[None]:
    """Name the run in the error about a model or a task that cannot be diagnosed."""
    try:
        yield
    except ValueError as error:
        raise RunError(f"run={run!r}: {error}") from error


def _print(diagnoses: dict[str, "Diagnosis"], command: args.Diagnose) -> None:
    """Print one diagnosis in full, or a line for each of several."""
    (name, first), *others = diagnoses.items()
    if command.json and not others:
        print_json(first.to_json())
    elif command.json:
        print_json({name: diagnosis.to_json() for name, diagnosis in diagnoses.items()})
    elif command.csv:
        print_csv([row for name, one in diagnoses.items() for row in _csv_rows(name, one)])
    elif not others:
        print_diagnosis(first, name)
    else:
        _print_several(diagnoses)


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


def _print_several(diagnoses: dict[str, "Diagnosis"]) -> None:
    """Print a line for each diagnosis."""
    from mesaopt.report.diagnoses import NOTE, TITLE, rows

    print_table(TITLE, rows(diagnoses))
    console().print(NOTE, style="dim", markup=False)


def _write(diagnoses: dict[str, "Diagnosis"], out: Path, commands: list[str]) -> None:
    """Write the page or the figure of one diagnosis or of several."""
    from mesaopt import report
    from mesaopt.report.diagnoses import page_of
    from mesaopt.report.diagnosis_page import draw
    from mesaopt.report.page import save_figure, write

    (name, first), *others = diagnoses.items()
    if others:
        write(page_of(diagnoses, commands), out)
    elif out.suffix.lower() == ".html":
        report.write_diagnosis(first, out, name=name)
    else:
        save_figure(draw(first), out)


def _csv_rows(name: str, diagnosis: "Diagnosis") -> Iterator[dict[str, Any]]:
    """Give three lines for each algorithm: its share of predictions and of errors, and its loss."""
    for one in diagnosis.agreements:
        who = {
            "run": name,
            "answer": diagnosis.verdict.answer,
            "algorithm": one.candidate,
            "optimizer": one.kind == "optimizer",
            "nearest": one.candidate == diagnosis.nearest,
        }
        for measure in ("predictions", "errors"):
            share = getattr(one, measure)
            yield who | {"measure": measure, "value": share.value, "standard_error": share.error}
        yield who | {"measure": "loss", "value": one.loss, "standard_error": ""}
