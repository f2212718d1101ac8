"""Layers and inputs small enough for tests by hand, in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mesaopt.layers import SelfAttention

WIDTH, HEADS, DIM = 6, 2, 5
SIZES = {"width": WIDTH, "num_heads": HEADS, "head_dim": DIM}


def small_layer(build: Callable[..., SelfAttention], seed: int = 0, **settings: Any) -> Any:
    """Build a layer with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return build(**SIZES, **settings).double()


def small_input(batch: int = 2, time: int = 9, seed: int = 1) -> Tensor:
    """Draw the stream [batch, time, width] that a layer reads."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, WIDTH, generator=random, dtype=torch.float64)
