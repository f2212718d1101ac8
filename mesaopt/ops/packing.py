"""Sequences of one call cut into chunks: a batch of equal lengths, or several packed along time.

All operators take packed sequences by `cu_seqlens` under one contract: integers [sequences + 1] that
start at 0, never decrease and end at the length of the time axis, with a batch of 1. Equal neighbours
are an empty sequence, whose state passes through unchanged. States have one entry per sequence.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.errors import wrong_type
from mesaopt.ops import chunks
from mesaopt.ops.validation import holds_integers

# Positions of the chunks of packed sequences, over those of the sequences: many short ones beside a long
# one take shorter chunks.
_MAX_FILLED = 2


@dataclass(frozen=True)
class Layout:
    """Time cut into chunks, none of which holds positions of two sequences.

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
    limit: int
    """Most positions of a chunk; fewer than asked for where packed sequences are so short that filling up
    their chunks would be most of the work."""
    sequences: int
    """Number of sequences, and so of states."""
    lengths: tuple[int, ...] | None = None
    """Positions of every packed sequence; None where sequences lie along the batch axis."""
    slots: Int[Tensor, " time"] | None = None
    """Place of each position among the positions of all chunks; None as above."""
    whole: "Layout | None" = None
    """The layout that this one is a part of, from :meth:`parts`."""
    first_chunk: int = 0
    """Chunks of the whole layout before this part."""
    carried: int = 0
    """Sequences that an earlier part begins and this one goes on with: its first ones."""

    @property
    def chunk_size(self) -> int:
        """Positions of a chunk, no more than the longest sequence has."""
        # A choice, since `min` of a length that compilation keeps open is a formula.
        shorter = self.lengths is None and self.length <= self.limit
        return self.length if shorter else self.limit

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks of every packed sequence, or of every item of the batch."""
        lengths = (self.length,) if self.lengths is None else self.lengths
        return tuple(chunks.count_chunks(length, self.chunk_size) for length in lengths)

    def resized(self, chunk_size: int) -> "Layout":
        """Return the layout of the same sequences in chunks of another size.

        Args:
            chunk_size: most positions of a chunk, 1 or more.

        Returns:
            The layout.
        """
        if self.lengths is None or self.slots is None:
            return replace(self, limit=chunk_size)
        return _lay_out_packed(
            self.lengths, _packed_size(self.lengths, chunk_size), self.slots.device
        )

    def parts(self, counts: Sequence[int]) -> list["Layout"]:
        """Cut the layout between chunks, into parts that follow one another in time.

        Args:
            counts: chunks of every part, 1 or more, which add up to those of the layout.

        Returns:
            A layout for every part. A sequence that goes on in the next part is the last of one and the
            first of the other.

        Example:
            >>> layout = lay_out(torch.zeros(1, 9, 1, 3), 2, torch.tensor([0, 3, 3, 9]))
            >>> [(part.lengths, part.carried) for part in layout.parts([1, 3, 1])]
            [((2,), 0), ((1, 0, 4), 1), ((2,), 1)]
        """
        ends = list(accumulate(counts))
        bounds = list(zip([0, *ends], ends, strict=False))
        if self.lengths is None or self.slots is None:
            return [self._part(begin, end) for begin, end in bounds]
        return self._packed_parts(bounds, self.lengths, self.slots.device)

    def _part(self, begin: int, end: int) -> "Layout":
        length = min(end * self.chunk_size, self.length) - begin * self.chunk_size
        carried = self.sequences if begin else 0
        return replace(self, length=length, whole=self, first_chunk=begin, carried=carried)

    def _packed_parts(
        self, bounds: list[tuple[int, int]], lengths: tuple[int, ...], device: torch.device
    ) -> list["Layout"]:
        ends = list(accumulate(self.counts))  # of the sequences' chunks
        begins = [0, *ends[:-1]]
        parts, first = [], 0
        for begin, end in bounds:
            # An empty sequence goes with the one before it.
            stop = max(bisect_right(ends, end), bisect_left(begins, end))
            inside = []
            for place in range(first, stop):
                before = max(begin - begins[place], 0) * self.chunk_size
                until = min((end - begins[place]) * self.chunk_size, lengths[place])
                inside.append(until - before)
            part = _lay_out_packed(tuple(inside), self.chunk_size, device)
            carried = int(begins[first] < begin)
            parts.append(replace(part, whole=self, first_chunk=begin, carried=carried))
            first = stop - 1 if ends[stop - 1] > end else stop
        return parts

    def cut(
        self, x: Float[Tensor, "batch time head dim"]
    ) -> Float[Tensor, "batch head chunk position dim"]:
        """Cut time into chunks, filled up with zeros.

        Args:
            x: [batch, time, head, dim].

        Returns:
            [batch, head, chunk, position, dim], contiguous.
        """
        if self.slots is None:
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

    def has_past(self, initial: object | None) -> bool:
        """Return whether some chunk has a past: an initial state, or an earlier chunk.

        Args:
            initial: the initial state; None for zero.

        Returns:
            Whether the states at the chunks' starts are worth computing.
        """
        return initial is not None or max(self.counts) > 1

    def carry(
        self,
        scan: Callable[..., tuple[Tensor, Tensor]],
        initial: Float[Tensor, "sequence head value key"] | None,
        *parts: Tensor,
    ) -> tuple[
        Float[Tensor, "batch head chunk value key"] | None,
        Float[Tensor, "sequence head value key"],
    ]:
        """Carry a state from chunk to chunk, anew for every sequence.

        Args:
            scan: from (initial, *parts) to the states at the chunks' starts and the last state, such as
                :func:`mesaopt.ops.chunks.sum_states`.
            initial: the states to begin with, or None for zero.
            parts: the scan's other arguments, [batch, head, chunk, ...]; the first holds what each chunk
                adds to the state.

        Returns:
            The state at the start of every chunk, None if all are zero, and that at the end of every
            sequence.
        """
        increments = parts[0]
        if not self.has_past(initial):
            return None, self._one_per_sequence(increments)
        if self.lengths is None:
            return scan(initial, *parts)
        # split() and cat(), since slicing in a loop would make the backward pass quadratic.
        pieces = zip(*(x.split(self.counts, dim=2) for x in parts), strict=True)
        zero = increments.new_zeros(*increments.shape[:2], *increments.shape[3:])
        begin = [None] * self.sequences if initial is None else initial.split(1)
        starts, ends = [], []
        for first, piece, count in zip(begin, pieces, self.counts, strict=True):
            if count == 0:
                ends.append(zero if first is None else first)
                continue
            states, end = scan(first, *piece)
            starts.append(states)
            ends.append(end)
        return torch.cat(starts, dim=2), torch.cat(ends)

    def _one_per_sequence(self, x: Tensor) -> Tensor:
        """Turn the only chunk of each sequence [batch, head, chunk, ...] into [sequence, head, ...]."""
        if self.lengths is None:
            return x.squeeze(2)
        each = x.squeeze(0).transpose(0, 1)  # [chunk, head, ...]
        if all(self.lengths):
            return each
        full = [place for place, length in enumerate(self.lengths) if length]
        index = torch.tensor(full, device=x.device)
        return each.new_zeros(self.sequences, *each.shape[1:]).index_copy(0, index, each)

    def locate(self, batch: int, chunk: int) -> tuple[int, int]:
        """Find a chunk's sequence, and the chunk's first position in that sequence.

        Args:
            batch: index along the batch axis.
            chunk: index along the chunk axis.

        Returns:
            The sequence's number and the position, both from 0.

        Example:
            >>> lay_out(torch.zeros(1, 5, 1, 3), 2, torch.tensor([0, 3, 5])).locate(0, 2)
            (1, 0)
        """
        if self.whole is not None:
            return self.whole.locate(batch, chunk + self.first_chunk)
        if self.lengths is None:
            return batch, chunk * self.chunk_size
        counts, sequence = self.counts, 0
        while chunk >= counts[sequence]:
            chunk -= counts[sequence]
            sequence += 1
        return sequence, chunk * self.chunk_size


def lay_out(
    q: Float[Tensor, "batch time head key"],
    chunk_size: int,
    cu_seqlens: Int[Tensor, " offset"] | None,
) -> Layout:
    """Decide on the chunks of a call.

    Args:
        q: queries [batch, time, head, key].
        chunk_size: most positions of a chunk, 1 or more; shorter sequences make shorter chunks.
        cu_seqlens: offsets of packed sequences, see :func:`read_lengths`; None for a plain batch.

    Returns:
        The layout.

    Raises:
        ValueError: the offsets are not as described.

    Example:
        >>> lay_out(torch.zeros(4, 100, 1, 3), 64, None).sequences
        4
    """
    batch, length = q.shape[:2]
    if cu_seqlens is None:
        return Layout(length, chunk_size, batch)
    lengths = read_lengths(cu_seqlens, batch, length)
    return _lay_out_packed(lengths, _packed_size(lengths, chunk_size), q.device)


def _packed_size(lengths: tuple[int, ...], chunk_size: int) -> int:
    """Return how long the chunks of packed sequences are."""
    size = min(chunk_size, max(lengths))
    while sum(-(-length // size) for length in lengths) * size > _MAX_FILLED * sum(lengths):
        size = (size + 1) // 2  # ends at 1, where nothing is filled up
    return size


def _lay_out_packed(lengths: tuple[int, ...], size: int, device: torch.device) -> Layout:
    each = torch.tensor(lengths)
    counts = (each + size - 1) // size
    # How far a sequence moves: from where it begins in time to where its first chunk begins.
    moved = (counts.cumsum(0) - counts) * size - (each.cumsum(0) - each)
    slots = torch.arange(sum(lengths)) + moved.repeat_interleave(each)
    return Layout(sum(lengths), size, len(lengths), lengths, slots.to(device))


def read_lengths(cu_seqlens: Int[Tensor, "..."], batch: int, length: int) -> tuple[int, ...]:
    """Read the lengths of packed sequences off their offsets.

    Args:
        cu_seqlens: integers [sequences + 1] that start at 0, never decrease and end at `length`. Read on
            the host: best kept on the CPU.
        batch: size of the batch, which must be 1.
        length: positions along the time axis.

    Returns:
        The length of every sequence, 0 for an empty one.

    Raises:
        TypeError: the offsets are no tensor.
        ValueError: they are not as described, or the batch is not 1.

    Example:
        >>> read_lengths(torch.tensor([0, 3, 3, 5]), 1, 5)
        (3, 0, 2)
        >>> read_lengths(torch.tensor([0, 3, 4]), 1, 5)
        Traceback (most recent call last):
        ...
        ValueError: cu_seqlens is [0, 3, 4]: must start at 0, never decrease and end at 5, the time axis
    """
    if not isinstance(cu_seqlens, Tensor):
        raise wrong_type("cu_seqlens", cu_seqlens, "a tensor of integers")
    if not holds_integers(cu_seqlens):
        raise ValueError(f"cu_seqlens has type {cu_seqlens.dtype}: must be an integer type")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)}: must be (sequences + 1,)"
        )
    if batch != 1:
        raise ValueError(f"q has batch {batch}: must be 1 with cu_seqlens")
    offsets = [int(x) for x in cu_seqlens.tolist()]
    lengths = tuple(b - a for a, b in zip(offsets, offsets[1:], strict=False))
    if offsets[0] != 0 or offsets[-1] != length or min(lengths) < 0:
        shown = str(offsets) if len(offsets) < 10 else f"[{offsets[0]}, ..., {offsets[-1]}]"
        wanted = f"must start at 0, never decrease and end at {length}, the time axis"
        raise ValueError(f"cu_seqlens is {shown}: {wanted}")
    return lengths
