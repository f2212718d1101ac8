"""What predictors have to be told, found on validation sequences: test sequences are never seen."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Inexact
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from scipy.optimize import minimize_scalar
from torch import Tensor

from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.in_context import Predictor
from mesaopt.tasks import Batch, Task
from mesaopt.theory import (
    ApproximateInverse,
    Context,
    Objective,
    Pairs,
    context_of,
    gradient_descent,
    ridge_least_squares,
    run_steps,
    system_scale,
)

InputMap = Callable[[Tensor], Tensor]
"""From states [batch, time, dim] to regression inputs [batch, time, input]."""

_SCAN_POINTS = 9
_MOST_EXTENSIONS = 8
_HUGE = 1e30  # stands for a loss that is not finite: differences of it still are
_SINGLE_STEP = ApproximateInverse(step_sizes=(1.0,), momenta=(0.0,))  # neither ridge nor scale


class Tuned(NamedTuple):
    """The best value of a parameter, and the mean loss of the validation sequences there.

    Example:
        >>> Tuned(value=0.03, loss=0.9).value
        0.03
    """

    value: float
    """The parameter."""
    loss: float
    """Mean over sequences and scored positions; of validation sequences, so a little too good."""


@torch.no_grad()
def tune(
    family: Callable[[float], Predictor],
    task: Task,
    *,
    bounds: tuple[float, float],
    spacing: Literal["linear", "log"] = "linear",
    growth: float | None = None,
    tolerance: float = 1e-4,
    evaluation: Evaluation = Evaluation(split="validation"),
) -> Tuned:
    """Find the parameter with which a family of predictors has the smallest mean loss.

    Nine values spread over the bounds find the neighbourhood of the best, Brent's method the best itself.
    Where it lies at the upper end and `growth` is given, the search goes on with an upper bound that many
    times greater. A loss that overflows counts as very large.

    Args:
        family: from a value of the parameter to a predictor.
        task: where the sequences come from.
        bounds: smallest and largest value; neither is tried itself.
        spacing: search on the value, or on its logarithm; "log" takes bounds greater than 0.
        growth: greater than 1; None: the bounds are final.
        tolerance: of the result, as a share of the interval (of the logarithms) of the last search.
        evaluation: the sequences, not of the test split; 2560 validation sequences if not given.

    Returns:
        The best value and its loss.

    Raises:
        ValueError: an argument is out of range, no value gives a finite loss, or the loss still falls
            after the upper bound has grown eight times.

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
    batches = list(_batches(task, evaluation))

    def loss(value: float) -> float:
        predict = family(value)
        mean = torch.stack([batch.losses(predict(batch)).mean() for batch in batches]).mean().item()
        return min(mean, _HUGE) if math.isfinite(mean) else _HUGE

    low, high = bounds
    for _ in range(_MOST_EXTENSIONS + 1):
        place, found = _search(loss, low, high, spacing, tolerance)
        if found.loss >= _HUGE:
            raise ValueError(f"bounds=({low}, {high}): no value between them has a finite loss")
        if growth is None or place <= 0.99:
            return found
        high *= growth
    raise ValueError(f"bounds={bounds}: the loss still falls at {high / (growth or 1):g}")


def line_search_step_size(
    task: Task,
    *,
    num_steps: int = 1,
    objective: Objective = "sum",
    largest: float = 0.1,
    evaluation: Evaluation = Evaluation(split="validation"),
) -> float:
    """Find the step size with which gradient descent on the context predicts best.

    :func:`tune` of :func:`mesaopt.theory.gradient_descent` over (0, largest]. Where the best lies at the
    upper end, the search goes on ten times further.

    Args:
        task: where the sequences come from.
        num_steps: steps of gradient descent.
        objective: "sum" or "mean" over the pairs of the context.
        largest: upper end of the first search, > 0.
        evaluation: as in :func:`tune`.

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
    return tune(family, task, bounds=bounds, growth=10.0, evaluation=evaluation).value


def tune_ridge(
    task: Task,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
    bounds: tuple[float, float] = (1e-5, 1e3),
    tolerance: float = 0.02,
    evaluation: Evaluation = Evaluation(num_sequences=512, split="validation"),
) -> Tuned:
    """Find the ridge with which least squares on the context predicts best.

    :func:`tune` of :func:`mesaopt.theory.ridge_least_squares` on a logarithmic scale.

    Args:
        task: where the sequences come from.
        inputs: from the observed states to the regression inputs; the states themselves if not given.
        pairs: "all", or "official" without the newest pair.
        bounds: smallest and largest ridge, greater than 0.
        tolerance: as a share of the logarithms between the bounds; a loss is flat around its minimum.
        evaluation: as in :func:`tune`; 512 validation sequences if not given.

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
            known = None if inputs is None else inputs(batch.observed)
            return ridge_least_squares(batch.observed, ridge=ridge, inputs=known, pairs=pairs)

        return predict

    return tune(
        family,
        task,
        bounds=bounds,
        spacing="log",
        tolerance=tolerance,
        evaluation=evaluation,
    )


