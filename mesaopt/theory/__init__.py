"""Theory that runs: weights set by hand, and predictors that learn nothing beforehand."""

from mesaopt.theory.constructions import proposition_1
from mesaopt.theory.predictors import (
    Objective,
    context_statistics,
    gradient_descent,
    ridge_least_squares,
)

__all__ = [
    "Objective",
    "context_statistics",
    "gradient_descent",
    "proposition_1",
    "ridge_least_squares",
]
