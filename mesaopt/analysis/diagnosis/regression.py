"""The regression problem that a sequence poses to an algorithm that learns from its context alone."""

from dataclasses import dataclass, replace

from mesaopt.analysis.tuning import InputMap
from mesaopt.config import stacked
from mesaopt.tasks import LinearSystem, PartiallyObserved, Task, tokens_from_states

HISTORY = 5
"""Observations of a partially observed system in one regression input. Three of them, of 5 coordinates
each, determine 15 hidden coordinates; two more average over noise."""

LinearTask = LinearSystem | PartiallyObserved


@dataclass(frozen=True)
class InContextRegression:
    """The task of an in-context learner: predict the next state from the states so far."""

    task: LinearTask
    """Source of the sequences, with a new system in each, even for a model trained on a single system."""
    inputs: InputMap | None
    """From observations to regression inputs; None: the states themselves."""
    training_task: LinearTask | None
    """The task of the single system that the model was trained on; None where it was trained on many."""


def regression_of(task: Task) -> InContextRegression:
    """Give the regression problem of a training task.

    Raises:
        ValueError: the task is not covered.
    """
    if isinstance(task, LinearSystem):
        if task.config.transition == "fixed":
            many = LinearSystem(replace(task.config, transition="orthogonal", matrix=None))
            return InContextRegression(many, None, training_task=task)
        return InContextRegression(task, None, training_task=None)
    if isinstance(task, PartiallyObserved):
        slots = stacked(HISTORY)
        inputs: InputMap = lambda states: tokens_from_states(states, slots)  # noqa: E731
        return InContextRegression(task, inputs, training_task=None)
    kind = getattr(getattr(task, "config", None), "kind", type(task).__name__)
    raise ValueError(
        f"task={kind!r}: must be 'linear_system' or 'partially_observed', whose "
        "in-context problem is a linear regression on what is observed"
    )
