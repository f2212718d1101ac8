"""Commands that make runs: `train`, `import-released`."""

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mesaopt import arguments as args
from mesaopt.commands import given, options, own
from mesaopt.commands.language_runs import is_language_run, show_trained
from mesaopt.config import RunConfig, TextConfig, require_count, to_dict
from mesaopt.console import duration, print_json, print_line, print_table

if TYPE_CHECKING:
    from mesaopt.progress import OnProgress
    from mesaopt.training import Devices, Run, StepCost

MOST_SEEDS = 10**4


def train(command: args.Train) -> int:
    """Train seeds of a recipe, or of a task of one's own, or print what that would cost."""
    require_count("seeds", command.seeds, smallest=1, largest=MOST_SEEDS)
    configs = own.configs_of(command)
    from mesaopt.training import (
        RunFolder,
        is_first,
        is_launched,
        run_name,
        seed_batches,
        step_cost,
        tracker,
    )

    if not is_launched():
        options.refuse(command, "--shard", where="without torchrun, which starts the processes")
    elif command.dry_run:
        ways = ("--shard", "--parts", "--recompute", "--compile")
        options.refuse(command, *ways, where="with torchrun and --dry-run, which times one process")
    if command.dry_run and not is_first():
        return 0

    groups = seed_batches(configs, command.device)
    folder = command.out or Path("runs")
    paths = {config.seed: folder / run_name(config) for config in configs}
    if command.seeds == 1 and command.out is not None:
        paths = {command.seed: command.out}
    logger = None if command.track is None else tracker(command.track)
    devices = _devices(command)
    if not command.dry_run:
        RunFolder.check_all([paths[c.seed] for c in configs], configs, resume=command.resume)
        if is_launched() or devices is not None:
            return _train_shared(configs, paths, command, devices, logger)
    seeds = [config.seed for config in groups[0]] if devices is None else None
    cost = step_cost(configs[0], command.device, seeds=seeds, devices=devices)
    if command.dry_run:
        return _print_training_cost(configs, cost)
    return _train_groups(groups, paths, cost.seconds, command.device, logger)


def _devices(command: args.Train) -> "Devices | None":
    """Return how the run is spread over devices, if the command says anything about it."""
    from mesaopt.training import Devices

    names = [field.name for field in fields(Devices)]
    devices = Devices(**{name: getattr(command, name) for name in names})
    return None if devices == Devices() else devices


def _train_shared(
    configs: list[RunConfig],
    paths: dict[int, Path],
    command: args.Train,
    devices: "Devices | None",
    logger: "OnProgress | None",
) -> int:
    """Train one seed after another, with all processes that `torchrun` has started."""
    from mesaopt.training import Devices, is_first, train

    how = {"resume": command.resume, "device": command.device, "logger": logger}
    devices = devices or Devices()
    runs = [train(c, paths[c.seed], devices=devices, **how) for c in configs]
    if is_first():
        _print_runs(runs)
    return 0


def _print_training_cost(configs: list[RunConfig], cost: "StepCost") -> int:
    from mesaopt.training import peak_memory_bytes

    steps = configs[0].train.steps
    print(json.dumps(to_dict(configs[0]), indent=2))
    if len(configs) > 1:
        print(f"seeds       {', '.join(str(config.seed) for config in configs)}")
    print(f"parameters  {cost.parameters:,}")
    print(f"steps       {steps:,}")
    print(f"time        about {duration(cost.seconds * steps * len(configs))} here")
    print(f"memory      about {peak_memory_bytes() / 2**20:.0f} MiB here")
    return 0


def _train_groups(
    groups: list[list[RunConfig]],
    paths: dict[int, Path],
    seconds: float,
    device: str,
    logger: "OnProgress | None",
) -> int:
    """Train each group side by side, one group after the other."""
    from mesaopt.progress import ProgressDisplay, Stage
    from mesaopt.training import train_seeds

    titles = [f"{g[0].recipe}, seed {', '.join(str(c.seed) for c in g)}" for g in groups]
    stages = [
        Stage(title, group[0].train.steps, seconds * len(group))
        for title, group in zip(titles, groups, strict=True)
    ]
    runs = []
    with ProgressDisplay(stages) as display:
        for title, group in zip(titles, groups, strict=True):
            display.begin(title)
            folders = [paths[config.seed] for config in group]
            runs += train_seeds(
                group, folders, resume=True, device=device, progress=display.update, logger=logger
            )
    _print_runs(runs)
    return 0


def _print_runs(runs: "list[Run]") -> None:
    """Print how good the trained runs are, and what to do next."""
    for run in runs:
        last = run.metrics[-1]
        loss = f"test loss {last['test_loss']:.4f} after {last['step']} steps"
        print_line(f"{loss}, {run.seconds:.0f} s: {run.path}")
    if is_language_run(runs[0].config):
        show_trained(runs)
    print_line(f"Next: {_next_line(runs[0])}")


def _next_line(run: "Run") -> str:
    """Return what one may want to do with a trained run."""
    task = run.config.task
    if isinstance(task, TextConfig):
        return f"{given.next_line('generate', run.path, run.config)} --prompt 'def '"
    verb = "diagnose" if given.can_be_diagnosed(run.config) else "evaluate"
    return given.next_line(verb, run.path, run.config)


def import_released(command: args.ImportReleased) -> int:
    """Write run folders of the released weights, and print their losses beside the stored ones."""
    from mesaopt import released
    from mesaopt.progress import ProgressDisplay, Stage

    with ProgressDisplay([Stage(network.run, 1, 3.0) for network in released.RELEASED]) as display:
        runs = released.import_released(
            command.clone,
            command.out,
            overwrite=command.overwrite,
            progress=lambda progress: display.begin(progress.stage),
        )
    if command.json:
        print_json([run.to_json() for run in runs])
        return 0
    title = f"released networks in {command.out}; in no clone: {', '.join(released.MISSING)}"
    print_table(title, [run.describe() for run in runs])
    return 0
