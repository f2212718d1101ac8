"""The diagnosis of a model: whether it predicts by optimizing on its context."""

from mesaopt.analysis.diagnosis.algorithms import Algorithm
from mesaopt.analysis.diagnosis.diagnose import Diagnosis, diagnose
from mesaopt.analysis.diagnosis.evidence import Learning, Memory, ProbeResult, ProbeResults
from mesaopt.analysis.diagnosis.rates import LayerSteps, Rates
from mesaopt.analysis.diagnosis.verdict import Agreement, Condition, ShiftResult, Verdict

__all__ = [
    "Agreement",
    "Algorithm",
    "Condition",
    "Diagnosis",
    "LayerSteps",
    "Learning",
    "Memory",
    "ProbeResult",
    "ProbeResults",
    "Rates",
    "ShiftResult",
    "Verdict",
    "diagnose",
]
