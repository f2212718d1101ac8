"""Runs that are given on the command line: their names, their models, and what is written about them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt import files
from mesaopt.commands.own import find_modules_here
from mesaopt.config import (
    ContinuousMQARConfig,
    GeneratedTaskConfig,
    OwnModelConfig,
    OwnTaskConfig,
    RunConfig,
    TaskConfig,
    TokenTaskConfig,
    require_count,
)
from mesaopt.console import print_line
from mesaopt.errors import ConfigError

if TYPE_CHECKING:
    from mesaopt.report.page import Page
    from mesaopt.training import Run

_PICTURES = (".png", ".svg", ".html")
_MOST_SEQUENCES = 10**8
AnyCommand = args.Evaluate | args.Diagnose | args.Compare
"""A command over several runs."""


def check(command: AnyCommand) -> None:
    """Refuse no run, a wrong number, and a file that cannot be written."""
    if not command.runs:
        wanted = "give a run folder, or a model that mesaopt list zoo shows"
        raise ConfigError(f"run: is missing: {wanted}")
    require_count("sequences", command.sequences, smallest=1, largest=_MOST_SEQUENCES)
    require_count("seed", command.seed, smallest=0)
    check_picture(command.out)


def check_picture(out: Path | None) -> None:
    """Refuse a file that cannot be written, or is neither a picture nor a page."""
    if out is None:
        return
    if files.is_folder(out):
        raise ConfigError(f"out={str(out)!r}: is a folder; give a file")
    files.require_writable(out)
    if out.suffix.lower() not in _PICTURES:
        raise ConfigError(f"out={str(out)!r}: must end in {', '.join(_PICTURES)}")


def find_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """Find the folders of runs, and name them: by their folder, or by the whole path if two are alike.

    Raises:
        ConfigError: one is given twice, or there is no such model in the zoo.
        RunError: there is no run in a folder.
    """
    from mesaopt import zoo
    from mesaopt.training import RunFolder

    short = [path.resolve().name for path in paths]
    found: dict[str, Path] = {}
    for path, name in zip(paths, short, strict=True):
        folder = zoo.locate(path)
        _ = RunFolder(folder).config  # or says what is wrong with it
        if folder.resolve() in [other.resolve() for other in found.values()]:
            raise ConfigError(f"run={str(path)!r}: is given twice")
        found[name if short.count(name) == 1 else str(path)] = folder
    return found


def load_runs(
    folders: Mapping[str, Path],
    *,
    task: str | None,
    model: str | None,
    step: int | None = None,
) -> dict[str, "Run"]:
    """Load runs, with the task and the model of the user's own for those that were trained on one.

    The name of a run that has not come to its end says so, unless the step is the user's choice.
    """
    from mesaopt.training import RunFolder, load_run

    if task is not None or model is not None:
        find_modules_here()
    configs = {name: RunFolder(folder).config for name, folder in folders.items()}
    tasks = _meant_for(
        [name for name in configs if configs[name].task.kind == "own"], folders, task
    )
    models = _meant_for(
        [name for name in configs if configs[name].model.kind == "own"], folders, model
    )
    runs = {
        name: load_run(folder, step=step, device="cpu", task=tasks[name], model=models[name])
        for name, folder in folders.items()
    }
    return {name if step is not None else title(name, run): run for name, run in runs.items()}


def title(name: str, run: "Run") -> str:
    """Give the name of a run, with the last recorded step where this is not the end."""
    last, steps = run.metrics[-1]["step"], run.config.train.steps
    return name if last == steps else f"{name}, step {last:,} of {steps:,}"


def _meant_for(
    own: list[str], names: Mapping[str, Any], given: str | None
) -> dict[str, str | None]:
    """Give an object to the runs that have one of the user's own; where none has, to all, to be refused."""
    return {name: given if name in own or not own else None for name in names}


def write(page: "Page", command: AnyCommand) -> None:
    """Write a page or its figure to the file that was asked for, and say so."""
    from mesaopt.report.page import write as write_page

    assert command.out is not None
    write_page(page, command.out)
    say_where(command)


def say_where(command: AnyCommand) -> None:
    """Print where the page or the figure is, unless the output is for a program."""
    if command.out is not None and not (command.json or command.csv):
        kind = "Page" if command.out.suffix.lower() == ".html" else "Figure"
        print_line(f"{kind}: {command.out}")


def lines_to_diagnose(paths: Sequence[Path], runs: Mapping[str, "Run"]) -> list[str]:
    """Return what to type next, a line for each run that can be diagnosed, in the order of the paths."""
    pairs = zip(paths, (run.config for run in runs.values()), strict=True)
    return [next_line("diagnose", path, one) for path, one in pairs if can_be_diagnosed(one)]


def can_be_diagnosed(config: RunConfig) -> bool:
    """Say whether `diagnose` surely takes a run: none on tokens, complex numbers or a task of one's own."""
    return isinstance(config.task, GeneratedTaskConfig) and config.task.numbers == "real"


def next_line(verb: str, path: Path, config: RunConfig) -> str:
    """Return a command for a run; a task or a model of the user's own has to be named again."""
    parts = {"task": config.task, "model": config.model}
    own = [
        f" --{part} {shlex.quote(settings.name)}"
        for part, settings in parts.items()
        if isinstance(settings, OwnTaskConfig | OwnModelConfig) and ":" in settings.name
    ]
    return f"mesaopt {verb} {shlex.quote(str(path))}{''.join(own)}"


def is_on_tokens(task: TaskConfig) -> bool:
    """Say whether the sequences of a task are discrete tokens, or are scored like them."""
    return isinstance(task, ContinuousMQARConfig | TokenTaskConfig)


def task_title(config: RunConfig) -> str:
    """Name the task of a run, with the settings that are not the usual ones."""
    task = config.task
    if task.kind == "own":
        return task.name
    changed = [
        f"{f.name} {getattr(task, f.name)}"
        for f in fields(task)
        if f.name != "token_slots"
        and f.default is not MISSING
        and getattr(task, f.name) != f.default
    ]
    return f"{task.kind}{', ' if changed else ''}{', '.join(changed)}"
