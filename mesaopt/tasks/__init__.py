"""Tasks: batches as pure functions of (seed, step), and the loss they are scored with."""

from mesaopt.tasks.ar_process import ARProcess
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch, Task, tokens_from_states
from mesaopt.tasks.distributions import (
    FiniteStates,
    IndependentCoordinates,
    InitialStates,
    RealStates,
    SampledStates,
    Sampler,
    SparseStates,
)
from mesaopt.tasks.few_shot import FewShot, FewShotBatch
from mesaopt.tasks.linear_system import LinearSystem
from mesaopt.tasks.losses import accuracy, macro_accuracy, squared_error
from mesaopt.tasks.make import make_task
from mesaopt.tasks.named_distributions import (
    from_distribution,
    full_one,
    gaussian,
    generalised_gaussian,
    initial_states,
    rademacher,
    two_magnitudes,
    uniform,
)
from mesaopt.tasks.nonlinear_system import NonlinearSystem
from mesaopt.tasks.own import OwnTask, own_task
from mesaopt.tasks.partially_observed import PartiallyObserved, PartiallyObservedBatch
from mesaopt.tasks.random import contracting, generator, haar_orthogonal
from mesaopt.tasks.regression import Reading, Regression
from mesaopt.tasks.tokens import (
    IGNORE,
    MAD,
    MQAR,
    ContinuousMQAR,
    ContinuousMQARBatch,
    Copying,
    DrawnSequences,
    Parity,
    RegBench,
    RegBenchBatch,
    SyntheticTask,
    Text,
    TokenBatch,
    TokenTask,
)

__all__ = [
    "IGNORE",
    "MAD",
    "MQAR",
    "ARProcess",
    "Batch",
    "ContinuousMQAR",
    "ContinuousMQARBatch",
    "Copying",
    "DrawnSequences",
    "FewShot",
    "FewShotBatch",
    "FiniteStates",
    "GeneratedTask",
    "IndependentCoordinates",
    "InitialStates",
    "LinearSystem",
    "NonlinearSystem",
    "OwnTask",
    "Parity",
    "PartiallyObserved",
    "PartiallyObservedBatch",
    "Reading",
    "RealStates",
    "RegBench",
    "RegBenchBatch",
    "Regression",
    "SampledStates",
    "Sampler",
    "SparseStates",
    "Streams",
    "SyntheticTask",
    "Task",
    "Text",
    "TokenBatch",
    "TokenTask",
    "accuracy",
    "contracting",
    "from_distribution",
    "full_one",
    "gaussian",
    "generalised_gaussian",
    "generator",
    "haar_orthogonal",
    "initial_states",
    "macro_accuracy",
    "make_task",
    "own_task",
    "rademacher",
    "squared_error",
    "tokens_from_states",
    "two_magnitudes",
    "uniform",
]
