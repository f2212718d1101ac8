"""Analyses: what a trained model does, and how its weights do it."""

from mesaopt.analysis.in_context import (
    InContextLoss,
    Predictor,
    in_context_loss,
    line_search_step_size,
    model_predictor,
)
from mesaopt.analysis.weights import block_energy, compressed_prediction, effective_coefficients

__all__ = [
    "InContextLoss",
    "Predictor",
    "block_energy",
    "compressed_prediction",
    "effective_coefficients",
    "in_context_loss",
    "line_search_step_size",
    "model_predictor",
]
