"""Analyses of trained models: their predictions, their activations and their weights."""

from mesaopt.analysis.ablation import AblationTable, Effect, ablate
from mesaopt.analysis.attention import (
    AttentionMaps,
    attention_maps,
    attention_mass,
)
from mesaopt.analysis.baselines import Baseline, tuned_baselines
from mesaopt.analysis.capture import (
    capture,
    capturing,
    evaluating,
    up_to,
)
from mesaopt.analysis.diagnosis import Algorithm, Diagnosis, diagnose
from mesaopt.analysis.estimate import Estimate, mean_and_error, variance_over_seeds
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.few_shot import (
    EarlyAscent,
    TunedPrompt,
    early_ascent,
    few_shot_losses,
    tune_prompt,
)
from mesaopt.analysis.in_context import (
    InContextLoss,
    InContextLosses,
    Predictor,
    in_context_loss,
    model_predictor,
)
from mesaopt.analysis.language_results import LanguageResults, TextSample, language_results
from mesaopt.analysis.linearization import (
    Linearization,
    distil,
    linearize,
    unexplained,
    with_layer,
)
from mesaopt.analysis.mixers import MixerMeasurements, measure_mixers
from mesaopt.analysis.parts import captured_names
from mesaopt.analysis.patching import patch, patching
from mesaopt.analysis.polynomial_fits import fit_polynomial, learn_inverse
from mesaopt.analysis.probe_data import ProbeData, collect_activations, stream_names
from mesaopt.analysis.probe_fits import Probe, fit_probe, official_probe_error
from mesaopt.analysis.probe_targets import (
    Target,
    current_token,
    next_token,
    past_token,
    preconditioned_token,
)
from mesaopt.analysis.probes import (
    ProbeScore,
    ProbeTable,
    probe,
    probe_layers,
    score_probes,
)
from mesaopt.analysis.sensitivity import (
    Sensitivity,
    sensitivity,
)
from mesaopt.analysis.token_scores import TokenScore, score_positions, token_scores
from mesaopt.analysis.tuning import (
    InputMap,
    Tuned,
    line_search_step_size,
    tune,
    tune_ridge,
)
from mesaopt.analysis.weights import (
    Compressed,
    block_energy,
    compress,
    effective_coefficients,
    effective_ridges,
    interpolate,
    product_form,
)

__all__ = [
    "AblationTable",
    "Algorithm",
    "AttentionMaps",
    "Baseline",
    "Compressed",
    "Diagnosis",
    "EarlyAscent",
    "Effect",
    "Estimate",
    "Evaluation",
    "InContextLoss",
    "InContextLosses",
    "InputMap",
    "LanguageResults",
    "Linearization",
    "MixerMeasurements",
    "Predictor",
    "Probe",
    "ProbeData",
    "ProbeScore",
    "ProbeTable",
    "Sensitivity",
    "Target",
    "TextSample",
    "TokenScore",
    "Tuned",
    "TunedPrompt",
    "ablate",
    "attention_maps",
    "attention_mass",
    "block_energy",
    "capture",
    "captured_names",
    "capturing",
    "collect_activations",
    "compress",
    "current_token",
    "diagnose",
    "distil",
    "early_ascent",
    "effective_coefficients",
    "effective_ridges",
    "evaluating",
    "few_shot_losses",
    "fit_polynomial",
    "fit_probe",
    "in_context_loss",
    "interpolate",
    "language_results",
    "learn_inverse",
    "line_search_step_size",
    "linearize",
    "mean_and_error",
    "measure_mixers",
    "model_predictor",
    "next_token",
    "official_probe_error",
    "past_token",
    "patch",
    "patching",
    "preconditioned_token",
    "probe",
    "probe_layers",
    "product_form",
    "score_positions",
    "score_probes",
    "sensitivity",
    "stream_names",
    "token_scores",
    "tune",
    "tune_prompt",
    "tune_ridge",
    "tuned_baselines",
    "unexplained",
    "up_to",
    "variance_over_seeds",
    "with_layer",
]
