"""Baselines: algorithms tuned to a task, to compare the losses of models with."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyTask, as_task
from mesaopt.analysis.in_context import Predictor
from mesaopt.analysis.prompts import Prompts, prompt_task
from mesaopt.analysis.tuning import tune
from mesaopt.tasks import OwnTask, Reading
from mesaopt.theory import Objective, gradient_descent, ridge_least_squares


@dataclass(frozen=True)
class Baseline:
    """An algorithm that learns from the context alone, with the setting that predicts best.

    Example:
        >>> Baseline(lambda batch: batch.observed, {}, "").label
        ''
    """

    predictor: Predictor
    """From a batch to predictions."""
    setting: dict[str, float]
    """The tuned number, by name."""
    label: str
    """The setting in words."""


def tuned_baselines(
    task: AnyTask, *, objective: Objective = "sum", regression: Reading | None = None
) -> dict[str, Baseline]:
    """Tune one step of gradient descent, and least squares, on the validation sequences of a task.

    Both learn from the pairs that a prompt shows: those that the task reads by its method `regression`, or
    each state and the next.

    Args:
        task: of the library or your own.
        objective: "sum" or "mean" over the pairs, for the gradient step.
        regression: how prompts are read, in place of the task's method.

    Returns:
        The baselines by name. Of your own tasks also that of predicting zero, which is the only one where
        it is not known how to read the prompts.

    Example:
        >>> from mesaopt.tasks import FewShot
        >>> found = tuned_baselines(FewShot(dim=2, length=12))
        >>> list(found), 1e-5 < found["least squares"].setting["ridge"] < 0.1
        (['one gradient step', 'least squares'], True)
    """
    task, found = as_task(task), {}
    is_own = isinstance(task, OwnTask)
    if is_own:
        found["predict zero"] = Baseline(lambda batch: 0 * batch.targets, {}, "")
    try:
        prompts = prompt_task(task, regression, plain=True)
    except ValueError:
        if is_own:
            return found
        raise

    def predictor(predict: Callable[[Prompts], Tensor]) -> Predictor:
        def on_batch(batch: Prompts) -> Tensor:
            return batch.at_places(predict(batch)).to(batch.targets)

        return lambda batch: on_batch(prompts.prompts(batch)).to(batch.targets.device)

    def descent(step_size: float) -> Predictor:
        settings = {"step_size": step_size, "objective": objective}
        return predictor(
            lambda batch: gradient_descent(batch.seen, inputs=batch.inputs, **settings)
        )

    def least_squares(ridge: float) -> Predictor:
        return predictor(
            lambda batch: ridge_least_squares(batch.seen, inputs=batch.inputs, ridge=ridge)
        )

    few = Evaluation(num_sequences=512, split="validation")
    squares = prompts.prompts(next(iter(few.batches(task)))).mean_square
    # To the next power of 100, far less than ranges span: inputs between 0.1 and 10 are searched alike.
    unit = 100.0 ** round(math.log(squares, 100)) if squares > 0 else 1.0
    step_size = tune(descent, task, bounds=(0.0, 0.1 / unit), growth=10.0).value
    ridges = (1e-5 * unit, 1e3 * unit)
    ridge = tune(
        least_squares, task, bounds=ridges, spacing="log", tolerance=0.02, evaluation=few
    ).value
    per_pair = " / (t - 1)" if objective == "mean" else ""
    return found | {
        "one gradient step": Baseline(
            descent(step_size), {"step_size": step_size}, f"of {step_size:.3g}{per_pair}"
        ),
        "least squares": Baseline(
            least_squares(ridge), {"ridge": ridge}, f"with ridge {ridge:.2g}"
        ),
    }
