"""From a first state and noise to all states: the loop that every dynamical system shares."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import LinearSystemConfig, NonlinearSystemConfig, PartiallyObservedConfig

Columns = NDArray[np.float64]
"""One state of every sequence, as columns [batch, dim, 1]."""


def roll_out(
    config: LinearSystemConfig | PartiallyObservedConfig | NonlinearSystemConfig,
    random: np.random.Generator,
    batch_size: int,
    dim: int,
    follow: Callable[[Columns, Columns], Columns],
) -> Float[Tensor, "batch time_and_one dim"]:
    """Draw first states and noise, and let every state follow from the one before.

    s_1 by `config.start`, then s_{t+1} = follow(s_t, noise_std * n_t) with n_t standard normal. Noise is
    drawn step after step, so that a shorter sequence is the beginning of a longer one.

    Args:
        config: with `length`, `noise_std` and the distribution of the first state.
        random: NumPy generator.
        batch_size: sequences.
        dim: of a state.
        follow: called with all states at one time and the noise, [batch, dim, 1] each; returns the next
            states.

    Returns:
        float64 states [batch, length + 1, dim].
    """
    # NumPy, because a tiny product per step costs less there than a call into torch.
    states = np.empty((config.length + 1, batch_size, dim, 1))
    if config.start == "uniform":
        states[0] = random.uniform(-config.start_range, config.start_range, states[0].shape)
    else:
        states[0] = random.standard_normal(states[0].shape)
    random.standard_normal(out=states[1:])
    states[1:] *= config.noise_std
    for before, after in itertools.pairwise(states):
        after[:] = follow(before, after)
    return torch.from_numpy(states).squeeze(-1).transpose(0, 1).contiguous()  # [B,T+1,D]
