"""Batches of sequences: the inputs, the targets, and the positions that are scored."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from mesaopt.config import Split, TokenSlot, check_slots, require_count
from mesaopt.tasks.losses import squared_error

_Batch = TypeVar("_Batch", bound="Batch")


@dataclass(frozen=True, repr=False)
class Batch:
    """Sequences as a model sees them, and what is behind them where it is known.

    Tokens and targets are enough. Subclasses may hold more, one row per sequence in every tensor.

    Example:
        >>> x = torch.arange(1.0, 5.0).view(1, 4, 1)
        >>> known, next_ones = x[:, :-1], x[:, 1:]
        >>> batch = Batch(known, next_ones, x, torch.zeros(1, 1, 1), scored=slice(1, None))
        >>> batch.positions, batch.losses(known).tolist()
        (range(2, 4), [[0.5, 0.5]])
        >>> Batch(known, next_ones)
        Batch(tokens=float32 [1, 3, 1], targets=float32 [1, 3, 1])
        >>> Batch(known, next_ones).observed
        Traceback (most recent call last):
        ...
        ValueError: batch.states: is missing; must be given where states are asked for
    """

    tokens: Inexact[Tensor, "batch time token"]
    """Inputs of a model; position t holds nothing later than time t."""
    targets: Inexact[Tensor, "batch time dim"]
    """Targets; at position t the state at time t + 1."""
    states: Inexact[Tensor, "batch time_and_one dim"] | None = None
    """All states (observations where a system is partially observed), the last target included."""
    transition: Inexact[Tensor, "batch hidden hidden"] | None = None
    """The matrix W of each sequence, which turns a state into the next one."""
    scored: slice = field(default_factory=lambda: slice(None))
    """The places along time where a prediction counts."""

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        given = {
            n: x for n, x in values.items() if isinstance(x, Tensor) or x not in (None, slice(None))
        }
        shown = [f"{name}={_in_short(value)}" for name, value in given.items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def observed(self) -> Inexact[Tensor, "batch time dim"]:
        """The states that the tokens show: all but the last."""
        return self.require("states")[:, :-1]

    def require(self, name: str) -> Tensor:
        """Return a tensor that a batch may lack.

        Args:
            name: "states" or "transition".

        Returns:
            The tensor.

        Raises:
            ValueError: it is missing.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"batch.{name}: is missing; must be given where {name} are asked for")
        return value

    @property
    def arguments(self) -> dict[str, Tensor]:
        """Arguments of a model besides the tokens, by name: none."""
        return {}

    @property
    def counted(self) -> Bool[Tensor, "batch scored"] | None:
        """Which of the losses count, where some do not; None: all do."""
        return None

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

    def loss(
        self, prediction: Inexact[Tensor, "batch time dim"], *, total: bool = False
    ) -> Float[Tensor, ""]:
        """Average the losses over sequences, and average or add them over the scored positions.

        Args:
            prediction: at every position, [batch, time, dim].
            total: add up the losses of a sequence, in place of their mean.

        Returns:
            The mean over sequences: the training loss.
        """
        losses = self.losses(prediction)
        return losses.sum(1).mean() if total else losses.mean()

    def split(self, size: int) -> Iterator[Self]:
        """Cut the batch into smaller ones.

        Args:
            size: sequences in each but perhaps the last, 1 or more.

        Returns:
            The parts in order, as views.
        """
        require_count("size", size, smallest=1)
        tensors = self.tensors
        parts = (tensor.split(size) for tensor in tensors.values())
        for pieces in zip(*parts, strict=True):
            yield replace(self, **dict(zip(tensors, pieces, strict=True)))

    def to(self: _Batch, device: torch.device | str) -> _Batch:
        """Move the batch to a device.

        Args:
            device: "cpu" or "cuda", for example.

        Returns:
            The batch itself where it is there already, else a copy.
        """
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        same = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if same else replace(self, **moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the batch, by the names of their fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _in_short(value: Any) -> str:
    """Write a tensor as its type and shape, and all else as it is."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


@runtime_checkable
class Task(Protocol):
    """Anything that draws batches. The tasks of the library are each a :class:`GeneratedTask`.

    One of your own needs this method and nothing else: see :func:`mesaopt.tasks.own_task`.

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
        step: int,
        split: Split,
    ) -> Batch:
        """Draw one batch, a pure function of its arguments. Several threads may call it at once.

        Args:
            batch_size: sequences, 1 or more.
            seed: 0 or greater.
            step: 0 or greater.
            split: stream to draw from; streams never overlap.

        Returns:
            The batch, on any device.
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
    """Put s_{t-k} at position t, and zero where there is none."""
    time = states.shape[1]
    steps_back = {"current": 0, "previous": 1, "zero": time}
    k = slot if isinstance(slot, int) else steps_back[slot]
    return torch.nn.functional.pad(states, (0, 0, k, 0))[:, :time]
