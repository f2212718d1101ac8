"""Commands about what there is and how fast it is: `list`, `doctor`, `bench`."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from mesaopt import arguments as args
from mesaopt import recipes
from mesaopt.commands.language import bench_generation
from mesaopt.config import (
    ContinuousMQARConfig,
    GeneratedTaskConfig,
    TokenTaskConfig,
    require_count,
)
from mesaopt.console import print_json, print_table, words
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
    """Print what this machine has and does."""
    import torch

    from mesaopt.bench.train import matmul_flops
    from mesaopt.training import describe

    facts = describe()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    facts |= {
        "matrix product, float32": f"{matmul_flops(torch.float32) / 1e9:.0f} GFLOP/s",
        "matrix product, float64": f"{matmul_flops(torch.float64) / 1e9:.0f} GFLOP/s",
        "free disk here": f"{free:.1f} GiB",
        "device that auto means": "cuda" if facts["gpus"] else "cpu",
    }
    del facts["started"], facts["command"]
    if command.json:
        print_json(facts)
        return 0
    rows = [{"": name.replace("_", " "), "here": words(value)} for name, value in facts.items()]
    print_table("this machine", rows)
    if free < 1:
        print("Less than 1 GiB of disk is free: runs may stop for lack of it.")
    return 0


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
    rows = [{"": name, "here": value} for name, value in result.describe()]
    print_table(f"training step of {result.recipe}", rows)
    return 0


def _bench_operators(command: args.Bench) -> int:
    from mesaopt.bench.ops import measure_operators

    result = measure_operators(quick=command.quick)
    if command.json:
        print_json(result.to_json())
        return 0
    for title, rows in result.tables():
        print_table(title, rows)
    if reason := result.flash_linear_attention_skipped:
        print(f"flash-linear-attention: skipped, {reason}")
    return 0
