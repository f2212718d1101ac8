"""The fully observed linear system: states that rotate, contract, or follow one fixed matrix."""

import functools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.config import LinearSystemConfig
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.random import contracting, generator, haar_orthogonal
from mesaopt.tasks.roll_out import roll_out


class LinearSystem(GeneratedTask[LinearSystemConfig, Batch]):
    """The linear dynamical system of von Oswald et al.

    The state follows s_{t+1} = clip(W s_t + noise_std * n_t), with n_t standard normal and s_1 uniform on
    [-1, 1]^dim. The paper's text starts from a standard normal; the authors' code, which made the
    published numbers, from the uniform distribution (`start` chooses). `transition` chooses W:

    - "orthogonal": Haar-random orthogonal, new for every sequence;
    - "contracting": :func:`mesaopt.tasks.contracting`, new for every sequence; published with
      `state_clip=2`, because one sequence in ten would come to a norm above 10 first;
    - "fixed": one matrix for every sequence of every seed, which a model can learn by heart: `matrix`, or
      an orthogonal one drawn from `teacher_seed`.

    Tokens are built by :func:`tokens_from_states`.

    Args:
        config: dimension, length, noise, clip, distributions and token layout.

    Source: von Oswald et al., arXiv 2309.05858v2, section "Linear dynamics", appendices E.1 and E.2; the
    authors' code.

    Example:
        >>> task = LinearSystem(LinearSystemConfig(dim=3, length=5))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.tokens.shape), tuple(batch.targets.shape)
        ((2, 5, 12), (2, 5, 3))
        >>> fixed = LinearSystem(dim=3, length=5, transition="fixed")
        >>> bool((fixed.sample(1, seed=0).transition == fixed.sample(1, seed=1).transition).all())
        True
    """

    config_type = LinearSystemConfig
    batch_type = Batch

    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw the matrices and roll out the states; see :meth:`GeneratedTask.draw`."""
        config, random = self.config, streams()
        transition = self._transitions(random, batch_size)
        follow = functools.partial(linear_step, transition.numpy(), clip=config.state_clip)
        states = roll_out(config, random, batch_size, config.dim, follow)
        return {"states": states, "transition": transition}

    def _transitions(
        self, random: np.random.Generator, batch_size: int
    ) -> Float[Tensor, "batch dim dim"]:
        dim = self.config.dim
        if self.config.transition == "fixed":
            return self._teacher.expand(batch_size, dim, dim)
        draw = contracting if self.config.transition == "contracting" else haar_orthogonal
        return draw(random, batch_size, dim)

    @functools.cached_property
    def _teacher(self) -> Float[Tensor, "one dim dim"]:
        if self.config.matrix is not None:
            return torch.tensor(self.config.matrix, dtype=torch.float64).unsqueeze(0)
        teacher = generator(self.config.teacher_seed, "linear_system/teacher")
        return haar_orthogonal(teacher, 1, self.config.dim)


def linear_step(
    transition: np.ndarray, before: np.ndarray, noise: np.ndarray, *, clip: float
) -> np.ndarray:
    """Let states follow a linear map: clip(W s_t + noise), for W [batch, dim, dim]."""
    return (transition @ before + noise).clip(-clip, clip)
