"""What every task gives: batches that say what is known, what to predict, and where it counts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from mesaopt.config import TokenSlot
from mesaopt.tasks.losses import squared_error

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Sequences as a model sees them, and what they were made from.

    Example:
        >>> x = torch.arange(1.0, 5.0).view(1, 4, 1)
        >>> known, next_ones = x[:, :-1], x[:, 1:]
        >>> batch = Batch(known, next_ones, x, torch.zeros(1, 1, 1), scored=slice(1, None))
        >>> batch.positions, batch.losses(known).tolist()
        (range(2, 4), [[0.5, 0.5]])
    """

    tokens: Inexact[Tensor, "batch time token"]
    """Inputs; position t holds what is known at time t."""
    targets: Inexact[Tensor, "batch time dim"]
    """What to predict at position t: the state at time t + 1."""
    states: Inexact[Tensor, "batch time_and_one dim"]
    """All states, the last target included."""
    transition: Inexact[Tensor, "batch dim dim"]
    """The matrix W of each sequence, which turns a state into the next one."""
    scored: slice = field(default_factory=lambda: slice(None))
    """The places along time where a prediction counts."""

    @property
    def observed(self) -> Inexact[Tensor, "batch time dim"]:
        """The states that the tokens show: all but the last."""
        return self.states[:, :-1]

    @property
    def positions(self) -> range:
        """The scored positions, counted from 1."""
        return range(1, self.targets.shape[1] + 1)[self.scored]

    def losses(
        self, prediction: Inexact[Tensor, "batch time dim"]
    ) -> Float[Tensor, "batch scored"]:
        """Score predictions at the positions that count.

        Args:
            prediction: at every position, [batch, time, dim].

        Returns:
            :func:`squared_error` at the scored positions, [batch, scored].

        Raises:
            ValueError: the shape is not that of the targets.
        """
        return squared_error(prediction, self.targets)[:, self.scored]

    def split(self, size: int) -> Iterator["Batch"]:
        """Cut the batch into smaller ones.

        Args:
            size: sequences in each but perhaps the last, 1 or more.

        Returns:
            The parts in order, as views.
        """
        parts = (self.tokens, self.targets, self.states, self.transition)
        for pieces in zip(*(part.split(size) for part in parts), strict=True):
            yield Batch(*pieces, scored=self.scored)


@runtime_checkable
class Task(Protocol):
    """Where sequences come from.

    Example:
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.config import LinearSystemConfig
        >>> isinstance(LinearSystem(LinearSystemConfig()), Task)
        True
    """

    def sample(
        self,
        batch_size: int,
        *,
        seed: int,
        step: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Draw one batch, a pure function of (seed, split, step)."""
        ...


def tokens_from_states(
    states: Inexact[Tensor, "batch time dim"], slots: tuple[TokenSlot, ...]
) -> Inexact[Tensor, "batch time token"]:
    """Build tokens by laying states side by side.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        slots: what stands where: "current" s_t, "previous" s_{t-1} (with s_0 = 0), "zero" nothing.

    Returns:
        Tokens [batch, time, len(slots) * dim].

    Source: von Oswald et al., section "Constructed tokens": [0, s_t, s_t, s_{t-1}] in the authors'
    code, [0, s_t, s_{t-1}] in the main text. Zheng et al. have the latter in the paper and
    [s_t, s_{t-1}] in their code.

    Example:
        >>> tokens_from_states(torch.tensor([[[1.0], [2.0]]]), ("current", "previous"))
        tensor([[[1., 0.],
                 [2., 1.]]])
    """
    zero = torch.zeros_like(states)
    previous = torch.cat([zero[:, :1], states[:, :-1]], dim=1)
    parts = {"zero": zero, "current": states, "previous": previous}
    return torch.cat([parts[slot] for slot in slots], dim=-1)
