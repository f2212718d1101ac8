"""Softmax attention, called like the linear operators."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mesaopt.ops.packing import read_lengths
from mesaopt.ops.state import KeyValueState, Output, full_precision
from mesaopt.ops.validation import (
    check_count,
    check_number,
    check_shapes,
    check_state,
    check_step,
    check_tensors,
)

_BLOCK = 128  # positions that look into their windows at once, or a window if that is more


class _Seen(NamedTuple):
    """How scores are scaled, and how far back a position sees."""

    scale: float | None
    window: int | None


def softmax_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time group key"],
    v: Float[Tensor, "batch time group value"],
    *,
    scale: float | None = None,
    window: int | None = None,
    initial_state: KeyValueState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """Causal softmax attention, o_t = sum_{s <= t} v_s softmax_s(scale k_s . q_t), diagonal included.

    With a window w, the sums are over t - w < s <= t: the last w pairs. The state then holds w - 1 pairs at
    most, and time grows linearly with the sequence; compiled, with its square.

    Computed by :func:`torch.nn.functional.scaled_dot_product_attention`: without a window, time grows with
    the square of the sequence, memory linearly, unless a state is continued by several positions, which
    takes a mask [time, past + time]. For second derivatives, enter
    `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)`.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type, or with fewer heads, a divisor of those of q: then each is shared
            by as many neighbouring queries, and the state is so much smaller.
        v: values [batch, time, head, value], the same type, with as many heads as k.
        scale: of the scores, > 0; 1 / sqrt(key) if None.
        window: pairs that a position sees, its own included, 1 or more; all if None.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets [0, ..., time] of sequences packed along time, integers, best on the CPU;
            equal neighbours are an empty sequence. The batch must be 1. Sequences are computed one after
            another, and the state is packed as they are: time and memory follow the tokens.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and all pairs so far, or those that a later
        position still sees.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types or devices that do not fit together.

    Source: Vaswani et al., "Attention Is All You Need".

    Example:
        >>> import torch
        >>> q, v = torch.zeros(1, 3, 1, 2), torch.tensor([3.0, 6.0, 0.0]).reshape(1, 3, 1, 1)
        >>> softmax_attention(q, q, v).output.flatten()  # equal scores: the mean of the values
        tensor([3.0000, 4.5000, 3.0000])
    """
    check_shapes(q, k, v, shared_heads=True)
    check_number("scale", scale)
    check_count("window", window, least=1)
    seen = _Seen(scale, window)
    lengths = None if cu_seqlens is None else read_lengths(cu_seqlens, len(q), q.shape[1])
    sequences = len(q) if lengths is None else len(lengths)
    past = _past_of(initial_state, sequences, k, v, "initial_state")
    if lengths is None:
        return _attend_batch(q, k, v, past, seen)
    return _attend_packed(q, k, v, lengths, past, seen)


def softmax_attention_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch group key"],
    v: Float[Tensor, "batch group value"],
    state: KeyValueState | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Output:
    """Continue :func:`softmax_attention` by one position; time and memory grow with the past or the window.

    o_t = sum_{s <= t} v_s softmax_s(scale k_s . q_t), over the last `window` positions where one is given.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type, or with fewer heads, as in :func:`softmax_attention`.
        v: value [batch, head, value], the same type, with as many heads as k.
        state: from an earlier call or step; None at the first position. One of packed sequences takes a
            loop over them.
        scale: of the scores, > 0; 1 / sqrt(key) if None.
        window: pairs that a position sees, its own included, 1 or more; all if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types or devices that do not fit together.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, 1, 2)
        >>> state = softmax_attention_step(zero, zero, torch.full((1, 1, 1), 3.0)).state
        >>> softmax_attention_step(zero, zero, torch.full((1, 1, 1), 6.0), state).output
        tensor([[[4.5000]]])
    """
    check_step(q, k, v, shared_heads=True)
    check_number("scale", scale)
    check_count("window", window, least=1)
    seen = _Seen(scale, window)
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))  # [B,1,H,K], [B,1,H,V]
    output, new = _attend_batch(q, k, v, _past_of(state, len(q), k, v), seen)
    return Output(output.squeeze(1), new)


def _past_of(
    state: KeyValueState | None, sequences: int, k: Tensor, v: Tensor, name: str = "state"
) -> KeyValueState | None:
    """Return a state if it fits the call."""
    if state is None:
        return None
    batch, past = sequences, 0
    if isinstance(state, KeyValueState):
        check_tensors(**{f"{name}.keys": state.keys})
        past = state.keys.shape[1] if state.keys.dim() == 4 else 0
        if state.lengths is not None:
            batch, past = 1, _num_pairs(state.lengths, sequences, name)
    like = KeyValueState(
        k[:1, :1].expand(batch, past, -1, -1), v[:1, :1].expand(batch, past, -1, -1)
    )
    check_state(name, state, like)
    return state


def _num_pairs(lengths: Tensor, sequences: int, name: str) -> int:
    """Return the number of pairs in a packed state, if it fits the call."""
    check_tensors(**{f"{name}.lengths": lengths})
    if lengths.shape != (sequences,) or lengths.dtype != torch.int64 or (lengths < 0).any():
        given = f"{name}.lengths of {lengths.dtype} is {lengths.tolist()}"
        raise ValueError(f"{given}: must be {sequences} of torch.int64, 0 or greater")
    return int(lengths.sum())


def _attend_batch(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time group key"],
    v: Float[Tensor, "batch time group value"],
    past: KeyValueState | None,
    seen: _Seen,
) -> Output:
    """Attend in sequences of one length, whose past may be packed."""
    if past is None or past.lengths is None:
        return Output(*_attend(q, k, v, past, seen))
    lengths = (q.shape[1],) * len(q)
    q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))  # [B,T,H,K] -> [1,B*T,H,K]
    output, state = _attend_packed(q, k, v, lengths, past, seen)
    return Output(output.reshape(len(lengths), lengths[0], *output.shape[2:]), state)


def _attend_packed(
    q: Float[Tensor, "1 time head key"],
    k: Float[Tensor, "1 time group key"],
    v: Float[Tensor, "1 time group value"],
    lengths: tuple[int, ...],
    past: KeyValueState | None,
    seen: _Seen,
) -> Output:
    """Attend in one sequence after another, so that the cost follows the tokens."""
    pasts = [None] * len(lengths) if past is None else past.split()
    queries, keys, values = (x.split(lengths, dim=1) for x in (q, k, v))
    results = [
        _attend(a, b, c, earlier, seen)
        for a, b, c, earlier in zip(queries, keys, values, pasts, strict=True)
    ]
    outputs, states = zip(*results, strict=True)
    return Output(torch.cat(outputs, dim=1), KeyValueState.pack(states))


def _attend(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time group key"],
    v: Float[Tensor, "batch time group value"],
    past: KeyValueState | None,
    seen: _Seen,
) -> tuple[Tensor, KeyValueState]:
    """Return the outputs and all pairs so far."""
    length = q.shape[1]
    if length == 0:  # an empty sequence
        nothing = v.new_zeros(*q.shape[:3], v.shape[-1])
        return nothing, KeyValueState(k, v) if past is None else past
    state = KeyValueState(k, v)
    if past is not None:
        state = KeyValueState(torch.cat([past.keys, k], dim=1), torch.cat([past.values, v], dim=1))
    if seen.window is None:
        mask = None if past is None else _mask(length, state)
        # A bool and not a symbol of a compiled graph; of a single position, either is right.
        return _attend_to(q, state, seen.scale, mask, is_causal=past is None), state
    return _attend_in_window(q, state, seen.window, seen.scale), _last(state, seen.window - 1)


def _attend_in_window(
    q: Float[Tensor, "batch time head key"], state: KeyValueState, window: int, scale: float | None
) -> Float[Tensor, "batch time head value"]:
    """Attend in blocks of positions, each to the pairs that one of its positions sees."""
    total, length = state.keys.shape[1], q.shape[1]
    if torch.compiler.is_compiling():  # one graph for all lengths
        return _attend_to(q, state, scale, _mask(length, state, window))
    outputs = []
    for start in range(0, length, block := max(window, _BLOCK)):
        end = min(start + block, length)
        first, last = max(0, total - length + start + 1 - window), total - length + end
        near = KeyValueState(state.keys[:, first:last], state.values[:, first:last])
        mask = _mask(end - start, near, window)
        outputs.append(_attend_to(q[:, start:end], near, scale, mask))
    return torch.cat(outputs, dim=1)


def _last(state: KeyValueState, count: int) -> KeyValueState:
    """Keep the last pairs, in memory of their own."""
    spare = state.keys.shape[1] - count
    if spare <= 0:
        return state
    return KeyValueState(state.keys[:, spare:].clone(), state.values[:, spare:].clone())


def _attend_to(
    q: Float[Tensor, "batch time head key"],
    state: KeyValueState,
    scale: float | None,
    mask: Bool[Tensor, "time total"] | None,
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch time head value"]:
    """Attend to all pairs of a state that a mask leaves."""
    # The type of q in, the type of q out.
    with full_precision(q), _differentiable_forward(q):
        out = scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, state.keys, state.values)),
            attn_mask=mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=q.shape[2] != state.keys.shape[2],
        )
    return out.transpose(1, 2)


def _differentiable_forward(q: Tensor) -> AbstractContextManager[object]:
    """Choose the plain formula where fused attention lacks a derivative: torch.func, forward mode."""
    if torch.compiler.is_compiling():
        return nullcontext()
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(q)
    return (
        sdpa_kernel(SDPBackend.MATH) if wrapped or forward_ad._current_level >= 0 else nullcontext()
    )


def _mask(
    length: int, state: KeyValueState, window: int | None = None
) -> Bool[Tensor, "time total"] | None:
    """Return the mask of the last `length` positions, None if they may see everything."""
    total = state.keys.shape[1]
    if length == 1 and (window is None or total <= window):
        return None
    every = torch.ones(length, total, dtype=torch.bool, device=state.keys.device)
    past = every.tril(total - length)
    return past if window is None else past.triu(total - length + 1 - window)
