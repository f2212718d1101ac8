"""Time every analysis on one trained run: `python benchmarks/analyses.py runs/tf-7-seed0`."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesaopt.analysis import (
    attention_maps,
    capture,
    diagnose,
    few_shot_losses,
    linearize,
    next_token,
    past_token,
    preconditioned_token,
    probe_layers,
    sensitivity,
    tune_prompt,
)
from mesaopt.config import FewShotConfig
from mesaopt.recipes import TASKS
from mesaopt.tasks import FewShot, make_task
from mesaopt.theory import PUBLISHED_INVERSES
from mesaopt.training import RunFolder, load_run, peak_memory_bytes

_POSITIONS = (2, 4, 6, 8, 11, 16, 21, 26, 31, 36, 41, 46, 50)


def main(folder: Path) -> None:
    """Run them one after the other and print seconds and memory."""
    run = load_run(folder, device="cpu")
    model, task = run.model.eval(), make_task(run.config.task)
    tokens = task.sample(256, seed=0, split="test").tokens
    targets = {
        "next": next_token,
        "preconditioned": preconditioned_token(PUBLISHED_INVERSES["constructed"]),
        "exactly preconditioned": preconditioned_token(1e-3),
    }
    past = {f"{k} back": past_token(k) for k in range(8)}
    config = TASKS["few-shot-separated"]
    assert isinstance(config, FewShotConfig)
    shots = FewShot(replace(config, length=tokens.shape[1]))  # positions it has seen

    def over_training() -> None:
        for step in RunFolder(folder).steps[::2]:
            early = load_run(folder, step=step, device="cpu").model
            sensitivity(early, tokens[:64], name="blocks.0", position=tokens.shape[1])

    def few_shot() -> None:
        prompt = tune_prompt(
            model, shots, steps=150, batch_size=16, learning_rate=0.1, schedule="cosine"
        )
        few_shot_losses(model, shots, prompt)

    analyses: dict[str, Callable[[], Any]] = {
        "capture of all streams": lambda: capture(
            model, tokens, [f"blocks.{i}" for i in range(run.config.model.depth)]
        ),
        "probes, three targets at 13 positions": lambda: probe_layers(
            model, task, targets, positions=_POSITIONS
        ),
        "probes, eight past tokens": lambda: probe_layers(model, task, past, positions=[50]),
        "attention maps, 2048 sequences": lambda: attention_maps(
            model, task.sample(2048, seed=0, split="test").tokens, name="blocks.0.mixer"
        ),
        "sensitivity at every second checkpoint": over_training,
        "linearisation, 1000 steps": lambda: linearize(model, task),
        "few-shot use, 150 steps of tuning": few_shot,
        "diagnosis": lambda: diagnose(model, task),
    }
    total = 0.0
    for name, analyse in analyses.items():
        started = time.perf_counter()
        analyse()
        seconds = time.perf_counter() - started
        total += seconds
        memory = peak_memory_bytes() / 2**20
        print(f"{name:40} {seconds:7.1f} s   peak so far {memory:5.0f} MiB", flush=True)
    print(f"{'all':40} {total:7.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
