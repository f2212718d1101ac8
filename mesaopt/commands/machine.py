"""Commands about what there is and how fast it is: `list`, `doctor`, `bench`."""

from dataclasses import asdict
from typing import get_args

from mesaopt import arguments as args
from mesaopt import recipes
from mesaopt.commands.checks import quick_checks
from mesaopt.commands.language import bench_generation
from mesaopt.config import (
    ContinuousMQARConfig,
    GeneratedTaskConfig,
    TokenTaskConfig,
    require_count,
)
from mesaopt.console import print_json, print_line, print_table
from mesaopt.errors import ConfigError


def list_names(command: args.List) -> int:
    """Print recipes, trained models, figures and tasks."""
    lists: dict[str, list[dict[str, str]]] = {}
    if command.what in ("all", "recipes"):
        lists["recipes"] = [
            {"name": name, "summary": recipe.summary} for name, recipe in recipes.RECIPES.items()
        ]
    if command.what in ("all", "zoo"):
        from mesaopt import zoo

        lists["zoo"] = [{"name": f"zoo:{name}"} | zoo.get(name).describe() for name in zoo.names()]
    if command.what in ("all", "figures"):
        from mesaopt.papers.index import read_index

        lists["figures"] = read_index()
    if command.what in ("all", "tasks"):
        lists["tasks"] = [
            {"name": task.kind, "summary": (task.__doc__ or "").splitlines()[0]}
            for task in get_args(GeneratedTaskConfig | ContinuousMQARConfig | TokenTaskConfig)
        ]
    if command.json:
        print_json(lists)
        return 0
    for title, rows in lists.items():
        print_table(title, rows)
    return 0


def doctor(command: args.Doctor) -> int:
    """Print verdicts on this machine; the status is 1 if something is missing that is needed."""
    checks, estimates = quick_checks(), []
    fails = any(check.fails for check in checks)
    if command.measure and not fails:
        from mesaopt.commands.measured_checks import measure

        measured, estimates = measure()
        checks += measured
    if command.json:
        print_json(
            {"ok": not fails, "checks": [asdict(check) for check in checks]}
            | {"estimates": [asdict(estimate) for estimate in estimates]}
        )
        return int(fails)
    print_table("this machine", [check.describe() for check in checks])
    if estimates:
        print_table("time here", [estimate.describe() for estimate in estimates])
    if fails:
        missing = ", ".join(check.name for check in checks if check.fails)
        print_line(f"Missing, and needed: {missing}.")
    elif not command.measure:
        print_line(
            "Nothing that is needed is missing. Next: mesaopt doctor --measure (speed, times)"
        )
    return int(fails)


def bench(command: args.Bench) -> int:
    """Measure a training step, the operators, or language models token by token."""
    if command.what == "generate":
        return bench_generation(quick=command.quick, json=command.json)
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
    rows = [{"": name, "here": value} for name, value in result.describe(goals=command.goals)]
    print_table(f"training step of {result.recipe}", rows)
    return 0


def _bench_operators(command: args.Bench) -> int:
    from mesaopt.bench.ops import measure_operators

    result = measure_operators(quick=command.quick)
    if command.json:
        print_json(result.to_json())
        return 0
    for title, rows in result.tables(goals=command.goals):
        print_table(title, rows)
    if reason := result.flash_linear_attention_skipped:
        print(f"flash-linear-attention: skipped, {reason}")
    return 0
