"""The partially observed linear system: hidden states that rotate, seen through a smaller matrix."""

import functools
from dataclasses import dataclass, field

import torch
from jaxtyping import Inexact
from torch import Tensor

from mesaopt.config import PartiallyObservedConfig
from mesaopt.tasks.batch import Batch, Split, check_sample, tokens_from_states
from mesaopt.tasks.linear_system import linear_step
from mesaopt.tasks.random import generator, haar_orthogonal
from mesaopt.tasks.roll_out import roll_out


@dataclass(frozen=True)
class PartiallyObservedBatch(Batch):
    """A batch whose `states` are observations; what is behind them is here as well.

    Example:
        >>> task = PartiallyObserved(PartiallyObservedConfig(length=3))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.states.shape), tuple(batch.hidden.shape)
        ((2, 4, 5), (2, 4, 15))
    """

    hidden: Inexact[Tensor, "batch time_and_one hidden"] = field(kw_only=True)
    """The hidden states, which `transition` turns."""
    observation: Inexact[Tensor, "batch dim hidden"] = field(kw_only=True)
    """The matrix C of each sequence, through which they are seen."""


class PartiallyObserved:
    """The partially observed linear system of von Oswald et al.

    h_{t+1} = clip(W h_t + noise_std * n_t) and s_t = C h_t + observation_noise_std * m_t, with n_t and m_t
    standard normal, W Haar-random orthogonal and C of independent normals of standard deviation
    `observation_std`; W and C are new for every sequence. One observation does not determine the next;
    without noise, hidden_dim / dim of them do: :func:`mesaopt.config.stacked` lays out tokens of several.

    Args:
        config: dimensions, length, noise, laws and token layout.

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

    def __init__(self, config: PartiallyObservedConfig):
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
    ) -> PartiallyObservedBatch:
        """Draw one batch, a pure function of (seed, split, step), as :meth:`LinearSystem.sample` does.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from; streams never overlap.
            dtype: floating-point type of the batch.
            device: where the batch is put.

        Returns:
            The batch; tokens [batch, length, token_dim], targets [batch, length, dim], transition
            [batch, hidden_dim, hidden_dim].

        Raises:
            ConfigError: seed or step is out of range.
            ValueError: batch_size or dtype is out of range.
        """
        check_sample("real", batch_size=batch_size, dtype=dtype)
        config, stream = self.config, f"partially_observed/{split}"
        random, observing = (generator(seed, name, step) for name in (stream, f"{stream}/noise"))
        transition = haar_orthogonal(random, batch_size, config.hidden_dim)
        observation = random.normal(
            scale=config.observation_std, size=(batch_size, config.dim, config.hidden_dim)
        )
        follow = functools.partial(linear_step, transition.numpy(), clip=config.state_clip)
        hidden = roll_out(config, random, batch_size, config.hidden_dim, follow)
        # A stream of its own, time first: a shorter sequence is the beginning of a longer one.
        noise = observing.standard_normal((config.length + 1, batch_size, config.dim))
        states = hidden @ torch.from_numpy(observation).mT
        states += config.observation_noise_std * torch.from_numpy(noise).transpose(0, 1)
        states, hidden, transition, observation = (
            torch.as_tensor(x).to(device=device, dtype=dtype)
            for x in (states, hidden, transition, observation)
        )
        return PartiallyObservedBatch(
            tokens_from_states(states[:, :-1], config.token_slots),
            states[:, 1:],
            states,
            transition,
            hidden=hidden,
            observation=observation,
        )
