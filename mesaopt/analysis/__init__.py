"""Analyses: what a trained model does, and how its weights do it."""

from mesaopt.analysis.attention import AttentionMaps, attention_maps, attention_mass
from mesaopt.analysis.capture import capture, captured_names, up_to, watching
from mesaopt.analysis.in_context import (
    InContextLoss,
    Predictor,
    in_context_loss,
    model_predictor,
)
from mesaopt.analysis.sensitivity import Sensitivity, sensitivity
from mesaopt.analysis.tuning import (
    InputMap,
    Tuned,
    fit_polynomial,
    learn_inverse,
    line_search_step_size,
    tune,
)
from mesaopt.analysis.weights import block_energy, compressed_prediction, effective_coefficients

__all__ = [
    "AttentionMaps",
    "InContextLoss",
    "InputMap",
    "Predictor",
    "Sensitivity",
    "Tuned",
    "attention_maps",
    "attention_mass",
    "block_energy",
    "capture",
    "captured_names",
    "compressed_prediction",
    "effective_coefficients",
    "fit_polynomial",
    "in_context_loss",
    "learn_inverse",
    "line_search_step_size",
    "model_predictor",
    "sensitivity",
    "tune",
    "up_to",
    "watching",
]
