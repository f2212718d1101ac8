"""Softmax attention, called like the linear operators."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from mesaopt.ops.packing import read_lengths
from mesaopt.ops.state import KeyValueState, Output, full_precision
from mesaopt.ops.validation import check_number, check_shapes, check_state, check_step


def softmax_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    scale: float | None = None,
    initial_state: KeyValueState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """Causal softmax attention, o_t = sum_{s <= t} v_s softmax_s(scale k_s . q_t), diagonal included.

    Computed by :func:`torch.nn.functional.scaled_dot_product_attention`: time grows with the square of
    the sequence, memory linearly, unless a state is continued by several positions, which takes a mask
    [time, past + time]. For second derivatives, enter
    `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)`.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        scale: of the scores, > 0; 1 / sqrt(key) if None.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets [0, ..., time] of sequences packed along time, integers, best on the CPU;
            equal neighbours are an empty sequence. The batch must be 1, and states then have one entry
            per sequence.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and all pairs so far.

    Raises:
        ValueError: shapes, types or devices that do not fit together.

    Source: Vaswani et al., "Attention Is All You Need".

    Example:
        >>> import torch
        >>> q, v = torch.zeros(1, 3, 1, 2), torch.tensor([3.0, 6.0, 0.0]).reshape(1, 3, 1, 1)
        >>> softmax_attention(q, q, v).output.flatten()  # equal scores: the mean of the values
        tensor([3.0000, 4.5000, 3.0000])
    """
    check_shapes(q, k, v)
    check_number("scale", scale)
    if cu_seqlens is None:
        past = _past_of(initial_state, len(q), k, v, "initial_state")
        return Output(*_attend(q, k, v, past, scale))
    lengths = list(read_lengths(cu_seqlens, len(q), q.shape[1]))
    past = _past_of(initial_state, len(lengths), k, v, "initial_state")
    pasts = _single_states(past) if past is not None else [None] * len(lengths)
    queries, keys, values = (x.split(lengths, dim=1) for x in (q, k, v))
    results = [
        _attend(a, b, c, earlier, scale)
        for a, b, c, earlier in zip(queries, keys, values, pasts, strict=True)
    ]
    outputs, states = zip(*results, strict=True)
    return Output(torch.cat(outputs, dim=1), _stack_states(list(states)))


def softmax_attention_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: KeyValueState | None = None,
    *,
    scale: float | None = None,
) -> Output:
    """Continue :func:`softmax_attention` by one position; time and memory grow with the past.

    o_t = sum_{s <= t} v_s softmax_s(scale k_s . q_t).

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        scale: of the scores, > 0; 1 / sqrt(key) if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        ValueError: shapes, types or devices that do not fit together.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, 1, 2)
        >>> state = softmax_attention_step(zero, zero, torch.full((1, 1, 1), 3.0)).state
        >>> softmax_attention_step(zero, zero, torch.full((1, 1, 1), 6.0), state).output
        tensor([[[4.5000]]])
    """
    check_step(q, k, v)
    check_number("scale", scale)
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))  # [B,1,H,K], [B,1,H,V]
    output, new = _attend(q, k, v, _past_of(state, len(q), k, v), scale)
    return Output(output.squeeze(1), new)


def _past_of(
    state: KeyValueState | None, sequences: int, k: Tensor, v: Tensor, name: str = "state"
) -> KeyValueState | None:
    """Return a state if it fits the call."""
    if state is None:
        return None
    past = state.keys.shape[1] if isinstance(state, KeyValueState) else 0
    like = KeyValueState(
        k[:1, :1].expand(sequences, past, -1, -1),
        v[:1, :1].expand(sequences, past, -1, -1),
        torch.empty((), dtype=torch.bool, device=k.device).expand(sequences, past),
    )
    check_state(name, state, like)
    return state


def _attend(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    past: KeyValueState | None,
    scale: float | None,
) -> tuple[Tensor, KeyValueState]:
    """Return the outputs and all pairs so far."""
    length = q.shape[1]
    if length == 0:  # an empty sequence
        return v, KeyValueState(k, v) if past is None else past
    state = KeyValueState(k, v)
    mask = None
    if past is not None:
        valid = None if past.valid is None else pad(past.valid, (0, length), value=True)
        state = KeyValueState(
            torch.cat([past.keys, k], dim=1), torch.cat([past.values, v], dim=1), valid
        )
        mask = _mask(length, state)
    # The type of q in, the type of q out.
    with full_precision(q), _differentiable_forward(q):
        out = scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, state.keys, state.values)),
            attn_mask=mask,
            # A bool and not a symbol of a compiled graph; of a single position, either is right.
            is_causal=past is None,
            scale=scale,
        )
    return out.transpose(1, 2), state


def _differentiable_forward(q: Tensor) -> AbstractContextManager[object]:
    """Choose the plain formula where fused attention lacks a derivative: torch.func, forward mode."""
    if torch.compiler.is_compiling():
        return nullcontext()
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(q)
    return (
        sdpa_kernel(SDPBackend.MATH) if wrapped or forward_ad._current_level >= 0 else nullcontext()
    )


def _mask(length: int, state: KeyValueState) -> Bool[Tensor, "#batch 1 #time total"] | None:
    """Return the mask of the last `length` positions, None if they may see everything."""
    total = state.keys.shape[1]
    mask = None
    if length > 1:
        every = torch.ones(length, total, dtype=torch.bool, device=state.keys.device)
        mask = every.tril(total - length)[None, None]  # [1,1,T,P+T]
    if state.valid is None:
        return mask
    valid = state.valid[:, None, None]  # [B,1,1,P+T]
    return valid if mask is None else mask & valid


def _single_states(state: KeyValueState) -> list[KeyValueState]:
    """Split the state by sequence, without the places that hold no pair."""
    singles = zip(state.keys.split(1), state.values.split(1), strict=True)
    if state.valid is None:
        return [KeyValueState(*pair) for pair in singles]
    return [
        KeyValueState(keys[:, valid], values[:, valid])
        for (keys, values), valid in zip(singles, state.valid, strict=True)
    ]


def _stack_states(states: list[KeyValueState]) -> KeyValueState:
    """Stack the states of single sequences, the shorter ones filled up with places that hold no pair."""
    lengths = [state.keys.shape[1] for state in states]
    longest = max(lengths)
    keys, values = (
        torch.cat([pad(x, (0, 0, 0, 0, 0, longest - x.shape[1])) for x in xs])
        for xs in ([s.keys for s in states], [s.values for s in states])
    )
    if min(lengths) == longest:
        return KeyValueState(keys, values)
    places = torch.arange(longest, device=keys.device)
    valid = places < torch.tensor(lengths, device=keys.device).unsqueeze(1)  # [S,P]
    return KeyValueState(keys, values, valid)
