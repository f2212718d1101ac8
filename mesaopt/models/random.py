"""Torch's global random numbers, left alone by what takes a seed of its own."""

import contextlib
from collections.abc import Generator

import torch


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
