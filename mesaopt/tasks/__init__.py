"""Tasks: batches as pure functions of (seed, step), and the loss they are scored with."""

from mesaopt.tasks.linear_system import Batch, LinearSystem, Split, tokens_from_states
from mesaopt.tasks.losses import squared_error
from mesaopt.tasks.random import generator, haar_orthogonal
from mesaopt.tasks.start_laws import (
    SampledLaw,
    StartLaw,
    generalised_gaussian,
    start_law,
    two_magnitudes,
)

__all__ = [
    "Batch",
    "LinearSystem",
    "SampledLaw",
    "Split",
    "StartLaw",
    "generalised_gaussian",
    "generator",
    "haar_orthogonal",
    "squared_error",
    "start_law",
    "tokens_from_states",
    "two_magnitudes",
]
