"""Batches of sequences: the inputs, the targets, and the positions that are scored."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from mesaopt.config import TokenSlot, check_slots, require_count
from mesaopt.tasks.losses import squared_error

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Sequences as a model sees them, with the states and matrices behind them.

    Example:
        >>> x = torch.arange(1.0, 5.0).view(1, 4, 1)
        >>> known, next_ones = x[:, :-1], x[:, 1:]
        >>> batch = Batch(known, next_ones, x, torch.zeros(1, 1, 1), scored=slice(1, None))
        >>> batch.positions, batch.losses(known).tolist()
        (range(2, 4), [[0.5, 0.5]])
    """

    tokens: Inexact[Tensor, "batch time token"]
    """Inputs of a model; position t holds nothing later than time t."""
    targets: Inexact[Tensor, "batch time dim"]
    """Targets; at position t the state at time t + 1."""
    states: Inexact[Tensor, "batch time_and_one dim"]
    """All states (observations where a system is partially observed), the last target included."""
    transition: Inexact[Tensor, "batch hidden hidden"]
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

    def split(self, size: int) -> Iterator[Self]:
        """Cut the batch into smaller ones.

        Args:
            size: sequences in each but perhaps the last, 1 or more.

        Returns:
            The parts in order, as views.
        """
        require_count("size", size, smallest=1)
        names = [f.name for f in fields(self) if f.name != "scored"]
        parts = (getattr(self, name).split(size) for name in names)
        for pieces in zip(*parts, strict=True):
            yield replace(self, **dict(zip(names, pieces, strict=True)))


@runtime_checkable
class Task(Protocol):
    """Anything that draws batches. The tasks of the library are each a :class:`GeneratedTask`.

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
        """Draw one batch, a pure function of (seed, split, step).

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from; streams never overlap.
            device: where the batch is put.

        Returns:
            The batch.
        """
        ...


def tokens_from_states(
    states: Inexact[Tensor, "batch time dim"], slots: tuple[TokenSlot, ...]
) -> Inexact[Tensor, "batch time token"]:
    """Build tokens by laying states side by side.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        slots: contents of each slot: "current" s_t, "previous" s_{t-1}, an integer k s_{t-k}, "zero" zeros.
            States before s_1 are zero.

    Returns:
        Tokens [batch, time, len(slots) * dim].

    Source: von Oswald et al., section "Constructed tokens": [0, s_t, s_t, s_{t-1}] in the authors'
    code, [0, s_t, s_{t-1}] in the main text; [s_t, ..., s_{t-15}] for partial observation, which
    :func:`mesaopt.config.stacked` lays out. Zheng et al. have [0, s_t, s_{t-1}] in the paper and
    [s_t, s_{t-1}] in their code.

    Example:
        >>> tokens_from_states(torch.tensor([[[1.0], [2.0]]]), ("current", "previous"))
        tensor([[[1., 0.],
                 [2., 1.]]])
    """
    check_slots(slots, "slots")
    return torch.cat([_slot(states, slot) for slot in slots], dim=-1)


def _slot(states: Tensor, slot: TokenSlot) -> Tensor:
    """s_{t-k} at position t, and zero where there is none."""
    time = states.shape[1]
    steps_back = {"current": 0, "previous": 1, "zero": time}
    k = slot if isinstance(slot, int) else steps_back[slot]
    return torch.nn.functional.pad(states, (0, 0, k, 0))[:, :time]
