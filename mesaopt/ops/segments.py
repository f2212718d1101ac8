"""Long sequences in segments, whose temporary tensors are small enough to be used again.

Tensors as long as a long sequence are handed back to the system when they are freed, and every page of the
next one costs a page fault: glibc keeps no block of 32 MiB or more. So an operator runs on some chunks at a
time, continues the state, and its outputs are put together. It changes rounding only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Inexact, Int
from torch import Tensor

from mesaopt.ops.packing import Layout, lay_out
from mesaopt.ops.state import LinearState, Output, cross_of, full_precision, working_type
from mesaopt.ops.validation import readable

# Up to this many positions a call is not cut.
_MAX_UNCUT = 2048
# Bytes of the largest temporary tensor of a segment. Between 1 and 8 MiB times differ by less than 10 %;
# below, small operations show, above, the caches.
_WANTED_BYTES = 2**21
# A segment has some chunks even if they are larger than that, but no more than this.
_LEAST_CHUNKS, _MAX_BYTES = 4, 2**24


class Inputs(NamedTuple):
    """Arguments of a chunked operator that have a time axis."""

    q: Inexact[Tensor, "batch time head key"]
    k: Inexact[Tensor, "batch time head key"]
    v: Inexact[Tensor, "batch time head value"]
    beta: Inexact[Tensor, "batch time head"] | None = None
    log_decay: Inexact[Tensor, "batch time head"] | None = None


class Joined(NamedTuple):
    """Results of all segments, put together."""

    output: Inexact[Tensor, "batch time head value"]
    state: Any
    """State after the last position of every sequence."""
    results: tuple[Any, ...]
    """Results of the segments."""


def run_in_segments(
    run: Callable[[Layout, Inputs, Any], Any],
    layout: Layout,
    inputs: Inputs,
    initial: Any,
) -> Joined | None:
    """Run an operator on a call: all at once, or in segments where that is faster.

    Args:
        run: from a segment's layout, inputs and initial state (a named tuple of tensors [sequence, ...], or
            None) to a result with `output` and `state`; or None, to give up.
        layout: the chunks of the call.
        inputs: the call's arguments.
        initial: the call's initial state.

    Returns:
        Output and state as of one run on everything; None if a run gave up.

    Example:
        >>> from mesaopt.ops import LinearState, Output
        >>> from mesaopt.ops.packing import lay_out
        >>> def last(layout, inputs, state):
        ...     return Output(inputs.v, LinearState(inputs.v[:, -1]))
        >>> x = torch.arange(6.0).view(1, 6, 1, 1)
        >>> run_in_segments(last, lay_out(x, 2, None), Inputs(x, x, x), None).state.cross.item()
        5.0
    """
    sizes = chunks_of_segments(layout, inputs)
    if len(sizes) == 1:
        result = run(layout, inputs, initial)
        return None if result is None else Joined(result.output, result.state, (result,))
    parts = layout.parts(sizes)
    begins = _split(initial, [part.sequences - part.carried for part in parts])
    pieces = _pieces(inputs, [part.length for part in parts])
    going = [part.carried for part in parts[1:]] + [0]
    results, ends, carried = [], [], None
    for part, piece, begin, count in zip(parts, pieces, begins, going, strict=True):
        result = run(part, piece, _begin(carried, begin, part.sequences))
        if result is None:
            return None
        results.append(result)
        ended, carried = _split(result.state, [part.sequences - count, count])
        ends.append(ended)
    return Joined(
        torch.cat([result.output for result in results], dim=1), _concatenate(ends), tuple(results)
    )


def run_operator(
    run: Callable[[Layout, Inputs, LinearState | None], Output],
    inputs: Inputs,
    *,
    chunk_size: int,
    cu_seqlens: Int[Tensor, " offset"] | None,
    initial_state: LinearState | None,
) -> Output:
    """Run an operator whose state is a linear map, on arguments that were checked but for the state.

    Args:
        run: see :func:`run_in_segments`.
        inputs: the call's arguments.
        chunk_size: most positions of a chunk.
        cu_seqlens: offsets of packed sequences.
        initial_state: from an earlier call.

    Returns:
        Output in the type of the queries, and state.

    Raises:
        ValueError: the offsets or the state do not fit.

    Example:
        >>> def last(layout, inputs, state):
        ...     return Output(inputs.v, LinearState(inputs.v[:, -1].unsqueeze(-1)))
        >>> x, settings = torch.ones(1, 2, 1, 1), {"cu_seqlens": None, "initial_state": None}
        >>> run_operator(last, Inputs(x, x, x), chunk_size=1, **settings).state.cross.item()
        1.0
    """
    q, v = inputs.q, inputs.v
    layout = lay_out(q, chunk_size, cu_seqlens)
    cross_of(initial_state, layout.sequences, q, v, "initial_state")
    with full_precision(q):
        joined = cast(Joined, run_in_segments(run, layout, inputs, initial_state))
    return Output(joined.output.to(q.dtype), joined.state)


def chunks_of_segments(layout: Layout, inputs: Inputs) -> list[int]:
    """Decide how many chunks each segment holds.

    Each segment is one chunk shorter than the one before, and after some the sizes begin anew. Up to 2.37,
    glibc fits no aligned block into a hole of exactly its size: segments of equal sizes would leave as many
    holes among the tensors kept for the backward pass as there are such tensors.

    Args:
        layout: the chunks of the call.
        inputs: the call's arguments.

    Returns:
        Numbers that add up to the chunks of the call. One where the call is short, on a GPU, whose
        allocator keeps memory of any size, and under compilation and torch.func.
    """
    total = sum(layout.counts)
    if not all(readable(x) for x in inputs if x is not None) or layout.length <= _MAX_UNCUT:
        return [total]
    (batch, _, heads, key), value = inputs.q.shape, inputs.v.shape[-1]
    widest = max(layout.chunk_size * max(key, value, layout.chunk_size), key * max(key, value))
    chunk_bytes = batch * heads * widest * working_type(inputs.q).itemsize
    most = max(_WANTED_BYTES // chunk_bytes, min(_LEAST_CHUNKS, _MAX_BYTES // chunk_bytes), 1)
    sizes: list[int] = []
    size = most
    while total:
        sizes.append(min(size, total))
        total -= sizes[-1]
        size = size - 1 if 2 * (size - 1) >= most else most
    return sizes


def _pieces(inputs: Inputs, lengths: list[int]) -> Iterator[Inputs]:
    """Cut time; split(), since slicing in a loop would make the backward pass quadratic."""
    pieces = ([None] * len(lengths) if x is None else x.split(lengths, dim=1) for x in inputs)
    return (Inputs(*fields) for fields in zip(*pieces, strict=True))


def _split(state: Any, counts: list[int]) -> Sequence[Any]:
    """Cut a state along its sequences."""
    if state is None:
        return [None] * len(counts)
    parts = zip(*(x.split(counts) for x in state), strict=True)
    return [
        type(state)(*fields) if count else None for fields, count in zip(parts, counts, strict=True)
    ]


def _begin(carried: Any, begin: Any, sequences: int) -> Any:
    """Return the initial state of a segment: of sequences that go on, then of those that begin."""
    if carried is None:
        return begin
    missing = sequences - len(carried[0])
    if begin is None and missing:
        begin = type(carried)(*(x.new_zeros(missing, *x.shape[1:]) for x in carried))
    return _concatenate([carried, begin])


def _concatenate(states: list[Any]) -> Any:
    """Join states along their sequences; None is a state of none."""
    present = [state for state in states if state is not None]
    if len(present) == 1:
        return present[0]
    return type(present[0])(*(torch.cat(fields) for fields in zip(*present, strict=True)))
