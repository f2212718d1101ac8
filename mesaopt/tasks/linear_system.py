"""The fully observed linear system: states that rotate, one fresh rotation per sequence."""

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.config import LinearSystemConfig
from mesaopt.tasks.batch import Batch, Split, tokens_from_states
from mesaopt.tasks.random import generator, haar_orthogonal


class LinearSystem:
    """The linear dynamical system of von Oswald et al.

    The state follows s_{t+1} = clip(W s_t + noise_std * n_t), with W Haar-random orthogonal, new for
    every sequence, n_t standard normal, and s_1 uniform on [-1, 1]^dim. The paper's text starts from
    a standard normal; the authors' code, which made the published numbers, from the uniform law
    (`start` chooses). Tokens are built by :func:`tokens_from_states`.

    Args:
        config: dimension, length, noise, clip, start law and token layout.

    Source: von Oswald et al., arXiv 2309.05858v2, section "Linear dynamics"; the authors' code.

    Example:
        >>> task = LinearSystem(LinearSystemConfig(dim=3, length=5))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.tokens.shape), tuple(batch.targets.shape)
        ((2, 5, 12), (2, 5, 3))
    """

    def __init__(self, config: LinearSystemConfig):
        self.config = config

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Draw one batch, a pure function of (seed, split, step) on every device.

        The numbers are always drawn and rolled out in float64 on the CPU, then rounded to `dtype` and
        moved: a float32 batch is the float64 batch rounded, and a GPU sees what a CPU sees.

        Args:
            batch_size: sequences.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from; streams never overlap.
            dtype: floating-point type of the batch.
            device: where the batch is put.

        Returns:
            The batch; tokens [batch, length, token_dim], targets [batch, length, dim].

        Raises:
            ConfigError: seed or step is out of range.
        """
        random = generator(seed, f"linear_system/{split}", step)
        transition = haar_orthogonal(random, batch_size, self.config.dim)
        states = self._roll_out(random, transition)
        states, transition = (x.to(device=device, dtype=dtype) for x in (states, transition))
        tokens = tokens_from_states(states[:, :-1], self.config.token_slots)
        return Batch(tokens, states[:, 1:], states, transition)

    def _roll_out(
        self, random: np.random.Generator, transition: Float[Tensor, "batch dim dim"]
    ) -> Float[Tensor, "batch time_and_one dim"]:
        config, batch_size = self.config, transition.shape[0]
        draw_start = random.standard_normal
        if config.start == "uniform":
            draw_start = functools.partial(random.uniform, -1.0, 1.0)
        # NumPy, because a tiny product per step costs less there than a call into torch.
        states = np.empty((config.length + 1, batch_size, config.dim, 1))
        states[0] = draw_start(size=states[0].shape)
        states[1:] = random.standard_normal(states[1:].shape)
        states[1:] *= config.noise_std
        for before, after in itertools.pairwise(states):
            after += transition.numpy() @ before
            after.clip(-config.state_clip, config.state_clip, out=after)
        return torch.from_numpy(states).squeeze(-1).transpose(0, 1).contiguous()  # [B,T+1,D]