def fit_polynomial(
    task: Task,
    degree: int,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
    evaluation: Evaluation = Evaluation(num_sequences=25_600, split="validation"),
) -> tuple[float, ...]:
    """Find the best fixed polynomial in the Gram matrix: the bound of Proposition 2 at a given depth.

    Predictions G_t p(H_t) x_t are linear in the coefficients of p, so their mean loss is quadratic, and its
    minimum a linear system. It is set up in Chebyshev polynomials on [0, largest eigenvalue of any H_t] and
    solved in double precision, then turned into powers.

    Args:
        task: where the sequences come from.
        degree: 0 to 20; degree + 1 layers of linear attention compute the prediction. The turn to powers
            loses a factor of 5.8^degree in relative precision: 7 digits are left at 12.
        inputs: from the observed states to the regression inputs; the states themselves if not given.
        pairs: "all", or "official" without the newest pair.
        evaluation: as in :func:`tune`; 25,600 validation sequences if not given. High degrees need many: a
            polynomial knows nothing of eigenvalues beyond those it was fitted on, and one sequence in ten
            thousand has one five times the median. What is fitted on 2560 does not carry over at degree 6.

    Returns:
        The degree + 1 coefficients of H^0, H^1, ..., for :func:`mesaopt.theory.polynomial_prediction` and
        :func:`mesaopt.theory.proposition_2`.

    Raises:
        ValueError: degree is out of range, or there are no sequences.

    Source: our own bound; von Oswald et al. compare with the learned steps of :func:`learn_inverse`.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig())
        >>> (step_size,) = fit_polynomial(task, 0, evaluation=Evaluation(split="validation"))
        >>> 0.030 < step_size < 0.034
        True
    """
    if not 0 <= degree <= 20:
        raise ValueError(f"degree={degree}: must be between 0 and 20")
    loss = _quadratic_loss(lambda: _batches(task, evaluation), degree, _SINGLE_STEP, inputs, pairs)
    best = np.linalg.lstsq(loss.gram.numpy(), loss.cross.numpy(), rcond=None)[0]
    powers = Chebyshev(best, domain=[0, loss.largest]).convert(kind=Polynomial).coef
    return (*map(float, powers), *(0.0,) * (degree + 1 - len(powers)))


