"""Operators: pure functions on tensors [batch, time, head, channel]."""

from mesaopt.ops.delta import (
    delta_rule,
    delta_rule_step,
    gated_delta_rule,
    gated_delta_rule_step,
    longhorn,
    longhorn_step,
)
from mesaopt.ops.linear import (
    gated_linear_attention,
    gated_linear_attention_step,
    linear_attention,
    linear_attention_step,
)
from mesaopt.ops.mesa import (
    Auto,
    Chebyshev,
    ConjugateGradient,
    Exact,
    MesaOutput,
    MesaState,
    Neumann,
    Recursive,
    SolveInfo,
    Solver,
    SolverLike,
    SolverName,
    as_solver,
    mesa,
    mesa_step,
)
from mesaopt.ops.softmax import softmax_attention, softmax_attention_step
from mesaopt.ops.state import KeyValueState, LinearState, Output
from mesaopt.ops.validation import OnFailure, RidgeMode

__all__ = [
    "Auto",
    "Chebyshev",
    "ConjugateGradient",
    "Exact",
    "KeyValueState",
    "LinearState",
    "MesaOutput",
    "MesaState",
    "Neumann",
    "OnFailure",
    "Output",
    "Recursive",
    "RidgeMode",
    "SolveInfo",
    "Solver",
    "SolverLike",
    "SolverName",
    "as_solver",
    "delta_rule",
    "delta_rule_step",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "gated_linear_attention",
    "gated_linear_attention_step",
    "linear_attention",
    "linear_attention_step",
    "longhorn",
    "longhorn_step",
    "mesa",
    "mesa_step",
    "softmax_attention",
    "softmax_attention_step",
]
