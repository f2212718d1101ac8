"""The commands of the command line: each takes its arguments, prints, and returns the exit status.

:mod:`mesaopt.cli` parses the arguments, :mod:`mesaopt.arguments` declares them. Libraries that are slow
to load are imported by the command that needs them.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from mesaopt import arguments as args
from mesaopt import files
from mesaopt.commands.data import data
from mesaopt.commands.language import generate
from mesaopt.commands.machine import bench, doctor, list_names
from mesaopt.commands.runs import diagnose, evaluate, import_released, train
from mesaopt.commands.studies import demo, reproduce, show_claims, write_report


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
        case args.Data():
            return data(command)
        case args.Evaluate():
            return evaluate(command)
        case args.Generate():
            return generate(command)
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
