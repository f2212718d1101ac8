"""Layers: modules with projections around one operator each."""

from mesaopt.layers.attention import HeadInputs, LayerState, SelfAttention
from mesaopt.layers.frame import CausalConvolution, Frame, Gates, HeadNorm
from mesaopt.layers.merged import MergedLinearSelfAttention
from mesaopt.layers.mesa import MesaLayer, Solver
from mesaopt.layers.relatives import (
    DeltaRuleLayer,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    LinearSelfAttention,
    LonghornLayer,
    SoftmaxSelfAttention,
)

__all__ = [
    "CausalConvolution",
    "DeltaRuleLayer",
    "Frame",
    "GatedDeltaRuleLayer",
    "GatedLinearSelfAttention",
    "Gates",
    "HeadInputs",
    "HeadNorm",
    "LayerState",
    "LinearSelfAttention",
    "LonghornLayer",
    "MergedLinearSelfAttention",
    "MesaLayer",
    "SelfAttention",
    "SoftmaxSelfAttention",
    "Solver",
]
