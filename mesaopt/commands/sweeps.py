"""The command `sweep`."""

import io
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesaopt import arguments as args
from mesaopt import files, recipes
from mesaopt.commands import given
from mesaopt.commands.runs import MOST_SEEDS
from mesaopt.config import override, parse_assignments, parse_value, require_count
from mesaopt.console import duration, print_csv, print_line, print_table
from mesaopt.display import cells
from mesaopt.errors import printable

if TYPE_CHECKING:
    from mesaopt.progress import AnyProgress, Progress
    from mesaopt.sweeps import Engine, Sweep

_LINE_EVERY_SECONDS = 30.0


def sweep(command: args.Sweep) -> int:
    """Train the points of a sweep and print what came of them, or what they would cost."""
    from mesaopt import sweeps

    require_count("seeds", command.seeds, smallest=1, largest=MOST_SEEDS)
    base = override(recipes.get(command.recipe), command.set)
    configs = sweeps.grid(base, sweeps.parse_grid(command.grid), seeds=command.seeds)
    engine = engine_of(command.engine, command.engine_set)
    if command.dry_run:
        planned = sweeps.plan_sweep(configs, command.out)
        engine.check(command.device)
        return _print_cost(planned)
    done = sweeps.sweep(
        configs,
        command.out,
        engine=engine,
        resume=command.resume,
        device=command.device,
        progress=lines_or_bar(),
    )
    return _print_sweep(done)


def engine_of(name: str, options: Sequence[str]) -> "Engine":
    """Make the engine that was asked for."""
    from mesaopt.sweeps import make_engine

    values = parse_assignments(options, "engine_set", like="processes=4")
    return make_engine(name, {key: parse_value(text) for key, text in values.items()})


def lines_or_bar() -> "AnyProgress":
    """Show the progress of all points as a bar in a terminal, elsewhere as lines."""
    if sys.stderr.isatty():
        return True
    shown, last = "", 0.0

    def show(progress: "Progress") -> None:
        nonlocal shown, last
        if progress.stage != shown or time.monotonic() - last > _LINE_EVERY_SECONDS:
            shown, last = progress.stage, time.monotonic()
            steps = f"{progress.done:,} of {progress.total:,} steps"
            print(printable(f"{progress.stage}, {steps}"), file=sys.stderr, flush=True)

    return show


def _print_sweep(done: "Sweep") -> int:
    """Print the best settings, write table and picture, and name what failed, of which the status tells."""
    import matplotlib.pyplot as plt

    print_table("last test loss, best settings first", cells(done.table()))
    for point in done.failed:
        print_line(f"{point.path.name} failed: {point.problem}")
    table = io.StringIO()
    print_csv(done.rows(), table)
    files.write(done.path / "sweep.csv", table.getvalue())
    figure = done.plot().figure
    files.write(done.path / "sweep.png", lambda path: figure.savefig(path, dpi=150))
    plt.close(figure)
    count = sum(point.is_done for point in done.points)
    print_line(f"{count} of {len(done.points)} points are done.")
    print_line(f"Every point: {done.path / 'sweep.csv'}; curves: {done.path / 'sweep.png'}")
    if done.best is not None:
        line = given.next_line("evaluate", done.best.path, done.best.config)
        print_line(f"Next: {line} --seed 1    # on sequences that have chosen nothing")
    return 1 if done.failed else 0


def _print_cost(planned: "Sweep") -> int:
    """Print the settings of the points, and their time on one core of this machine."""
    from mesaopt.training import StepCosts
    from mesaopt.workers import num_threads

    costs, rows, total = StepCosts("cpu"), [], 0.0
    for group in planned.groups:
        config = group.points[0].config
        with num_threads(1):
            cost = costs.of([config])
        seconds = cost.seconds * config.train.steps
        total += seconds * len(group.points)
        numbers = {"parameters": cost.parameters, "steps": config.train.steps}
        names = {"seeds": len(group.points), "time of each": f"about {duration(seconds)}"}
        rows.append(dict(group.settings) | numbers | names)
    print_table(f"{len(planned.points)} points in {planned.path}", cells(rows))
    print_line(f"time in all  about {duration(total)} on one core of this machine")
    return 0
