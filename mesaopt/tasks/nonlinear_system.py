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
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.random import generator, haar_orthogonal
from mesaopt.tasks.roll_out import Columns, roll_out


class NonlinearSystem(GeneratedTask[NonlinearSystemConfig, Batch]):
    """The nonlinear dynamical system of von Oswald et al.

    s_{t+1} = W f(s_t) + noise_std * n_t, with n_t standard normal, W Haar-random orthogonal, new for every
    sequence, and features f(s) = MLP(s) / |MLP(s)|, where MLP(s) = B gelu(A s) is one teacher for all: its
    weights are normal of standard deviation `teacher_std`, drawn from `teacher_seed`, or given as
    `teacher_hidden`, A, and `teacher_output`, B. The system is linear in the features: :meth:`features`.

    Args:
        config: dimension, length, teacher, noise, initial states and token layout.

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

    config_type = NonlinearSystemConfig
    batch_type = Batch

    def __init__(self, config: NonlinearSystemConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        config = self.config
        if config.teacher_hidden is not None:
            self._first = np.array(config.teacher_hidden, dtype=np.float64)
            self._second = np.array(config.teacher_output, dtype=np.float64)
            return
        random = generator(config.teacher_seed, "nonlinear_system/teacher")
        self._first = config.teacher_std * random.standard_normal((config.hidden_dim, config.dim))
        self._second = config.teacher_std * random.standard_normal((config.dim, config.hidden_dim))

    def teacher(self, states: Inexact[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch dim"]:
        """Return the teacher's output B gelu(A s), without the division by its norm.

        Args:
            states: [..., dim], on any device.

        Returns:
            The same shape and type, computed in float64 on the CPU and without a gradient.
        """
        return _through(self._mlp, states)

    def features(self, states: Inexact[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch dim"]:
        """Return f(s): the teacher's output, divided by its norm unless normalisation is "none".

        Args:
            states: [..., dim], on any device.

        Returns:
            The same shape and type, computed in float64 on the CPU and without a gradient.
        """
        return _through(self._features, states)

    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw the matrices and roll out the states; see :meth:`GeneratedTask.draw`."""
        config, random = self.config, streams()
        transition = haar_orthogonal(random, batch_size, config.dim)
        matrices = transition.numpy()

        def follow(before: Columns, noise: Columns) -> Columns:
            return matrices @ self._features(before[..., 0])[..., None] + noise

        states = roll_out(config, random, batch_size, config.dim, follow)
        return {"states": states, "transition": transition}

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
