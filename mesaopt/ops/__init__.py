"""Operators: pure functions on tensors [batch, time, head, channel]."""

from mesaopt.ops.linear import linear_attention
from mesaopt.ops.mesa import mesa

__all__ = ["linear_attention", "mesa"]
