"""The autoregressive process: complex states that rotate, each coordinate at a speed of its own."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import ARProcessConfig, Split, StartName
from mesaopt.tasks.base import GeneratedTask, Streams, check_sample, streams_of
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.distributions import InitialStates, SampledStates, Sampler
from mesaopt.tasks.named_distributions import initial_states

_BLOCK = 256  # sequences drawn at a time, the same whatever is asked for


class ARProcess(GeneratedTask[ARProcessConfig, Batch]):
    """The first-order autoregressive process of Zheng et al.

    x_{t+1} = W x_t with W = diag(exp(i theta_1), ..., exp(i theta_d)), theta_j uniform on [0, 2 pi), new
    for every sequence, and x_1 from a distribution of its own. So x_t = exp(i theta (t - 1)) x_1, without
    noise.
    At t = 1 there is no pair (previous, current) to learn from, so contexts t = 2 ... T - 1 are scored.

    Args:
        config: dimension, length, distribution of x_1 and token layout.
        start: the distribution of x_1, in place of the configuration's: a name, a
            :class:`mesaopt.tasks.InitialStates`, or a function of a NumPy generator, a count and a
            dimension that returns states [count, dim].

    Source: Zheng et al., arXiv 2405.16845, the data of their experiments.

    Example:
        >>> task = ARProcess(ARProcessConfig(dim=3, length=5))
        >>> batch = task.sample(2, seed=0)
        >>> tuple(batch.tokens.shape), tuple(batch.targets.shape), batch.positions
        ((2, 4, 6), (2, 4, 3), range(2, 5))
        >>> def own(random, count, dim):
        ...     return random.laplace(size=(count, dim))
        >>> ARProcess(ARProcessConfig(dim=3, length=5), start=own).sample(2, seed=0).states.dtype
        torch.complex64
    """

    config_type = ARProcessConfig
    batch_type = Batch

    def __init__(
        self,
        config: ARProcessConfig | None = None,
        start: Sampler | InitialStates | StartName | None = None,
        **settings: Any,
    ):
        if isinstance(start, str):
            settings["start"], start = start, None
        super().__init__(config, **settings)
        if start is None:
            self.start = initial_states(self.config.start, scale=self.config.start_scale)
        else:
            self.start = start if isinstance(start, InitialStates) else SampledStates(start)

    @property
    def scored(self) -> slice:
        """All positions but the first, where no pair of states is known."""
        return slice(1, None)

    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw first states and angles, and turn; see :meth:`GeneratedTask.draw`."""
        blocks = self._blocks(batch_size, streams())
        start, theta = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        transition = torch.diag_embed(torch.from_numpy(_turn(theta)))
        return {"states": self._roll_out(start, theta), "transition": transition}

    def chunks(
        self,
        num_sequences: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        chunk_size: int = 256,
        dtype: torch.dtype = torch.complex128,
    ) -> Iterator[Complex[Tensor, "batch time dim"]]:
        """Draw the states of :meth:`sample` a few sequences at a time, which saves memory.

        Args:
            num_sequences: in all, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from.
            chunk_size: sequences at a time, 1 or more, and 256 at most; it changes no number.
            dtype: torch.complex64 or torch.complex128.

        Returns:
            States [chunk_size, T, dim], fewer at the end of every 256.

        Raises:
            ConfigError: seed or step is out of range, or the sampler of x_1 returns no such states.
            ValueError: num_sequences, chunk_size or dtype is out of range.

        Example:
            >>> task = ARProcess(ARProcessConfig(dim=3, length=5))
            >>> [len(states) for states in task.chunks(600, seed=0)]
            [256, 256, 88]
        """
        check_sample("complex", num_sequences=num_sequences, chunk_size=chunk_size, dtype=dtype)
        streams = streams_of(self.config.kind, seed=seed, step=step, split=split)
        blocks = self._blocks(num_sequences, streams())
        return (
            self._roll_out(start[i : i + chunk_size], theta[i : i + chunk_size]).to(dtype)
            for start, theta in blocks
            for i in range(0, len(start), chunk_size)
        )

    def _blocks(
        self, count: int, random: np.random.Generator
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
        """Draw x_1 and theta, [count, dim] each, block by block: the two that make up a sequence."""
        dim = self.config.dim

        def block(left: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
            start = self.start.sample(random, _BLOCK, dim)
            theta = random.uniform(0, 2 * math.pi, (_BLOCK, dim))
            return start[:left], theta[:left]

        return (block(count - done) for done in range(0, count, _BLOCK))

    def _roll_out(
        self, start: NDArray[Any], theta: NDArray[np.float64]
    ) -> Complex[Tensor, "batch time dim"]:
        angles = theta[:, None] * np.arange(self.config.length)[:, None]  # [B,T,D]
        return torch.from_numpy(_turn(angles) * start[:, None])


def _turn(angles: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Compute exp(i angle), in half the time of NumPy's exponential of a complex number."""
    turned = np.empty(angles.shape, dtype=np.complex128)
    np.cos(angles, out=turned.real)
    np.sin(angles, out=turned.imag)
    return turned
