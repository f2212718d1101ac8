"""Analyses: what a trained model does, and how its weights do it."""

from mesaopt.analysis.capture import capture, captured_names, watching
from mesaopt.analysis.in_context import (
    InContextLoss,
    Predictor,
    in_context_loss,
    model_predictor,
)
from mesaopt.analysis.tuning import (
    InputMap,
    Tuned,
    fit_polynomial,
    learn_inverse,
    line_search_step_size,
    tune,
)
from mesaopt.analysis.weights import (
    Compressed,
    block_energy,
    compress,
    effective_coefficients,
    interpolate,
    product_form,
)

__all__ = [
    "Compressed",
    "InContextLoss",
    "InputMap",
    "Predictor",
    "Tuned",
    "block_energy",
    "capture",
    "captured_names",
    "compress",
    "effective_coefficients",
    "fit_polynomial",
    "in_context_loss",
    "interpolate",
    "learn_inverse",
    "line_search_step_size",
    "model_predictor",
    "product_form",
    "tune",
    "watching",
]
