"""Where the positions of one call lie in chunks: a batch of sequences, or several packed into one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import chunks


@dataclass(frozen=True)
class Layout:
    """A cut of time into chunks none of which holds positions of two sequences.

    Made by :func:`lay_out`.

    Example:
        >>> layout = lay_out(torch.zeros(1, 5, 1, 3), 2, torch.tensor([0, 3, 5]))
        >>> layout.sequences, layout.counts
        (2, (2, 1))
        >>> layout.cut(torch.arange(1.0, 6.0).reshape(1, 5, 1, 1)).flatten().tolist()
        [1.0, 2.0, 3.0, 0.0, 4.0, 5.0]
    """

    length: int
    """Positions along the time axis."""
    chunk_size: int
    """Positions of a chunk."""
    sequences: int
    """How many sequences, and so how many states."""
    counts: tuple[int, ...] | None = None
    """Chunks of every packed sequence; None where sequences lie along the batch axis."""
    slots: Int[Tensor, " time"] | None = None
    """Where each position lies among the chunks' positions; None as above."""

    def cut(
        self, x: Float[Tensor, "batch time head dim"]
    ) -> Float[Tensor, "batch head chunk position dim"]:
        """Cut time into chunks, filled up with zeros.

        Args:
            x: [batch, time, head, dim].

        Returns:
            [batch, head, chunk, position, dim], contiguous.
        """
        if self.slots is None or self.counts is None:
            return chunks.split(x, self.chunk_size)
        batch, _, heads, dim = x.shape
        room = x.new_zeros(batch, heads, sum(self.counts) * self.chunk_size, dim)
        filled = room.index_copy(2, self.slots, x.transpose(1, 2))
        return filled.unflatten(2, (-1, self.chunk_size))

    def cut_gate(
        self, x: Float[Tensor, "batch time head"]
    ) -> Float[Tensor, "batch head chunk position"]:
        """Cut a gate as :meth:`cut` does; zero where filled up.

        Args:
            x: [batch, time, head].

        Returns:
            [batch, head, chunk, position].
        """
        return self.cut(x.unsqueeze(-1)).squeeze(-1)

    def join(
        self, x: Float[Tensor, "batch head chunk position dim"]
    ) -> Float[Tensor, "batch time head dim"]:
        """Undo :meth:`cut`.

        Args:
            x: [batch, head, chunk, position, dim].

        Returns:
            [batch, time, head, dim].
        """
        if self.slots is None:
            return chunks.join(x, self.length)
        return x.flatten(2, 3).index_select(2, self.slots).transpose(1, 2)

    def carry(
        self,
        scan: Callable[..., tuple[Tensor, Tensor]],
        initial: Float[Tensor, "sequence head value key"] | None,
        *parts: Tensor,
    ) -> tuple[
        Float[Tensor, "batch head chunk value key"], Float[Tensor, "sequence head value key"]
    ]:
        """Carry a state from chunk to chunk, anew for every sequence.

        Args:
            scan: from (initial, *parts) to the states at the chunks' starts and the last state, such as
                :func:`mesaopt.ops.chunks.sum_states`.
            initial: the states to begin with, or None for zero.
            parts: what the scan needs of each chunk, [batch, head, chunk, ...].

        Returns:
            The state at the start of every chunk, and that at the end of every sequence.
        """
        if self.counts is None:
            return scan(initial, *parts)
        # split() and cat(), since slicing in a loop would make the backward pass quadratic.
        pieces = zip(*(x.split(self.counts, dim=2) for x in parts), strict=True)
        begin = [None] * self.sequences if initial is None else initial.split(1)
        results = [scan(first, *piece) for first, piece in zip(begin, pieces, strict=True)]
        starts, ends = zip(*results, strict=True)
        return torch.cat(starts, dim=2), torch.cat(ends)


def lay_out(
    q: Float[Tensor, "batch time head key"],
    chunk_size: int,
    cu_seqlens: Int[Tensor, " boundary"] | None,
) -> Layout:
    """Decide on the chunks of a call.

    Args:
        q: queries [batch, time, head, key].
        chunk_size: positions of a chunk, 1 or more; shorter sequences make shorter chunks.
        cu_seqlens: boundaries 0 = b_0 < b_1 < ... < b_n = time of packed sequences, integers; the batch
            must then be 1. Read on the host: best kept on the CPU.

    Returns:
        The layout.

    Raises:
        ValueError: the boundaries are not as described.

    Example:
        >>> lay_out(torch.zeros(4, 100, 1, 3), 64, None).sequences
        4
    """
    batch, length = q.shape[:2]
    if cu_seqlens is None:
        return Layout(length, chunk_size, batch)
    bounds = read_bounds(cu_seqlens, batch, length)
    lengths = torch.tensor(bounds).diff()
    size = min(chunk_size, int(lengths.max()))
    counts = (lengths + size - 1) // size
    # How far a sequence moves: from where it begins in time to where its first chunk begins.
    moved = (counts.cumsum(0) - counts) * size - torch.tensor(bounds[:-1])
    slots = (torch.arange(length) + moved.repeat_interleave(lengths)).to(q.device)
    return Layout(length, size, len(lengths), tuple(counts.tolist()), slots)


def read_bounds(cu_seqlens: Int[Tensor, "..."], batch: int, length: int) -> list[int]:
    """Read the boundaries of packed sequences.

    Args:
        cu_seqlens: the boundaries, see :func:`lay_out`.
        batch: size of the batch, wanted 1.
        length: positions along the time axis.

    Returns:
        The boundaries, 0 and length included.

    Raises:
        ValueError: the boundaries are not increasing from 0 to length, or the batch is not 1.

    Example:
        >>> read_bounds(torch.tensor([0, 3, 4]), 1, 5)
        Traceback (most recent call last):
        ...
        ValueError: cu_seqlens is [0, 3, 4]: must increase from 0 to 5, the time axis
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)}: must be (sequences + 1,)"
        )
    if batch != 1:
        raise ValueError(f"q has batch {batch}: must be 1 with cu_seqlens")
    bounds = [int(b) for b in cu_seqlens.tolist()]
    increasing = all(a < b for a, b in zip(bounds, bounds[1:], strict=False))
    if bounds[0] != 0 or bounds[-1] != length or not increasing:
        shown = str(bounds) if len(bounds) < 10 else f"[{bounds[0]}, ..., {bounds[-1]}]"
        raise ValueError(f"cu_seqlens is {shown}: must increase from 0 to {length}, the time axis")
    return bounds
