"""Searches for the best parameter of a predictor, on validation sequences and never on test sequences."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor
from torch.quasirandom import SobolEngine

from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyTask, as_task
from mesaopt.analysis.in_context import Predictor
from mesaopt.progress import AnyProgress, Report, reporting
from mesaopt.tasks import Batch
from mesaopt.theory import (
    Context,
    Objective,
    Pairs,
    context_of,
    gradient_descent,
    ridge_least_squares,
)
from mesaopt.theory.context import as_double
from mesaopt.workers import current_workers

InputMap = Callable[[Tensor], Tensor]
"""From states [batch, time, dim] to regression inputs [batch, time, input]."""

_SCAN_POINTS = 9
_MOST_EXTENSIONS = 8
_USUAL_LOSSES = 25  # in a search without extensions
_SOBOL_POINTS = 63
_EVALUATIONS = 200  # of the loss in a simplex search, for each parameter
_HUGE = 1e30  # in place of a loss that is not finite, so that differences are


class Tuned(NamedTuple):
    """The best value of a parameter, and the mean loss of the validation sequences there.

    Example:
        >>> Tuned(value=0.03, loss=0.9).value
        0.03
    """

    value: float
    """The parameter."""
    loss: float
    """Mean over sequences and scored positions; a little too small, as the minimum on these sequences."""


@torch.no_grad()
def tune(
    family: Callable[[float], Predictor],
    task: AnyTask,
    *,
    bounds: tuple[float, float],
    spacing: Literal["linear", "log"] = "linear",
    growth: float | None = None,
    tolerance: float = 1e-4,
    evaluation: Evaluation = Evaluation(split="validation"),
    progress: AnyProgress = True,
) -> Tuned:
    """Find the parameter with which a family of predictors has the smallest mean loss.

    Nine values spread over the bounds find the neighbourhood of the best, Brent's method the best itself.
    Where it lies at the upper end and `growth` is given, the search goes on with an upper bound that many
    times greater. A loss that overflows counts as very large.

    Args:
        family: from a value of the parameter to a predictor.
        task: source of the sequences.
        bounds: smallest and largest value; neither is tried itself.
        spacing: search on the value, or on its logarithm; "log" takes bounds greater than 0.
        growth: greater than 1; None: the bounds are final.
        tolerance: of the result, as a share of the interval (of the logarithms) of the last search.
        evaluation: the sequences, not of the test split; 2560 validation sequences if not given.
        progress: a bar, nothing, or a function of the number of losses computed: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The best value and its loss.

    Raises:
        ValueError: an argument is out of range, the split is "test", no value has a finite loss, or the
            loss still falls after the upper bound has grown eight times.

    Source: the authors of both papers search grids, on the test sequences.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import kernel_regression
        >>> family = lambda beta: lambda batch: kernel_regression(
        ...     batch.observed, inverse_temperature=beta
        ... )
        >>> task = LinearSystem(LinearSystemConfig(dim=4, length=16))
        >>> best = tune(family, task, bounds=(0.01, 100.0), spacing="log")
        >>> 1 < best.value < 5
        True
    """
    _check_search(bounds, spacing, growth, tolerance)
    low, high = bounds
    with reporting(progress, "tuning") as report:
        loss = _reported(_mean_loss(family, task, evaluation), report)
        for _ in range(_MOST_EXTENSIONS + 1):
            place, best = _search(loss, low, high, spacing, tolerance)
            if best.loss >= _HUGE:
                raise ValueError(f"bounds=({low}, {high}): no value between them has a finite loss")
            if growth is None or place <= 0.99:
                return best
            high *= growth
    raise ValueError(f"bounds={bounds}: the loss still falls at {high / (growth or 1):g}")


@torch.no_grad()
def tune_together(
    family: Callable[[Sequence[float]], Predictor],
    task: AnyTask,
    *,
    number: int,
    evaluation: Evaluation = Evaluation(split="validation"),
) -> list[float]:
    """Find the parameters with which a family of predictors has the smallest mean loss.

    One parameter is tuned as in :func:`tune`. Of several, 63 points of a Sobol sequence find the
    neighbourhood of the best, and the simplex search of Nelder and Mead the best itself, which may be a
    local one.

    Args:
        family: from values between 0 and 1, one per parameter, to a predictor.
        task: source of the sequences.
        number: of parameters, 0 or more.
        evaluation: as in :func:`tune`.

    Returns:
        The best values.

    Raises:
        ValueError: the split is "test", or no values have a finite loss.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import gradient_descent
        >>> family = lambda places: lambda batch: places[0] * gradient_descent(
        ...     batch.observed, step_size=0.1 * places[1], num_steps=9
        ... )
        >>> task = LinearSystem(LinearSystemConfig(dim=3, length=12))
        >>> few = Evaluation(num_sequences=256, split="validation")
        >>> scale, step_size = tune_together(family, task, number=2, evaluation=few)
        >>> 0.9 < scale <= 1.0
        True
    """
    if number == 0:
        return []
    if number == 1:
        one = lambda place: family([place])  # noqa: E731
        return [tune(one, task, bounds=(0.0, 1.0), evaluation=evaluation).value]
    loss = _mean_loss(family, task, evaluation)
    points = SobolEngine(number).fast_forward(1).draw(_SOBOL_POINTS)  # the first is a corner
    best = points[int(np.argmin([loss(point.tolist()) for point in points]))]
    minimum = minimize(
        lambda point: loss(point.tolist()),
        best.numpy(),
        method="Nelder-Mead",
        bounds=[(0.0, 1.0)] * number,
        options={"xatol": 1e-4, "fatol": math.inf, "maxfev": _EVALUATIONS * number},
    )
    if minimum.fun >= _HUGE:
        raise ValueError("family: no values between the bounds have a finite loss")
    return minimum.x.tolist()


def line_search_step_size(
    task: AnyTask,
    *,
    num_steps: int = 1,
    objective: Objective = "sum",
    largest: float = 0.1,
    evaluation: Evaluation = Evaluation(split="validation"),
    progress: AnyProgress = True,
) -> float:
    """Find the step size with which gradient descent on the context predicts best.

    :func:`tune` of :func:`mesaopt.theory.gradient_descent` over (0, largest]. Where the best lies at the
    upper end, the search goes on ten times further.

    Args:
        task: source of the sequences.
        num_steps: steps of gradient descent.
        objective: "sum" or "mean" over the pairs of the context.
        largest: upper end of the first search, > 0.
        evaluation: as in :func:`tune`.
        progress: as in :func:`tune`.

    Returns:
        The step size, to about 1e-4 of the last upper end.

    Raises:
        ValueError: an argument is out of range, or there is no best step size.

    Source: von Oswald et al. search a grid, on test data; the objective is the same.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> 0.030 < line_search_step_size(LinearSystem(LinearSystemConfig())) < 0.034
        True
    """

    def family(step_size: float) -> Predictor:
        return lambda batch: gradient_descent(
            batch.observed, step_size=step_size, num_steps=num_steps, objective=objective
        )

    bounds = (0.0, largest)
    best = tune(family, task, bounds=bounds, growth=10.0, evaluation=evaluation, progress=progress)
    return best.value


def tune_ridge(
    task: AnyTask,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
    bounds: tuple[float, float] = (1e-5, 1e3),
    tolerance: float = 0.02,
    evaluation: Evaluation = Evaluation(num_sequences=512, split="validation"),
    progress: AnyProgress = True,
) -> Tuned:
    """Find the ridge with which least squares on the context predicts best.

    :func:`tune` of :func:`mesaopt.theory.ridge_least_squares` on a logarithmic scale.

    Args:
        task: source of the sequences.
        inputs: from the observed states to the regression inputs; the states themselves if not given.
        pairs: "all", or "official" without the newest pair.
        bounds: smallest and largest ridge, greater than 0.
        tolerance: as a share of the logarithms between the bounds; a loss is flat around its minimum.
        evaluation: as in :func:`tune`; 512 validation sequences if not given.
        progress: as in :func:`tune`.

    Returns:
        The ridge and its loss.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(dim=4, length=12))
        >>> tune_ridge(task).value < 0.1  # there is hardly any noise
        True
    """

    def family(ridge: float) -> Predictor:
        def predict(batch: Batch) -> Tensor:
            mapped = None if inputs is None else inputs(batch.observed)
            return ridge_least_squares(batch.observed, ridge=ridge, inputs=mapped, pairs=pairs)

        return predict

    return tune(
        family,
        task,
        bounds=bounds,
        spacing="log",
        tolerance=tolerance,
        evaluation=evaluation,
        progress=progress,
    )


def regression_of_states(batch: Batch, inputs: InputMap | None, pairs: Pairs) -> Context:
    """Set up the regression from functions of states to next states, in double precision."""
    states = as_double(batch.observed)
    return context_of(states, inputs=None if inputs is None else inputs(states), pairs=pairs)


def _check_search(
    bounds: tuple[float, float], spacing: str, growth: float | None, tolerance: float
) -> None:
    """Refuse settings of a search that are out of range."""
    low, high = bounds
    if spacing not in ("linear", "log"):
        raise ValueError(f"spacing={spacing!r}: must be 'linear' or 'log'")
    if not -math.inf < low < high < math.inf or (spacing == "log" and low <= 0):
        wanted = "finite and increasing" + (", greater than 0" if spacing == "log" else "")
        raise ValueError(f"bounds={bounds}: must be {wanted}")
    if growth is not None and not (growth > 1 and high > 0):
        raise ValueError(f"growth={growth}: must be greater than 1, and the upper bound positive")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: must be between 0 and 1")


def _mean_loss(
    family: Callable[[Any], Predictor], task: AnyTask, evaluation: Evaluation
) -> Callable[[Any], float]:
    """Make the function from parameters to the mean loss of the predictor on the same sequences."""
    batches = list(tuning_evaluation(evaluation).map(as_task(task), lambda batch: batch))

    def loss(parameters: Any) -> float:
        predict = family(parameters)
        means = current_workers().map(lambda batch: batch.loss(predict(batch)), batches)
        mean = torch.stack(list(means)).mean().item()
        return min(mean, _HUGE) if math.isfinite(mean) else _HUGE

    return loss


def _reported(loss: Callable[[float], float], report: Report) -> Callable[[float], float]:
    """Report every loss that is computed; how many a search needs is known only roughly."""
    done = 0

    def reported(value: float) -> float:
        nonlocal done
        result, done = loss(value), done + 1
        report(done, max(done, _USUAL_LOSSES))
        return result

    return reported


def tuning_evaluation(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation to tune on; one of the test split is refused."""
    if evaluation.split == "test":
        raise ValueError(
            "evaluation: split='test': must be another, test sequences are for results"
        )
    return evaluation


def _search(
    loss: Callable[[float], float], low: float, high: float, spacing: str, tolerance: float
) -> tuple[float, Tuned]:
    """Minimise over places from 0 (low) to 1 (high); return the place and the result."""

    def value(place: float) -> float:
        if spacing == "log":
            return low * (high / low) ** place
        return low + place * (high - low)

    # The best of these points and its neighbours, or an end, enclose a minimum.
    places = [0.0, *(np.arange(_SCAN_POINTS) + 0.5) / _SCAN_POINTS, 1.0]
    losses = [math.inf, *(loss(value(place)) for place in places[1:-1]), math.inf]
    best = int(np.argmin(losses))
    around = (places[best - 1], places[best + 1])
    options = {"xatol": tolerance}
    minimum = minimize_scalar(
        lambda place: loss(value(place)), bounds=around, method="bounded", options=options
    )
    # Brent's method does not start at the best point, and leaves a valley with a plateau around it.
    improved = minimum.fun <= losses[best]
    place, smallest = (minimum.x, minimum.fun) if improved else (places[best], losses[best])
    return float(place), Tuned(value(float(place)), float(smallest))
