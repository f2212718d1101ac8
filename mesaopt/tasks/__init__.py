"""Tasks: batches as pure functions of (seed, step), and the loss they are scored with."""

from mesaopt.tasks.linear_system import Batch, LinearSystem, Split, tokens_from_states
from mesaopt.tasks.losses import squared_error
from mesaopt.tasks.random import generator, haar_orthogonal

__all__ = [
    "Batch",
    "LinearSystem",
    "Split",
    "generator",
    "haar_orthogonal",
    "squared_error",
    "tokens_from_states",
]
