"""Training: steps, loops over them, and run folders that a kill cannot spoil."""

from mesaopt.training.devices import Devices, is_first, is_launched, one_message
from mesaopt.training.environment import describe, peak_memory_bytes, resolve_device
from mesaopt.training.estimate import StepCost, StepCosts, step_cost
from mesaopt.training.loop import DivergedError, Run, load_run, run_name, train
from mesaopt.training.optimizer import Optimizer, learning_rate
from mesaopt.training.own import fitted_to, named_model, named_task, own_run
from mesaopt.training.run_folder import Checkpoint, RunFolder, reserve_folder
from mesaopt.training.seeds import SeedsTrainer, seed_batches, train_seeds
from mesaopt.training.track import TensorBoard, Trackio, WeightsAndBiases, tracker
from mesaopt.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "Devices",
    "DivergedError",
    "Optimizer",
    "Run",
    "RunFolder",
    "SeedsTrainer",
    "StepCost",
    "StepCosts",
    "TensorBoard",
    "Trackio",
    "Trainer",
    "WeightsAndBiases",
    "describe",
    "fitted_to",
    "is_first",
    "is_launched",
    "learning_rate",
    "load_run",
    "named_model",
    "named_task",
    "one_message",
    "own_run",
    "peak_memory_bytes",
    "reserve_folder",
    "resolve_device",
    "run_name",
    "seed_batches",
    "step_cost",
    "tracker",
    "train",
    "train_seeds",
]
