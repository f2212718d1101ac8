"""Linear attention without and with forgetting, chunk by chunk."""

from typing import cast

from jaxtyping import Float, Inexact, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.packing import Layout
from mesaopt.ops.segments import Inputs, run_operator
from mesaopt.ops.state import (
    LinearState,
    Output,
    online_step,
    working_type,
)
from mesaopt.ops.validation import check_gates, check_shapes


def linear_attention(
    q: Inexact[Tensor, "batch time head key"],
    k: Inexact[Tensor, "batch time head key"],
    v: Inexact[Tensor, "batch time head value"],
    *,
    chunk_size: int = 64,
    initial_state: LinearState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """Causal linear attention, o_t = sum_{s <= t} v_s (k_s . q_t): no scaling, diagonal included.

    Nothing is conjugated: for inner products of complex numbers, pass conjugate keys. Time and memory
    grow linearly with the sequence: inside a chunk the products of queries and keys are formed, across
    chunks only their summed state.

    Args:
        q: queries [batch, time, head, key], any floating-point or complex type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets [0, ..., time] of sequences packed along time, integers, best on the CPU;
            equal neighbours are an empty sequence. The batch must be 1, and states then have one entry
            per sequence.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and the state after the last position.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types or devices that do not fit together.

    Source: von Oswald et al., section "Linear self-attention".

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> linear_attention(one, one, one, chunk_size=2).output.flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    check_shapes(q, k, v, chunk_size, allow_complex=True)
    return run_operator(
        _linear_attention,
        Inputs(q, k, v),
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )


def _linear_attention(layout: Layout, inputs: Inputs, state: LinearState | None) -> Output:
    kind = working_type(inputs.q)
    queries, keys, values = (layout.cut(x.to(kind)) for x in inputs[:3])
    out = chunks.causal_scores(queries, keys) @ values
    initial = None if state is None else state.cross
    starts, last = layout.carry(chunks.sum_states, initial, values.mT @ keys)
    if starts is not None:
        out = out + queries @ starts.mT
    return Output(layout.join(out), LinearState(last))


def linear_attention_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None = None,
) -> Output:
    """Continue :func:`linear_attention` by one position: S_t = S_{t-1} + v_t k_t^T, o_t = S_t q_t.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types or devices that do not fit together.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> state = linear_attention_step(one, one, one).state
        >>> linear_attention_step(one, one, one, state).output
        tensor([[[2.]]])
    """
    return online_step(q, k, v, state)


def gated_linear_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    log_decay: Float[Tensor, "batch time head"],
    beta: Float[Tensor, "batch time head"] | None = None,
    chunk_size: int = 64,
    initial_state: LinearState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """Linear attention that forgets: S_t = exp(log_decay_t) S_{t-1} + beta_t v_t k_t^T, o_t = S_t q_t.

    One gate per head and position. Time and memory grow linearly with the sequence.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        log_decay: logarithm of the share of the past that is kept, [batch, time, head], <= 0.
        beta: write strength [batch, time, head] in [0, 1], 1 if None.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets of packed sequences, see :func:`linear_attention`.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and the state after the last position.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Source: von Oswald et al. 2025, the readout of MesaNet without its solve; Yang et al., "Gated Linear
    Attention Transformers", with one gate for all channels of a head.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> halve = torch.full((1, 3, 1), 0.5).log()
        >>> gated_linear_attention(one, one, one, log_decay=halve).output.flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    check_shapes(q, k, v, chunk_size)
    check_gates(q, beta=beta, log_decay=log_decay)
    return run_operator(
        _gated_linear_attention,
        Inputs(q, k, v, beta, log_decay),
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )


def _gated_linear_attention(layout: Layout, inputs: Inputs, state: LinearState | None) -> Output:
    kind = working_type(inputs.q)
    queries, keys, values = (layout.cut(x.to(kind)) for x in inputs[:3])
    if inputs.beta is not None:
        values = values * layout.cut_gate(inputs.beta.to(kind)).unsqueeze(-1)
    decay = chunks.decays(layout.cut_gate(cast(Tensor, inputs.log_decay).to(kind)))
    increments = (values * decay.to_end).mT @ keys
    out = ((queries @ keys.mT) * decay.between) @ values
    initial = None if state is None else state.cross
    starts, last = layout.carry(chunks.chain_states, initial, increments, decay.total)
    if starts is not None:
        out = out + (queries * decay.from_start) @ starts.mT
    return Output(layout.join(out), LinearState(last))


def gated_linear_attention_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None = None,
    *,
    log_decay: Float[Tensor, "batch head"],
    beta: Float[Tensor, "batch head"] | None = None,
) -> Output:
    """Continue :func:`gated_linear_attention` by one position.

    S_t = exp(log_decay_t) S_{t-1} + beta_t v_t k_t^T, o_t = S_t q_t.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        log_decay: logarithm of the share of the past that is kept, [batch, head], <= 0.
        beta: write strength [batch, head] in [0, 1], 1 if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> state = linear_attention_step(one, one, one).state
        >>> halve = torch.full((1, 1), 0.5).log()
        >>> gated_linear_attention_step(one, one, one, state, log_decay=halve).output
        tensor([[[1.5000]]])
    """
    return online_step(q, k, v, state, beta=beta, log_decay=log_decay)
