"""Operators: pure functions on tensors [batch, time, head, channel]."""

from mesaopt.ops.linear import linear_attention
from mesaopt.ops.mesa import MesaOutput, MesaState, SolveInfo, mesa, mesa_step

__all__ = ["MesaOutput", "MesaState", "SolveInfo", "linear_attention", "mesa", "mesa_step"]