def learn_inverse(
    task: Task,
    start: ApproximateInverse,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
    evaluation: Evaluation = Evaluation(split="validation"),
    iterations: int = 1000,
    learning_rate: float = 0.1,
) -> ApproximateInverse:
    """Learn the step sizes and momenta of an approximate inverse, by the loss of its predictions.

    Adam, with a rate that falls to zero along a cosine, on the mean loss of
    :func:`mesaopt.theory.preconditioned_descent` on all validation sequences at once. That loss is a
    quadratic function of the polynomial that the steps make; its matrix is summed up beforehand, so that
    an iteration costs the same for any number of sequences.

    Args:
        task: where the sequences come from.
        start: where to begin, such as :func:`mesaopt.theory.neumann_inverse`; its ridge, scale and form
            are kept.
        inputs: from the observed states to the regression inputs; the states themselves if not given.
        pairs: "all"; or "official", without the newest pair, as the authors learned theirs.
        evaluation: as in :func:`tune`.
        iterations: of Adam, 1 or more.
        learning_rate: at the start, greater than 0.

    Returns:
        The inverse with the learned step sizes and momenta. Others may make the same polynomial: compare
        losses, not these numbers. From a Neumann series, 6 steps of the form "equation_9" come within
        1e-8 of the best polynomial of their degree, 11 within 1 %; both come within 1e-8 in the form
        "richardson".

    Raises:
        ValueError: iterations or learning_rate is out of range, or there are no sequences.

    Source: von Oswald et al., section on Proposition 2; 20,000 steps of AdamW on fresh batches.

    Example:
        >>> from mesaopt.config import LinearSystemConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import neumann_inverse
        >>> start = neumann_inverse(2, ridge=1e-3, scale="frobenius")
        >>> task = LinearSystem(LinearSystemConfig())
        >>> learned = learn_inverse(task, start, iterations=200)
        >>> 1.1 < learned.step_sizes[0] < 1.4  # 1.23 in the paper
        True
    """
    if iterations < 1 or not 0 < learning_rate < math.inf:
        given = f"iterations={iterations}, learning_rate={learning_rate}"
        raise ValueError(f"{given}: must be 1 or greater, and greater than 0")
    loss = _quadratic_loss(lambda: _batches(task, evaluation), start.degree, start, inputs, pairs)
    nodes, to_coefficients = _interpolation(start.degree, loss.largest)
    learned = torch.tensor([start.step_sizes, start.momenta], dtype=torch.float64)
    learned.requires_grad_()
    optimizer = torch.optim.Adam([learned], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        steps, momenta = learned
        polynomial = run_steps(
            start.form,
            steps.unbind(),
            momenta.unbind(),
            lambda u: nodes * u,
            torch.ones_like(nodes),
        )
        loss(to_coefficients @ polynomial).backward()
        optimizer.step()
        schedule.step()
    steps, momenta = learned.detach().tolist()
    return replace(start, step_sizes=tuple(steps), momenta=tuple(momenta))


def _check_search(
    bounds: tuple[float, float], spacing: str, growth: float | None, tolerance: float
) -> None:
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


def _batches(task: Task, evaluation: Evaluation) -> Iterator[Batch]:
    """Draw sequences to tune on, unless they are those that results are measured on."""
    if evaluation.split == "test":
        raise ValueError(
            "evaluation: split='test': must be another, test sequences are for results"
        )
    return evaluation.batches(task)


def _search(
    loss: Callable[[float], float], low: float, high: float, spacing: str, tolerance: float
) -> tuple[float, Tuned]:
    """Minimise over places from 0 (low) to 1 (high); return the place too."""

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
    found = minimize_scalar(
        lambda place: loss(value(place)), bounds=around, method="bounded", options=options
    )
    return float(found.x), Tuned(value(float(found.x)), float(found.fun))


@dataclass(frozen=True)
class _QuadraticLoss:
    """Mean loss of G_t p(A_t) x_t, by the coefficients of p in Chebyshev polynomials on [0, largest]."""

    largest: float
    gram: Float[Tensor, "term term"]
    cross: Float[Tensor, " term"]
    constant: float

    def __call__(self, coefficients: Float[Tensor, " term"]) -> Float[Tensor, ""]:
        """1/2 c^T M c - b^T c + constant."""
        return coefficients @ (self.gram @ coefficients / 2 - self.cross) + self.constant


def _quadratic_loss(
    draw: Callable[[], Iterator[Batch]],
    degree: int,
    inverse: ApproximateInverse,
    inputs: InputMap | None,
    pairs: Pairs,
) -> _QuadraticLoss:
    """Sum up the loss of all polynomials in A = scale (H + ridge I) up to a degree.

    Sequences are drawn twice rather than kept: there may be many.
    """
    largest = 1.0  # of a matrix divided by its Frobenius norm
    if not isinstance(inverse.scale, str):
        top = max(_largest_eigenvalue(_double_context(batch, inputs, pairs)) for batch in draw())
        largest = inverse.scale * (top + inverse.ridge)
    gram = torch.zeros(degree + 1, degree + 1, dtype=torch.float64)
    cross, constant, count = torch.zeros(degree + 1, dtype=torch.float64), 0.0, 0
    for batch in draw():
        context = _double_context(batch, inputs, pairs)
        terms = _chebyshev_predictions(context, degree, inverse, largest)
        predictions, targets = (_scored_numbers(x, batch) for x in (terms, batch.targets))
        gram += predictions @ predictions.T
        cross += predictions @ targets
        constant += (targets @ targets / 2).item()
        count += len(batch.targets) * len(batch.positions)
    return _QuadraticLoss(largest, gram / count, cross / count, constant / count)


def _double_context(batch: Batch, inputs: InputMap | None, pairs: Pairs) -> Context:
    states = batch.observed.to(torch.promote_types(batch.observed.dtype, torch.float64))
    mapped = None if inputs is None else inputs(states)
    return context_of(states, inputs=mapped, pairs=pairs)


def _largest_eigenvalue(context: Context) -> float:
    """Of the Gram matrix of any position: of the last one, since it only grows."""
    gram = context.inputs.mT @ context.inputs.conj()  # [B,D,D]
    return torch.linalg.eigvalsh(gram).max().item()


def _chebyshev_predictions(
    context: Context, degree: int, inverse: ApproximateInverse, largest: float
) -> Inexact[Tensor, "term batch time dim"]:
    """Predictions scale G_t T_k(2 A_t / largest - 1) x_t, k = 0 ... degree, by their recurrence."""
    scale = system_scale(context, inverse)

    def product(vector: Tensor) -> Tensor:
        system = scale * (context.gram_product(vector) + inverse.ridge * vector)
        return 2 / largest * system - vector

    vectors = [context.queries]
    for k in range(degree):
        following = product(vectors[-1])
        vectors.append(following if k == 0 else 2 * following - vectors[-2])
    return torch.stack([context.cross_product(scale * vector) for vector in vectors])


def _scored_numbers(x: Tensor, batch: Batch) -> Float[Tensor, "*term number"]:
    """Flatten what is scored of [..., batch, time, dim], real and imaginary parts side by side."""
    scored = x[..., batch.scored, :]
    numbers = torch.view_as_real(scored) if scored.is_complex() else scored
    return numbers.flatten(x.dim() - 3).double()


def _interpolation(
    degree: int, largest: float
) -> tuple[Float[Tensor, " node"], Float[Tensor, "term node"]]:
    """Nodes in [0, largest], and the map from values there to Chebyshev coefficients."""
    points = chebyshev.chebpts1(degree + 1)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(points, degree))
    return torch.from_numpy((points + 1) * largest / 2), torch.from_numpy(to_coefficients)
