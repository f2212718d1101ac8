"""The nonlinear system: a fixed network, the teacher, then a fresh rotation per sequence."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Inexact
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import NonlinearSystemConfig
from mesaopt.tasks.batch import Batch, Split, check_sample, tokens_from_states
from mesaopt.tasks.random import generator, haar_orthogonal
from mesaopt.tasks.roll_out import Columns, roll_out


class NonlinearSystem:
    """The nonlinear dynamical system of von Oswald et al.

    s_{t+1} = W f(s_t) + noise_std * n_t, with n_t standard normal, W Haar-random orthogonal, new for every
    sequence, and features f(s) = MLP(s) / |MLP(s)|, where MLP(s) = B gelu(A s) is one teacher for all: its
    weights are normal of standard deviation `teacher_std`, drawn from `teacher_seed`. To whoever knows f,
    the system is linear in it: :meth:`features`.

    Args:
        config: dimension, length, teacher, noise, start law and token layout.

    Source: von Oswald et al., arXiv 2309.05858v2, section "Nonlinear dynamics"; the division by the norm,
    the start on [-0.25, 0.25]^dim and gelu by way of tanh are those of the authors' code. The text has no
    division (`normalisation="none"`): states then grow about sixteenfold in a step, and 50 of them do not
    fit into float32.

    Example:
        >>> task = NonlinearSystem(NonlinearSystemConfig(noise_std=0.0))
        >>> batch = task.sample(2, seed=0)
        >>> turned = task.features(batch.observed) @ batch.transition.mT
        >>> bool(torch.allclose(turned, batch.targets, atol=1e-5))
        True
    """

    def __init__(self, config: NonlinearSystemConfig):
        self.config = config
        random = generator(config.teacher_seed, "nonlinear_system/teacher")
        self._first = config.teacher_std * random.standard_normal((config.hidden_dim, config.dim))
        self._second = config.teacher_std * random.standard_normal((config.dim, config.hidden_dim))

    def teacher(self, states: Inexact[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch dim"]:
        """Send states through the teacher: B gelu(A s), whatever the normalisation.

        Args:
            states: [..., dim], on any device.

        Returns:
            The same shape and type, computed in float64 on the CPU and without a gradient.
        """
        return _through(self._mlp, states)

    def features(self, states: Inexact[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch dim"]:
        """Give what W acts on: the teacher's output, divided by its norm unless normalisation is "none".

        Args:
            states: [..., dim], on any device.

        Returns:
            The same shape and type, computed in float64 on the CPU and without a gradient.
        """
        return _through(self._features, states)

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
        """Draw one batch, a pure function of (seed, split, step), as :meth:`LinearSystem.sample` does.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from; streams never overlap.
            dtype: floating-point type of the batch.
            device: where the batch is put.

        Returns:
            The batch; tokens [batch, length, token_dim], targets [batch, length, dim].

        Raises:
            ConfigError: seed or step is out of range.
            ValueError: batch_size or dtype is out of range, or states outgrow the dtype.
        """
        check_sample("real", batch_size=batch_size, dtype=dtype)
        config, random = self.config, generator(seed, f"nonlinear_system/{split}", step)
        transition = haar_orthogonal(random, batch_size, config.dim)
        matrices = transition.numpy()

        def follow(before: Columns, noise: Columns) -> Columns:
            return matrices @ self._features(before[..., 0])[..., None] + noise

        states = roll_out(config, random, batch_size, config.dim, follow)
        states, transition = (x.to(device=device, dtype=dtype) for x in (states, transition))
        if not states.isfinite().all():
            raise ValueError(
                f"dtype={dtype}: states outgrow it in length={config.length} steps with "
                f"normalisation={config.normalisation!r}: must be shorter, or of a smaller teacher_std"
            )
        tokens = tokens_from_states(states[:, :-1], config.token_slots)
        return Batch(tokens, states[:, 1:], states, transition)

    def _mlp(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        return _gelu(states @ self._first.T) @ self._second.T

    def _features(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        out = self._mlp(states)
        if self.config.normalisation == "l2":
            out /= np.linalg.norm(out, axis=-1, keepdims=True) + 1e-16  # as in the authors' code
        return out


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # By way of tanh, as the authors' framework has it; x**3 would take NumPy ten times as long.
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _through(function: Callable[[NDArray[Any]], NDArray[Any]], states: Tensor) -> Tensor:
    out = function(states.detach().cpu().double().numpy())
    return torch.from_numpy(out).to(states)
