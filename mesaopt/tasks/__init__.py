"""Tasks: batches as pure functions of (seed, step), and the loss they are scored with."""

from mesaopt.tasks.ar_process import ARProcess
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch, Split, Task, tokens_from_states
from mesaopt.tasks.few_shot import FewShot, FewShotBatch
from mesaopt.tasks.linear_system import LinearSystem
from mesaopt.tasks.losses import squared_error
from mesaopt.tasks.make import make_task
from mesaopt.tasks.nonlinear_system import NonlinearSystem
from mesaopt.tasks.partially_observed import PartiallyObserved, PartiallyObservedBatch
from mesaopt.tasks.random import contracting, generator, haar_orthogonal
from mesaopt.tasks.start_laws import (
    FiniteLaw,
    IndependentLaw,
    RealLaw,
    SampledLaw,
    Sampler,
    SparseLaw,
    StartLaw,
    from_distribution,
    full_one,
    gaussian,
    generalised_gaussian,
    rademacher,
    start_law,
    two_magnitudes,
    uniform,
)

__all__ = [
    "ARProcess",
    "Batch",
    "FewShot",
    "FewShotBatch",
    "FiniteLaw",
    "GeneratedTask",
    "IndependentLaw",
    "LinearSystem",
    "NonlinearSystem",
    "PartiallyObserved",
    "PartiallyObservedBatch",
    "RealLaw",
    "SampledLaw",
    "Sampler",
    "SparseLaw",
    "Split",
    "StartLaw",
    "Streams",
    "Task",
    "contracting",
    "from_distribution",
    "full_one",
    "gaussian",
    "generalised_gaussian",
    "generator",
    "haar_orthogonal",
    "make_task",
    "rademacher",
    "squared_error",
    "start_law",
    "tokens_from_states",
    "two_magnitudes",
    "uniform",
]
