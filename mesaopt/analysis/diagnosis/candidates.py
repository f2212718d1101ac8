"""Candidate algorithms, their parameters fitted to the predictions of the model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from mesaopt.analysis.diagnosis.algorithms import Algorithm, Kind, between
from mesaopt.analysis.diagnosis.model_target import ModelAsTarget
from mesaopt.analysis.diagnosis.polynomials import PolynomialFit, Scaling, terms
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.prompts import PromptPredictor, Prompts
from mesaopt.analysis.tuning import tune, tune_together
from mesaopt.progress import AnyProgress, Progress
from mesaopt.theory import (
    Objective,
    gradient_descent,
    kernel_regression,
    ridge_least_squares,
)

LEAST_SQUARES = "ridge least squares"
"""Name of the candidate whose parameter is the ridge."""

_TUNING_SEQUENCES = 512
_FITTING_SEQUENCES = 2560
_STEPS = range(1, 7)
_DEGREES = (1, 2, 3)  # higher ones rest on rare sequences with large eigenvalues
_ITERATIONS = (2, 4, 6)
_DEGREE = 6


@dataclass(frozen=True)
class Candidate:
    """One algorithm, with the parameters that bring it nearest to the model."""

    name: str
    """Name for tables and sentences."""
    kind: Kind
    """An "optimizer" reduces a least-squares loss on the pairs of the context."""
    parameters: dict[str, float]
    """The fitted parameters, where there are one or two."""
    num_parameters: int
    """Number of fitted parameters."""
    predict: PromptPredictor
    """From prompts to predictions."""


def fit_candidates(
    target: ModelAsTarget,
    algorithms: Sequence[Algorithm] = (),
    *,
    seed: int = 0,
    progress: AnyProgress = False,
) -> list[Candidate]:
    """Fit every candidate to a model, on validation sequences.

    The fit minimises the mean squared difference between candidate and model. The true next states play no
    part: the question is which algorithm the model follows, not which would predict best. An algorithm
    tuned to the task would differ from the model by its step size alone.

    Args:
        target: the task whose targets are the model's predictions.
        algorithms: the user's own, besides the built-in ones.
        seed: of the sequences.
        progress: called with the finished and the total number of candidates.

    Returns:
        The candidates, with fewest parameters first, then fewest steps; then the user's own.

    Raises:
        ValueError: an algorithm fails, or has the name of a built-in one.
    """
    fitter = _Fitter(target, seed)
    fits: list[Callable[[], Candidate]] = [
        fitter.zero,
        fitter.last_answer,
        fitter.kernel_regression,
        *(partial(fitter.gradient_steps, steps, "sum") for steps in _STEPS),
        *(partial(fitter.gradient_steps, steps, "mean") for steps in _STEPS),
        fitter.least_squares,
        *(partial(fitter.polynomial, degree) for degree in _DEGREES),
        *(partial(fitter.iterations, number) for number in _ITERATIONS),
        fitter.fixed_map,
        *(partial(fitter.own, algorithm) for algorithm in algorithms),
    ]
    candidates: list[Candidate] = []
    for done, fit in enumerate(fits, start=1):
        candidate = fit()
        if candidate.name in [other.name for other in candidates]:
            given = f"algorithms: {candidate.name!r} is the name of a built-in algorithm"
            raise ValueError(f"{given}: must be another")
        candidates.append(candidate)
        if callable(progress):
            progress(Progress(done, len(fits)))
    return candidates


NUM_CANDIDATES = 4 + 2 * len(_STEPS) + 1 + len(_DEGREES) + len(_ITERATIONS)
"""Number of built-in candidates."""


def fit_ridge(target: ModelAsTarget, *, seed: int = 0) -> float:
    """Find the ridge with which least squares comes nearest to a model.

    Args:
        target: the task whose targets are the model's predictions.
        seed: of the sequences.

    Returns:
        The ridge, between 1e-5 and 1e4 times the mean square of the inputs.
    """
    evaluation = Evaluation(num_sequences=_TUNING_SEQUENCES, seed=seed, split="validation")
    batches = list(evaluation.batches(target))
    variance = batches[0].mean_square
    problems = [_in_eigenvectors(batch) for batch in batches]

    def distance(log_ridge: float) -> float:
        ridge = math.exp(log_ridge)
        missed = (
            (readout @ (queries / (values + ridge))[..., None])[..., 0] - wanted
            for values, queries, readout, wanted in problems
        )
        return sum(one.square().sum().item() for one in missed)

    low, high = math.log(1e-5 * variance), math.log(1e4 * variance)
    grid = np.linspace(low, high, 10)  # a decade apart
    best = int(np.argmin([distance(place) for place in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return math.exp(
        minimize_scalar(distance, bounds=around, method="bounded", options={"xatol": 1e-4}).x
    )


def _in_eigenvectors(batch: Prompts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give what least squares needs for any ridge: one eigendecomposition of every Gram matrix.

    G_t (H_t + ridge I)^{-1} q_t = (G_t V) ((V^T q_t) / (values + ridge)), H_t = V diag(values) V^T.
    """
    values, queries, cross = batch.in_eigenvectors(batch.asked)
    return values, queries, cross, batch.scored_targets.double()


