"""The command `report`: the page of a folder of results, or of one run."""

import webbrowser
from pathlib import Path

from mesaopt import arguments as args
from mesaopt import files, json_files, report, zoo
from mesaopt.commands import given, options
from mesaopt.commands.language_runs import is_language_run, write_language_report
from mesaopt.config import RunConfig, from_dict
from mesaopt.console import print_line
from mesaopt.errors import RunError


def write_report(command: args.Report) -> int:
    """Write the report of a folder, and show it if asked."""
    page = _of_run(command) if _is_run(command.folder) else _of_results(command)
    print_line(page)
    if command.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _is_run(folder: Path) -> bool:
    """Say whether a run is meant: a model of the zoo, or a folder whose settings are those of a run."""
    if str(folder).startswith(zoo.PREFIX):
        return True
    path = folder / "config.json"
    settings = json_files.read(path) if files.exists(path) else None
    return isinstance(settings, dict) and "recipe" in settings


def _of_results(command: args.Report) -> Path:
    if not files.is_folder(command.folder):
        raise RunError(f"folder={str(command.folder)!r}: there is no such folder")
    options.refuse(command, "--out", where="with results, whose report lies beside its figures")
    if command.redraw:
        from mesaopt.papers.reproduce import redraw

        redraw(command.folder)
    return report.write_report(command.folder)


def _of_run(command: args.Report) -> Path:
    """Write the page of a run into its folder, and that of a model of the zoo into this folder."""
    options.refuse(command, "--redraw", where="with a run, whose report is always drawn anew")
    given.check_picture(command.out)
    folder = zoo.locate(command.folder)
    name = str(command.folder)
    usual = Path(f"{folder.name}.html") if name.startswith(zoo.PREFIX) else folder / "report.html"
    out = command.out or usual
    files.require_writable(out)
    path = folder / "config.json"
    config = from_dict(RunConfig, json_files.read(path), where=str(path))
    if is_language_run(config):
        from mesaopt.training import load_run

        write_language_report(load_run(folder, device="cpu"), out, name=name)
        return out
    from mesaopt.report.run_page import write_run_report

    verbs = ("evaluate", "diagnose") if given.can_be_diagnosed(config) else ("evaluate",)
    commands = [given.next_line(verb, command.folder, config) for verb in verbs]
    write_run_report(folder, out, name=name, commands=commands)
    return out
