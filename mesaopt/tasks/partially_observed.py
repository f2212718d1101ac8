"""The partially observed linear system: rotating hidden states, observed through a smaller matrix."""

import functools
from dataclasses import dataclass, field

import torch
from jaxtyping import Inexact
from torch import Tensor

from mesaopt.config import PartiallyObservedConfig
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.linear_system import linear_step
from mesaopt.tasks.random import haar_orthogonal
from mesaopt.tasks.roll_out import roll_out


@dataclass(frozen=True, repr=False)
class PartiallyObservedBatch(Batch):
    """A batch whose `states` are observations, with the hidden states and matrices behind them.

    Example:
        >>> task = PartiallyObserved(PartiallyObservedConfig(length=3))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.states.shape), tuple(batch.hidden.shape)
        ((2, 4, 5), (2, 4, 15))
    """

    hidden: Inexact[Tensor, "batch time_and_one hidden"] = field(kw_only=True)
    """The hidden states, which follow `transition`."""
    observation: Inexact[Tensor, "batch dim hidden"] = field(kw_only=True)
    """The observation matrix C of each sequence."""


class PartiallyObserved(GeneratedTask[PartiallyObservedConfig, PartiallyObservedBatch]):
    """The partially observed linear system of von Oswald et al.

    h_{t+1} = clip(W h_t + noise_std * n_t) and s_t = C h_t + observation_noise_std * m_t, with n_t and m_t
    standard normal, W Haar-random orthogonal and C of independent normals of standard deviation
    `observation_std`; W and C are new for every sequence. One observation does not determine the next;
    without noise, hidden_dim / dim of them do: :func:`mesaopt.config.stacked` lays out tokens of several.

    Args:
        config: dimensions, length, noise, distributions and token layout.

    Source: von Oswald et al., arXiv 2309.05858v2, section "Partially observed linear dynamics"; h_1 and the
    scale of C as in the authors' code. Their text has h_1 standard normal and writes N(0, 0.5) for C, which
    in the code is a standard deviation.

    Example:
        >>> from mesaopt.config import stacked
        >>> task = PartiallyObserved(PartiallyObservedConfig(token_slots=stacked(16)))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.tokens.shape), tuple(batch.targets.shape)
        ((2, 50, 80), (2, 50, 5))
    """

    config_type = PartiallyObservedConfig
    batch_type = PartiallyObservedBatch

    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw the matrices, roll out hidden states, observe them; see :meth:`GeneratedTask.draw`."""
        config, random = self.config, streams()
        transition = haar_orthogonal(random, batch_size, config.hidden_dim)
        size = (batch_size, config.dim, config.hidden_dim)
        observation = torch.from_numpy(random.normal(scale=config.observation_std, size=size))
        follow = functools.partial(linear_step, transition.numpy(), clip=config.state_clip)
        hidden = roll_out(config, random, batch_size, config.hidden_dim, follow)
        # A stream of its own, time first: a shorter sequence is the beginning of a longer one.
        size = (config.length + 1, batch_size, config.dim)
        noise = torch.from_numpy(streams("noise").standard_normal(size))
        states = hidden @ observation.mT
        states += config.observation_noise_std * noise.transpose(0, 1)
        return {
            "states": states,
            "transition": transition,
            "hidden": hidden,
            "observation": observation,
        }
