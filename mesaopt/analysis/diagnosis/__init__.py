"""The verdict: is there a mesa-optimizer in a model?"""

from mesaopt.analysis.diagnosis.diagnose import Diagnosis, diagnose
from mesaopt.analysis.diagnosis.evidence import Inside, Learning, Memory, ProbeReading
from mesaopt.analysis.diagnosis.verdict import Agreement, Condition, Shift, Verdict

__all__ = [
    "Agreement",
    "Condition",
    "Diagnosis",
    "Inside",
    "Learning",
    "Memory",
    "ProbeReading",
    "Shift",
    "Verdict",
    "diagnose",
]
