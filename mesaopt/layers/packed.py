"""Sequences of several lengths in one call of a layer: packed along time, or filled up to one length."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.layers.checks import check_mask
from mesaopt.ops.packing import read_lengths


@dataclass(frozen=True)
class Packed:
    """Sequences that lie one after another along time, in a batch of 1.

    Example:
        >>> packed = Packed.read(torch.tensor([0, 2, 2, 5]), torch.zeros(1, 5, 6))
        >>> packed.lengths, packed.positions(0, torch.device("cpu")).tolist()
        ((2, 0, 3), [[0, 1, 0, 1, 2]])
    """

    lengths: tuple[int, ...]
    """Tokens of every sequence."""

    @classmethod
    def read(cls, cu_seqlens: Int[Tensor, "..."], x: Float[Tensor, "batch time width"]) -> "Packed":
        """Read offsets, as the operators take them.

        Args:
            cu_seqlens: integers [sequences + 1]: 0, and the end of every sequence.
            x: [1, time, width].

        Returns:
            The sequences.

        Raises:
            ValueError: the offsets are not as described, or the batch is not 1.
        """
        if len(x) != 1:
            raise ValueError(f"x has batch {len(x)}: must be 1 with cu_seqlens")
        return cls(read_lengths(cu_seqlens, 1, x.shape[1]))

    @property
    def cu_seqlens(self) -> Int[Tensor, " offset"]:
        """The offsets, on the CPU."""
        return torch.tensor((0, *self.lengths)).cumsum(0)

    def positions(
        self, seen: int | Int[Tensor, " sequence"], device: torch.device
    ) -> Int[Tensor, "1 time"]:
        """Count the tokens before each token of its sequence.

        Args:
            seen: tokens before the call, of all sequences or of each.
            device: of the result.

        Returns:
            Positions from 0, [1, time].
        """
        lengths = torch.tensor(self.lengths)
        first = self.cu_seqlens[:-1].to(device)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        return (torch.arange(sum(self.lengths), device=device) + (seen - first)[owner]).unsqueeze(0)

    def count_seen(
        self, seen: int | Int[Tensor, " sequence"], device: torch.device
    ) -> Int[Tensor, " sequence"]:
        """Return the number of tokens of each sequence after the call.

        Args:
            seen: as for :meth:`positions`.
            device: of the result.
        """
        return torch.tensor(self.lengths, device=device) + seen


@dataclass(frozen=True)
class Padding:
    """Tokens of a batch that is filled up to one length, and where they are.

    Example:
        >>> mask = torch.tensor([[True, True, False], [False, False, True]])
        >>> x = torch.arange(6.0).reshape(2, 3, 1)
        >>> padding = Padding.read(mask, x)
        >>> padding.packed.lengths, padding.pack(x).flatten().tolist()
        ((2, 1), [0.0, 1.0, 5.0])
        >>> padding.fill_up(padding.pack(x)).squeeze(-1).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 5.0]]
    """

    shape: tuple[int, int]
    """Batch and time."""
    packed: Packed
    """The sequences without their padding."""
    places: Int[Tensor, " token"]
    """Where each token is among all positions of the batch."""

    @classmethod
    def read(
        cls, mask: Bool[Tensor, "batch time"], x: Float[Tensor, "batch time width"]
    ) -> "Padding":
        """Read a mask. Its values are needed on the host: on a GPU, this waits for the device.

        Args:
            mask: true where a token is.
            x: [batch, time, width].

        Returns:
            The tokens.

        Raises:
            ValueError: the mask has the wrong shape or type.
        """
        check_mask(mask, x, "x")
        shape = (x.shape[0], x.shape[1])
        lengths = tuple(int(length) for length in mask.sum(1).tolist())
        return cls(shape, Packed(lengths), mask.flatten().nonzero().squeeze(1).to(x.device))

    @property
    def is_none(self) -> bool:
        """Whether all positions are tokens."""
        return len(self.places) == self.shape[0] * self.shape[1]

    @property
    def is_all(self) -> bool:
        """Whether no position is a token."""
        return len(self.places) == 0

    def pack(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "1 token width"]:
        """Leave out the padding.

        Args:
            x: [batch, time, width].

        Returns:
            The tokens, one sequence after another.
        """
        return x.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def fill_up(self, y: Float[Tensor, "1 token width"]) -> Float[Tensor, "batch time width"]:
        """Undo :meth:`pack`, with zeros for the padding.

        Args:
            y: outputs for the tokens.

        Returns:
            [batch, time, width].
        """
        batch, time = self.shape
        room = y.new_zeros(batch * time, y.shape[-1])
        return room.index_copy(0, self.places, y.squeeze(0)).unflatten(0, self.shape)
