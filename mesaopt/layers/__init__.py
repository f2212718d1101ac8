"""Layers: modules with projections around one operator each."""

from mesaopt.layers.attention import LinearSelfAttention, SelfAttention
from mesaopt.layers.mesa import MesaLayer

__all__ = ["LinearSelfAttention", "MesaLayer", "SelfAttention"]