@dataclass(frozen=True)
class _Fitter:
    """Fits each candidate to the model."""

    target: ModelAsTarget
    seed: int

    def zero(self) -> Candidate:
        return Candidate("zero", "other", {}, 0, lambda batch: torch.zeros_like(batch.targets))

    def last_answer(self) -> Candidate:
        scale = self._best_map(
            lambda batch: batch.seen[:, batch.asked].flatten()[:, None], flat=True
        )
        scale = scale.item()
        what = "answer" if self._first.states is None else "observation"
        return Candidate(
            f"last {what}, scaled",
            "other",
            {"scale": scale},
            1,
            lambda batch: batch.at_places(scale * batch.seen),
        )

    def fixed_map(self) -> Candidate:
        matrix = self._best_map(
            lambda batch: batch.inputs[:, batch.asked].flatten(0, 1), flat=False
        )
        return Candidate(
            "one fixed map",
            "other",
            {},
            matrix.numel(),
            lambda batch: batch.at_places(batch.inputs @ matrix.to(batch.inputs)),
        )

    def kernel_regression(self) -> Candidate:
        """Fit the inverse temperature of kernel regression."""

        def family(inverse_temperature: float) -> PromptPredictor:
            return lambda batch: batch.at_places(
                kernel_regression(
                    batch.seen, inverse_temperature=inverse_temperature, inputs=batch.inputs
                )
            )

        best = self._tune(family, 0.01, 100.0)
        parameters = {"inverse_temperature": best}
        return Candidate("kernel regression", "other", parameters, 1, family(best))

    def gradient_steps(self, steps: int, objective: Objective) -> Candidate:
        """Fit the step size of gradient descent."""
        step_size = self._fits[objective].step_size(steps)

        def predict(batch: Prompts) -> Tensor:
            predictions = gradient_descent(
                batch.seen,
                step_size=step_size,
                num_steps=steps,
                objective=objective,
                inputs=batch.inputs,
            )
            return batch.at_places(predictions)

        name = f"{steps} gradient step{'s' if steps > 1 else ''}"
        name += " on the mean" if objective == "mean" else ""
        return Candidate(name, "optimizer", {"step_size": step_size}, 1, predict)

    def least_squares(self) -> Candidate:
        ridge = self._ridge

        def predict(batch: Prompts) -> Tensor:
            return batch.at_places(
                ridge_least_squares(batch.seen, ridge=ridge, inputs=batch.inputs)
            )

        return Candidate(LEAST_SQUARES, "optimizer", {"ridge": ridge}, 1, predict)

    def own(self, algorithm: Algorithm) -> Candidate:
        """Fit the parameters of an algorithm of the user's own."""

        def parameters_at(places: Sequence[float]) -> dict[str, float]:
            items = zip(algorithm.ranges.items(), places, strict=True)
            return {name: between(place, *ends) for (name, ends), place in items}

        best = tune_together(
            lambda places: algorithm.predictor(parameters_at(places)),
            self.target,
            number=len(algorithm.ranges),
            evaluation=self._validation(_TUNING_SEQUENCES),
        )
        fitted = parameters_at(best)
        predict = algorithm.predictor(fitted)
        return Candidate(algorithm.name, algorithm.kind, fitted, len(fitted), predict)

    def polynomial(self, degree: int) -> Candidate:
        return self._preconditioned(f"polynomial of degree {degree}", degree, "sum", {})

    def iterations(self, number: int) -> Candidate:
        """Fit the best iteration towards the inverse of H + ridge I with that many products."""
        parameters = {"ridge": self._ridge}
        return self._preconditioned(f"{number} iterations", number, "norm", parameters)

    def _preconditioned(
        self, how: str, degree: int, scaling: Scaling, given: dict[str, float]
    ) -> Candidate:
        """Fit a gradient step from an input preconditioned by a polynomial in the Gram matrix."""
        coefficients = self._fits[scaling].coefficients(degree)

        def predict(batch: Prompts) -> Tensor:
            parts = terms(batch.context, degree, scaling, **given)
            combined = torch.einsum("k,kbtd->btd", coefficients, parts)
            return batch.at_places(combined.to(batch.targets.dtype))

        powers = {f"c{power}": value for power, value in enumerate(coefficients.tolist())}
        number = len(given) + len(powers)
        name = f"preconditioned step, {how}"
        return Candidate(name, "optimizer", given | powers, number, predict)

    @cached_property
    def _fits(self) -> dict[Scaling, PolynomialFit]:
        """Sum up the quadratic distance of polynomials from the model, in every scaling."""
        units: dict[Scaling, float] = {
            "sum": 1 / (self._variance * self._length),
            "mean": 1 / self._variance,
            "norm": 1.0,
        }
        fits = {scaling: PolynomialFit(unit) for scaling, unit in units.items()}
        ridges = {scaling: self._ridge if scaling == "norm" else 0.0 for scaling in fits}

        def products(batch: Prompts) -> list[tuple[Tensor, Tensor]]:
            context, asked, targets = batch.context, batch.asked, batch.scored_targets.double()
            return [
                fit.products(
                    terms(context, _DEGREE, scaling, ridges[scaling])[:, :, asked], targets
                )
                for scaling, fit in fits.items()
            ]

        for each in self._validation(_FITTING_SEQUENCES).map(self.target, products):
            for fit, (gram, cross) in zip(fits.values(), each, strict=True):
                fit.add(gram, cross)
        return fits

    @cached_property
    def _ridge(self) -> float:
        return fit_ridge(self.target, seed=self.seed)

    @cached_property
    def _variance(self) -> float:
        return self._first.mean_square

    @property
    def _length(self) -> int:
        return self._first.inputs.shape[1]

    @cached_property
    def _first(self) -> Prompts:
        return next(self._validation(1).batches(self.target))

    def _validation(self, num_sequences: int) -> Evaluation:
        return Evaluation(num_sequences=num_sequences, seed=self.seed, split="validation")

    def _tune(self, family: Callable[[float], PromptPredictor], low: float, high: float) -> float:
        """Tune what has the unit of 1 / variance."""
        return tune(
            family,
            self.target,
            bounds=(low / self._variance, high / self._variance),
            spacing="log",
            evaluation=self._validation(_TUNING_SEQUENCES),
        ).value

    def _best_map(self, features: Callable[[Prompts], Tensor], *, flat: bool) -> Tensor:
        """Fit the linear map [feature, dim] from features to the model's predictions."""

        def products(batch: Prompts) -> tuple[Tensor, Tensor]:
            x, targets = features(batch).double(), batch.scored_targets.double()
            y = targets.flatten()[:, None] if flat else targets.flatten(0, 1)
            return x.mT @ x, x.mT @ y

        gram, cross = torch.zeros(()), torch.zeros(())
        for squares, crosses in self._validation(_FITTING_SEQUENCES).map(self.target, products):
            gram, cross = gram + squares, cross + crosses
        return torch.linalg.lstsq(gram, cross, driver="gelsd").solution.to(torch.float32)
