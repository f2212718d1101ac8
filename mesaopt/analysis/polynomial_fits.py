"""Polynomials in the Gram matrix with the best mean loss, fitted on validation sequences.

Every sequence enters through one quadratic function of the coefficients. Searches for a single parameter
are in :mod:`mesaopt.analysis.tuning`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Inexact
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from torch import Tensor

from mesaopt.analysis.capture import differentiating
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyTask, as_task
from mesaopt.analysis.tuning import InputMap, regression_of_states, tuning_evaluation
from mesaopt.config import require_whole
from mesaopt.tasks import Batch
from mesaopt.theory import (
    ApproximateInverse,
    Context,
    Pairs,
    run_steps,
    system_scale,
)

_SINGLE_STEP = ApproximateInverse(step_sizes=(1.0,), momenta=(0.0,))  # neither ridge nor scale


def fit_polynomial(
    task: AnyTask,
    degree: int,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
    evaluation: Evaluation = Evaluation(num_sequences=25_600, split="validation"),
) -> tuple[float, ...]:
    """Find the fixed polynomial in the Gram matrix with the best loss: the bound of Proposition 2.

    Predictions G_t p(H_t) x_t are linear in the coefficients of p, so their mean loss is quadratic, and its
    minimum a linear system. It is set up in Chebyshev polynomials on [0, largest eigenvalue of any H_t] and
    solved in double precision, then turned into powers.

    Args:
        task: source of the sequences.
        degree: 0 to 20; degree + 1 layers of linear attention compute the prediction. The turn to powers
            loses a factor of 5.8^degree in relative precision: 7 digits are left at 12.
        inputs: from the observed states to the regression inputs; the states themselves if not given.
        pairs: "all", or "official" without the newest pair.
        evaluation: as in :func:`tune`; 25,600 validation sequences if not given. High degrees need many: a
            polynomial knows nothing of eigenvalues beyond those it was fitted on, and one sequence in ten
            thousand has one five times the median. A fit on 2560 does not generalise at degree 6.

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
    require_whole("degree", degree)
    if not 0 <= degree <= 20:
        raise ValueError(f"degree={degree}: must be between 0 and 20")
    each = functools.partial(tuning_evaluation(evaluation).map, as_task(task))
    loss = _quadratic_loss(each, degree, _SINGLE_STEP, inputs, pairs)
    best = np.linalg.lstsq(loss.gram.numpy(), loss.cross.numpy(), rcond=None)[0]
    powers = Chebyshev(best, domain=[0, loss.largest]).convert(kind=Polynomial).coef
    return (*map(float, powers), *(0.0,) * (degree + 1 - len(powers)))


@differentiating()
def learn_inverse(
    task: AnyTask,
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
        task: source of the sequences.
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
    require_whole("iterations", iterations)
    if iterations < 1 or not 0 < learning_rate < math.inf:
        given = f"iterations={iterations}, learning_rate={learning_rate}"
        raise ValueError(f"{given}: must be 1 or greater, and greater than 0")
    each = functools.partial(tuning_evaluation(evaluation).map, as_task(task))
    loss = _quadratic_loss(each, start.degree, start, inputs, pairs)
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


@torch.no_grad()
def _quadratic_loss(
    each: Callable[[Callable[[Batch], Any]], Iterator[Any]],
    degree: int,
    inverse: ApproximateInverse,
    inputs: InputMap | None,
    pairs: Pairs,
) -> _QuadraticLoss:
    """Sum up the loss of all polynomials in A = scale (H + ridge I) up to a degree.

    Sequences are drawn twice rather than kept: there may be many. `each` calls a function on every batch.
    """
    largest = 1.0  # of a matrix divided by its Frobenius norm, or of none: sequences without a pair
    if not isinstance(inverse.scale, str):
        top = max(
            each(lambda batch: _largest_eigenvalue(regression_of_states(batch, inputs, pairs)))
        )
        largest = inverse.scale * (top + inverse.ridge) or largest

    def products(batch: Batch) -> tuple[Tensor, Tensor, float, int]:
        context = regression_of_states(batch, inputs, pairs)
        terms = _chebyshev_predictions(context, degree, inverse, largest)
        predictions, targets = (_scored_numbers(x, batch) for x in (terms, batch.targets))
        square, numbers = (targets @ targets / 2).item(), len(batch.targets) * len(batch.positions)
        return (predictions @ predictions.T).cpu(), (predictions @ targets).cpu(), square, numbers

    gram = torch.zeros(degree + 1, degree + 1, dtype=torch.float64)
    cross, constant, count = torch.zeros(degree + 1, dtype=torch.float64), 0.0, 0
    for squares, crosses, square, numbers in each(products):
        gram += squares
        cross += crosses
        constant += square
        count += numbers
    return _QuadraticLoss(largest, gram / count, cross / count, constant / count)


def _largest_eigenvalue(context: Context) -> float:
    """Compute the largest eigenvalue of any position's Gram matrix: the last one's, since it only grows."""
    gram = context.inputs.mT @ context.inputs.conj()  # [B,D,D]
    return torch.linalg.eigvalsh(gram).max().item()


def _chebyshev_predictions(
    context: Context, degree: int, inverse: ApproximateInverse, largest: float
) -> Inexact[Tensor, "term batch time dim"]:
    """Compute predictions scale G_t T_k(2 A_t / largest - 1) x_t, k = 0 ... degree, by their recurrence."""
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
    """Flatten the scored positions of [..., batch, time, dim], real and imaginary parts concatenated."""
    scored = x[..., batch.scored, :]
    numbers = torch.view_as_real(scored) if scored.is_complex() else scored
    return numbers.flatten(x.dim() - 3).double()


def _interpolation(
    degree: int, largest: float
) -> tuple[Float[Tensor, " node"], Float[Tensor, "term node"]]:
    """Return nodes in [0, largest], and the map from values there to Chebyshev coefficients."""
    points = chebyshev.chebpts1(degree + 1)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(points, degree))
    return torch.from_numpy((points + 1) * largest / 2), torch.from_numpy(to_coefficients)
