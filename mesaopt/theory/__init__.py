"""Theory that runs: constructions (weights set by hand) and closed-form baselines."""

from mesaopt.theory.constructions import proposition_1, proposition_2, proposition_2_slots
from mesaopt.theory.context import Context, Pairs, context_of, context_statistics
from mesaopt.theory.inverses import (
    ApproximateInverse,
    chebyshev_inverse,
    neumann_inverse,
    richardson_inverse,
    run_steps,
)
from mesaopt.theory.predictors import (
    Objective,
    gradient_descent,
    kernel_regression,
    polynomial_prediction,
    preconditioned_descent,
    preconditioned_queries,
    ridge_least_squares,
    system_scale,
)
from mesaopt.theory.published_settings import (
    PUBLISHED_INVERSES,
    PUBLISHED_SETTINGS,
    PublishedSetting,
)

__all__ = [
    "PUBLISHED_INVERSES",
    "PUBLISHED_SETTINGS",
    "ApproximateInverse",
    "Context",
    "Objective",
    "Pairs",
    "PublishedSetting",
    "chebyshev_inverse",
    "context_of",
    "context_statistics",
    "gradient_descent",
    "kernel_regression",
    "neumann_inverse",
    "polynomial_prediction",
    "preconditioned_descent",
    "preconditioned_queries",
    "proposition_1",
    "proposition_2",
    "proposition_2_slots",
    "richardson_inverse",
    "ridge_least_squares",
    "run_steps",
    "system_scale",
]
