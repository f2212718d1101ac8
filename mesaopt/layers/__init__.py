"""Layers: modules with projections around one operator each.

The operators are in :mod:`mesaopt.ops`, stacks of layers in :mod:`mesaopt.models`.
"""

from mesaopt.layers.attention import SelfAttention
from mesaopt.layers.convolution import CausalConvolution
from mesaopt.layers.frame import Frame, Gates, HeadNorm
from mesaopt.layers.linear import (
    DeltaRuleLayer,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    LearningRule,
    LinearAttentionLayer,
    LinearSelfAttention,
    LonghornLayer,
)
from mesaopt.layers.merged import MergedLinearSelfAttention
from mesaopt.layers.mesa import MesaLayer
from mesaopt.layers.softmax import SoftmaxSelfAttention
from mesaopt.layers.state import HeadInputs, LayerState

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
    "LearningRule",
    "LinearAttentionLayer",
    "LinearSelfAttention",
    "LonghornLayer",
    "MergedLinearSelfAttention",
    "MesaLayer",
    "SelfAttention",
    "SoftmaxSelfAttention",
]
