"""Analyses: what a trained model does, and how its weights do it."""

from mesaopt.analysis.capture import capture, captured_names, watching
from mesaopt.analysis.few_shot import (
    EarlyAscent,
    TunedPrompt,
    early_ascent,
    few_shot_losses,
    tune_prompt,
)
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
from mesaopt.analysis.weights import block_energy, compressed_prediction, effective_coefficients

__all__ = [
    "EarlyAscent",
    "InContextLoss",
    "InputMap",
    "Predictor",
    "Tuned",
    "TunedPrompt",
    "block_energy",
    "capture",
    "captured_names",
    "compressed_prediction",
    "early_ascent",
    "effective_coefficients",
    "few_shot_losses",
    "fit_polynomial",
    "in_context_loss",
    "learn_inverse",
    "line_search_step_size",
    "model_predictor",
    "tune",
    "tune_prompt",
    "watching",
]
