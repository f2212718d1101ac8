"""Training: the loop, and run folders that a kill cannot spoil."""

from mesaopt.training.environment import describe, peak_memory_bytes, resolve_device
from mesaopt.training.estimate import StepCost, step_cost
from mesaopt.training.loop import (
    DivergedError,
    Run,
    load_run,
    run_name,
    sittings,
    train,
    train_seeds,
)
from mesaopt.training.run_folder import Checkpoint, RunFolder, claim_folder
from mesaopt.training.trainer import Trainer, learning_rate

__all__ = [
    "Checkpoint",
    "DivergedError",
    "Run",
    "RunFolder",
    "StepCost",
    "Trainer",
    "claim_folder",
    "describe",
    "learning_rate",
    "load_run",
    "peak_memory_bytes",
    "resolve_device",
    "run_name",
    "sittings",
    "step_cost",
    "train",
    "train_seeds",
]
