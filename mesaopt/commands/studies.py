"""Commands about studies and their results: `demo`, `reproduce`, `claims`."""

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mesaopt import arguments as args
from mesaopt.commands import options
from mesaopt.commands.diagnosis import DIAGNOSIS_SECONDS, diagnose_runs
from mesaopt.commands.runs import MOST_SEEDS
from mesaopt.commands.sweeps import engine_of
from mesaopt.config import require_count
from mesaopt.console import duration, print_json, print_line, print_table

if TYPE_CHECKING:
    from mesaopt.papers.laboratory import Plan


def demo(command: args.Demo) -> int:
    """Reproduce the main result from trained models, diagnose one, and show the page."""
    from mesaopt import zoo
    from mesaopt.papers import reproduce as papers
    from mesaopt.papers.trainings import costs
    from mesaopt.report import write_diagnosis
    from mesaopt.report import write_report as write_page
    from mesaopt.training import load_run, reserve_folder

    reserve_folder(command.out, resume=True)
    study, runs = papers.get_study("core"), None if command.train else zoo.folder()
    plan = papers.make_plan("core", scale="small")
    seconds = DIAGNOSIS_SECONDS + sum(figure.seconds[plan.scale] for figure in study.figures)
    if runs is None:
        seconds += sum(cost.seconds for cost in costs(plan, device="cpu"))
    models = "Training and measuring three models" if command.train else "Measuring three models"
    print_line(f"{models}: about {duration(seconds)} here, once. Results go to {command.out}.")
    name = None if runs is None else zoo.title()
    papers.reproduce("core", out=command.out, resume=True, device="cpu", runs=runs, runs_name=name)
    trained = command.out / "runs" / "lsa-1-seed0"
    run = load_run(trained, device="cpu") if command.train else zoo.load("lsa-1")
    diagnosis = diagnose_runs({"lsa-1": run})["lsa-1"]
    write_diagnosis(diagnosis, command.out / "diagnosis.html", name="lsa-1")
    page = write_page(command.out)
    print_line(diagnosis.verdict.sentence)
    print_line(f"Report: {page}")
    print_line(f"Diagnosis of lsa-1: {command.out / 'diagnosis.html'}")
    print_line("Next: mesaopt diagnose zoo:tf-3")
    if not command.no_open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def reproduce(command: args.Reproduce) -> int:
    """Reproduce a study and print its claims, or print what it would cost."""
    from mesaopt.papers import reproduce as papers
    from mesaopt.report import write_report as write_page

    plan = plan_of(command)
    runs, name = _given_runs(command)
    engine = None if command.engine is None else engine_of(command.engine, command.engine_set)
    if command.dry_run:
        return _print_costs(plan, command.device, runs)
    papers.reproduce(
        command.what,
        scale=command.scale,
        out=command.out,
        seeds=command.seeds,
        only=plan.figures,
        resume=command.resume,
        device=command.device,
        runs=runs,
        runs_name=name,
        engine=engine,
    )
    page = write_page(command.out)
    status = print_claims(command.out)
    print_line(f"Report: {page}")
    return status


def plan_of(command: args.Reproduce) -> "Plan":
    """Make the plan of what is asked for, and refuse options that have no use with it.

    Raises:
        ConfigError: there is no such study, figure or scale, or an option has no use.
    """
    from mesaopt.papers.reproduce import make_plan

    if command.seeds is not None:
        require_count("seeds", command.seeds, smallest=1, largest=MOST_SEEDS)
    only = command.only.replace(",", " ").split()
    plan = make_plan(command.what, scale=command.scale, seeds=command.seeds, only=only)
    _refuse_useless(command, plan)
    return plan


def _refuse_useless(command: args.Reproduce, plan: "Plan") -> None:
    """Refuse runs where none are read, and options of training where nothing is trained."""
    from mesaopt.papers.reproduce import get_study

    study, training = get_study(plan.what), ["--engine", "--engine-set"]
    if command.device not in ("auto", "cpu"):
        training.append("--device")
    if not any(figure.recipes or figure.trains for figure in study.chosen(plan)):
        where = f"with {command.what}, which reads and trains no runs"
        options.refuse(command, "--from", "--from-zoo", *training, where=where)
    if command.from_zoo or command.runs is not None:
        usual = study.plan(plan.scale, figures=plan.figures)
        if replace(plan, trainings=()) == replace(usual, trainings=()):
            training.append("--seeds")
        options.refuse(command, *training, where="with runs that are trained already")


def _given_runs(command: args.Reproduce) -> tuple[Path | None, str | None]:
    """Give the folder of runs that are measured in place of training any, and what it is called."""
    if not command.from_zoo:
        return command.runs, None
    from mesaopt import zoo

    return zoo.folder(), zoo.title()


def _print_costs(plan: "Plan", device: str, folder: Path | None) -> int:
    from mesaopt.papers.reproduce import find_runs, get_study, measuring_seconds
    from mesaopt.training import peak_memory_bytes, resolve_device

    resolve_device(device)
    study = get_study(plan.what)
    figures = study.chosen(plan)
    runs = None if folder is None else find_runs(plan, folder)
    times = list(measuring_seconds(plan, runs).values())
    plan = plan if folder is None else replace(plan, trainings=())
    training = _print_trainings(plan, device)
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
    from mesaopt.papers.trainings import costs

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
            "": claim.verdict if claim.passed else "FAILS",
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
    _print_untrained(folder)
    return 0 if passed == len(claims) else 1


def _print_untrained(folder: Path) -> None:
    """Print which figures of a folder lack trained models, and how to train these."""
    from mesaopt.papers.untrained import read_untrained

    figures = read_untrained(folder)
    if not figures:
        return
    print_line("")
    for figure in figures:
        left_out = "drawn without them" if figure.drawn else "left out"
        wait = "1 claim waits" if len(figure.claims) == 1 else f"{len(figure.claims)} claims wait"
        waiting = f", {wait}" if figure.claims else ""
        names = ", ".join(figure.recipes)
        print_line(f"{figure.figure}: not trained yet: {names} ({left_out}{waiting})")
    print_line("`mesaopt train NAME` trains one of these as published.")
