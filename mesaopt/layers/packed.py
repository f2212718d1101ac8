"""Sequences of several lengths in one call of a layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
