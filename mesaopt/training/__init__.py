"""Training: the loop, and run folders that a kill cannot spoil."""

from mesaopt.training.environment import describe, peak_memory_bytes, resolve_device
from mesaopt.training.estimate import StepCost, step_cost
from mesaopt.training.loop import (
    DivergedError,
    Run,
    load_run,
    run_name,
    seed_batches,
    train,
    train_seeds,
)
from mesaopt.training.run_folder import Checkpoint, RunFolder, reserve_folder
from mesaopt.training.trainer import Trainer, learning_rate

__all__ = [
    "Checkpoint",
    "DivergedError",
    "Run",
    "RunFolder",
    "StepCost",
    "Trainer",
    "describe",
    "learning_rate",
    "load_run",
    "peak_memory_bytes",
    "reserve_folder",
    "resolve_device",
    "run_name",
    "seed_batches",
    "step_cost",
    "train",
    "train_seeds",
]
