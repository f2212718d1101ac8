"""Analyses: what a trained model does, and how its weights do it."""

from mesaopt.analysis.attention import (
    AttentionMaps,
    attention_maps,
    attention_mass,
)
from mesaopt.analysis.capture import (
    capture,
    captured_names,
    up_to,
    watching,
)
from mesaopt.analysis.in_context import (
    InContextLoss,
    Predictor,
    in_context_loss,
    model_predictor,
)
from mesaopt.analysis.probes import (
    Probe,
    ProbeScore,
    ProbeTable,
    Readings,
    Target,
    current_token,
    fit_probe,
    next_token,
    official_probe_error,
    past_token,
    preconditioned_token,
    probe,
    probe_layers,
    probe_readings,
    read_layers,
    stream_names,
)
from mesaopt.analysis.sensitivity import (
    Sensitivity,
    sensitivity,
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
    block_energy,
    compressed_prediction,
    effective_coefficients,
)

__all__ = [
    "AttentionMaps",
    "InContextLoss",
    "InputMap",
    "Predictor",
    "Probe",
    "ProbeScore",
    "ProbeTable",
    "Readings",
    "Sensitivity",
    "Target",
    "Tuned",
    "attention_maps",
    "attention_mass",
    "block_energy",
    "capture",
    "captured_names",
    "compressed_prediction",
    "current_token",
    "effective_coefficients",
    "fit_polynomial",
    "fit_probe",
    "in_context_loss",
    "learn_inverse",
    "line_search_step_size",
    "model_predictor",
    "next_token",
    "official_probe_error",
    "past_token",
    "preconditioned_token",
    "probe",
    "probe_layers",
    "probe_readings",
    "read_layers",
    "sensitivity",
    "stream_names",
    "tune",
    "up_to",
    "watching",
]
