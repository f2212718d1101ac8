"""The commands of the command line: each takes its arguments, prints, and returns the exit status.

:mod:`mesaopt.cli` parses the arguments, :mod:`mesaopt.arguments` declares them. Libraries that are slow
to load are imported by the command that needs them.
"""

import contextlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from mesaopt import arguments as args
from mesaopt import files
from mesaopt.commands import options
from mesaopt.commands.comparison import compare
from mesaopt.commands.completion import print_completion
from mesaopt.commands.data import data
from mesaopt.commands.diagnosis import diagnose
from mesaopt.commands.evaluation import evaluate
from mesaopt.commands.language import generate
from mesaopt.commands.machine import bench, doctor, list_names
from mesaopt.commands.reports import write_report
from mesaopt.commands.runs import import_released, train
from mesaopt.commands.studies import demo, reproduce, show_claims
from mesaopt.commands.sweeps import sweep


def run(command: args.Command) -> int:
    """Carry out a command.

    Args:
        command: its arguments.

    Returns:
        The exit status: 0, or 1 where a claim fails.

    Raises:
        MesaoptError: it cannot be carried out.
    """
    values = {f.name: _meant(getattr(command, f.name)) for f in fields(command)}
    command = type(command)(**values)
    options.check(command)
    match command:
        case args.List():
            return list_names(command)
        case args.Doctor():
            return doctor(command)
        case args.Demo():
            return demo(command)
        case args.Train():
            return train(command)
        case args.Sweep():
            return sweep(command)
        case args.Data():
            return data(command)
        case args.Evaluate():
            return evaluate(command)
        case args.Generate():
            return generate(command)
        case args.Diagnose():
            return diagnose(command)
        case args.Compare():
            return compare(command)
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
        case args.Completion():
            return print_completion(command)


def one_message() -> contextlib.AbstractContextManager[None]:
    """Return a context in which one of the processes that `torchrun` has started says why all end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return contextlib.nullcontext()
    from mesaopt import training

    return training.one_message()


def _meant(value: Any) -> Any:
    """Return a value with its paths as the user means them, such as those in the home folder."""
    if isinstance(value, tuple):
        return tuple(map(_meant, value))
    return files.as_path(value) if isinstance(value, Path) else value
