"""The regression problem that a sequence poses to an algorithm that learns from its context alone."""

from dataclasses import dataclass, replace

from mesaopt.analysis.prompts import PromptTask, prompt_task
from mesaopt.tasks import LinearSystem, Reading, Task


@dataclass(frozen=True)
class InContextRegression:
    """The task of an in-context learner: predict each answer from its input and the pairs so far."""

    task: PromptTask
    """Source of the prompts, with a new system in each, even for a model trained on a single system."""
    training_task: Task | None
    """The task of the single system that the model was trained on; None where it was trained on many."""
    regression: Reading | None
    """How the caller reads prompts; None: as the task says."""

    @property
    def is_new_in_every_sequence(self) -> bool:
        """Whether it is known that every training sequence has a system of its own."""
        return self.training_task is None and self.task.is_generated


def regression_of(task: Task, regression: Reading | None = None) -> InContextRegression:
    """Give the regression problem of a training task.

    Args:
        task: any task.
        regression: how its prompts are read; see :func:`mesaopt.analysis.prompts.prompt_task`.

    Raises:
        ValueError: it is not known how to read the prompts of the task, or they are of complex numbers.
    """
    if isinstance(task, LinearSystem) and task.config.transition == "fixed":
        many = LinearSystem(replace(task.config, transition="orthogonal", matrix=None))
        return InContextRegression(prompt_task(many, regression), task, regression)
    prompts = prompt_task(task, regression)
    if prompts.sample(1, seed=0, split="validation").inputs.is_complex():
        raise ValueError("task: has complex numbers: must have real ones")
    return InContextRegression(prompts, None, regression)
