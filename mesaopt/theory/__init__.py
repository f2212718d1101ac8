"""Theory that runs: constructions (weights set by hand) and closed-form baselines."""

from mesaopt.theory.constructions import proposition_1, proposition_2, proposition_2_slots
from mesaopt.theory.context import Context, Pairs, context_of, context_statistics
from mesaopt.theory.in_context_languages import in_context_baum_welch, in_context_n_gram
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
from mesaopt.theory.recall import chance, exact_answers, least_squares_recall
from mesaopt.theory.text_n_gram import text_n_gram

__all__ = [
    "PUBLISHED_INVERSES",
    "PUBLISHED_SETTINGS",
    "ApproximateInverse",
    "Context",
    "Objective",
    "Pairs",
    "PublishedSetting",
    "chance",
    "chebyshev_inverse",
    "context_of",
    "context_statistics",
    "exact_answers",
    "gradient_descent",
    "in_context_baum_welch",
    "in_context_n_gram",
    "kernel_regression",
    "least_squares_recall",
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
    "text_n_gram",
]
