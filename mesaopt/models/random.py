"""Random numbers of a seed: the same on every device, and torch's global ones are left alone."""

import contextlib
from collections.abc import Generator

import torch
from jaxtyping import Inexact
from torch import Tensor


@contextlib.contextmanager
def keep_global_random() -> Generator[None]:
    """Keep the state of torch's global generator, from which `torch.nn` draws weights; also a decorator.

    Example:
        >>> before = torch.get_rng_state()
        >>> with keep_global_random():
        ...     layer = torch.nn.Linear(2, 3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


@torch.no_grad()
def draw_normal(x: Inexact[Tensor, "..."], random: torch.Generator, *, std: float) -> None:
    """Fill a tensor with real numbers of a normal distribution, the same on every device.

    Args:
        x: to be filled.
        random: on the CPU.
        std: standard deviation.

    Example:
        >>> x = torch.empty(2, 3)
        >>> draw_normal(x, torch.Generator().manual_seed(0), std=0.1)
        >>> bool(x.abs().max() < 1)
        True
    """
    drawn = torch.randn(x.shape, generator=random, device=random.device, dtype=torch.float32)
    x.copy_(drawn * std)
