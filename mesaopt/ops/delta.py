"""Delta rules: online gradient descent on the squared error, explicit or implicit, chunk by chunk.

Every position writes the error of its prediction, so the writes of a chunk depend on one another. With S
the state at the chunk's start, D[t, s] the decay between two positions and d_t that since the start, the
write of position t is

    u_t = beta_t (v_t - d_t S k_t - sum_{s < t} D[t, s] (k_s . k_t) u_s),

a triangular system. It is linear in S, so it is solved once, for beta V and for beta d K together:
U = U_0 - E S^T. Everything else is matrix products, and a chunk acts on the state as one matrix:

    S_next = S (d_end I - E^T K_end) + U_0^T K_end, with K_end the keys decayed to the chunk's end.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.packing import Layout
from mesaopt.ops.segments import Inputs, run_operator
from mesaopt.ops.state import (
    LinearState,
    Output,
    implicit_strength,
    online_step,
    working_type,
)
from mesaopt.ops.triangular import solve_unit_triangular
from mesaopt.ops.validation import check_gates, check_shapes


def delta_rule(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    beta: Float[Tensor, "batch time head"] | None = None,
    chunk_size: int = 64,
    initial_state: LinearState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """One gradient step per pair: S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t.

    The objective of a step is the newest pair's squared error, |v_t - S k_t|^2 / 2. Steps are stable
    where beta_t |k_t|^2 <= 2. Time and memory grow linearly with the sequence.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        beta: step size [batch, time, head] in [0, 1], 1 if None.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets [0, ..., time] of sequences packed along time, integers, best on the CPU;
            equal neighbours are an empty sequence. The batch must be 1, and states then have one entry
            per sequence.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and the state after the last position.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Source: Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", for the rule; Yang
    et al., "Parallelizing Linear Transformers with the Delta Rule", for solving it in chunks.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> delta_rule(one, one, one, beta=torch.full((1, 3, 1), 0.5)).output.flatten()
        tensor([0.5000, 0.7500, 0.8750])
    """
    check_shapes(q, k, v, chunk_size)
    check_gates(q, beta=beta)
    return run_operator(
        _delta_rule,
        Inputs(q, k, v, beta),
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )


def delta_rule_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None = None,
    *,
    beta: Float[Tensor, "batch head"] | None = None,
) -> Output:
    """Continue :func:`delta_rule` by one position.

    S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        beta: step size [batch, head] in [0, 1], 1 if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> delta_rule_step(one, one, one, beta=torch.full((1, 1), 0.5)).output
        tensor([[[0.5000]]])
    """
    return online_step(q, k, v, state, beta=beta, of_error=True)


def gated_delta_rule(
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
    """Forget, then one gradient step per pair: S_t = S' + beta_t (v_t - S' k_t) k_t^T, o_t = S_t q_t.

    S' = exp(log_decay_t) S_{t-1} is the state after forgetting. Time and memory grow linearly with the
    sequence.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        log_decay: logarithm of the share of the past that is kept, [batch, time, head], <= 0.
        beta: step size [batch, time, head] in [0, 1], 1 if None.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets of packed sequences, see :func:`delta_rule`.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and the state after the last position.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Source: Yang et al., "Gated Delta Networks".

    Example:
        >>> import torch
        >>> one = torch.ones(1, 2, 1, 1)
        >>> half = torch.full((1, 2, 1), 0.5)
        >>> gated_delta_rule(one, one, one, log_decay=half.log(), beta=half).output.flatten()
        tensor([0.5000, 0.6250])
    """
    check_shapes(q, k, v, chunk_size)
    check_gates(q, beta=beta, log_decay=log_decay)
    return run_operator(
        _delta_rule,
        Inputs(q, k, v, beta, log_decay),
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )


def gated_delta_rule_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None = None,
    *,
    log_decay: Float[Tensor, "batch head"],
    beta: Float[Tensor, "batch head"] | None = None,
) -> Output:
    """Continue :func:`gated_delta_rule` by one position.

    S' = exp(log_decay_t) S_{t-1}, S_t = S' + beta_t (v_t - S' k_t) k_t^T, o_t = S_t q_t.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        log_decay: logarithm of the share of the past that is kept, [batch, head], <= 0.
        beta: step size [batch, head] in [0, 1], 1 if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Example:
        >>> import torch
        >>> one, half = torch.ones(1, 1, 1), torch.full((1, 1), 0.5)
        >>> state = delta_rule_step(one, one, one, beta=half).state
        >>> gated_delta_rule_step(one, one, one, state, log_decay=half.log(), beta=half).output
        tensor([[[0.6250]]])
    """
    return online_step(q, k, v, state, beta=beta, log_decay=log_decay, of_error=True)


def longhorn(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    beta: Float[Tensor, "batch time head"] | None = None,
    chunk_size: int = 64,
    initial_state: LinearState | None = None,
    cu_seqlens: Int[Tensor, " offset"] | None = None,
) -> Output:
    """One implicit step per pair: S_t = argmin_S |S - S_{t-1}|^2 + beta_t |v_t - S k_t|^2, o_t = S_t q_t.

    The minimiser is a delta rule step of the size beta_t / (1 + beta_t |k_t|^2): setting the gradient to
    zero gives S_t = S_{t-1} + beta_t (v_t - S_t k_t) k_t^T, and multiplying that by k_t shows that the
    new error is the old one divided by 1 + beta_t |k_t|^2. No step overshoots, whatever the keys.
    Exact: no approximation of k k^T by its diagonal. Time and memory grow linearly with the sequence.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape and type.
        v: values [batch, time, head, value], the same type.
        beta: weight of the new pair against the old state [batch, time, head] in [0, 1], 1 if None.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets of packed sequences, see :func:`delta_rule`.

    Returns:
        Outputs [batch, time, head, value] in the type of q, and the state after the last position.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Source: Liu et al., "Longhorn: State Space Models are Amortized Online Learners", equation of the
    objective; their models use its diagonal approximation.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> longhorn(one, one, one).output.flatten()
        tensor([0.5000, 0.7500, 0.8750])
    """
    check_shapes(q, k, v, chunk_size)
    check_gates(q, beta=beta)
    return run_operator(
        _longhorn,
        Inputs(q, k, v, beta),
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )


def longhorn_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None = None,
    *,
    beta: Float[Tensor, "batch head"] | None = None,
) -> Output:
    """Continue :func:`longhorn` by one position.

    S_t = S_{t-1} + beta_t / (1 + beta_t |k_t|^2) (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t.

    Args:
        q: query [batch, head, key], any floating-point type.
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        beta: weight of the new pair against the old state [batch, head] in [0, 1], 1 if None.

    Returns:
        Output [batch, head, value] and the new state.

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: shapes, types, devices or values that do not fit.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> longhorn_step(one, one, one).output
        tensor([[[0.5000]]])
    """
    return online_step(q, k, v, state, beta=beta, of_error=True, implicit=True)


def _longhorn(layout: Layout, inputs: Inputs, state: LinearState | None) -> Output:
    strength = implicit_strength(inputs.k, inputs.beta)
    return _delta_rule(layout, inputs._replace(beta=strength), state)


def _delta_rule(layout: Layout, inputs: Inputs, state: LinearState | None) -> Output:
    """Run a delta rule, with gates or without."""
    kind, beta, log_decay = working_type(inputs.q), inputs.beta, inputs.log_decay
    queries, keys, values = (layout.cut(x.to(kind)) for x in inputs[:3])
    strength = None if beta is None else layout.cut_gate(beta.to(kind)).unsqueeze(-1)
    decay = None if log_decay is None else chunks.decays(layout.cut_gate(log_decay.to(kind)))
    if decay is None:
        scores = chunks.causal_scores(queries, keys)
    else:
        scores = (queries @ keys.mT) * decay.between
        queries = queries * decay.from_start
    cross = None if state is None else state.cross
    writes, starts, last = _write(
        keys, values, strength=strength, decay=decay, cross=cross, layout=layout
    )
    out = scores @ writes
    if starts is not None:
        out = out + queries @ starts.mT
    return Output(layout.join(out), LinearState(last))


def _write(
    keys: Float[Tensor, "batch head chunk position key"],
    values: Float[Tensor, "batch head chunk position value"],
    *,
    strength: Float[Tensor, "batch head chunk position 1"] | None,
    decay: chunks.Decays | None,
    cross: Float[Tensor, "sequence head value key"] | None,
    layout: Layout,
) -> tuple[
    Float[Tensor, "batch head chunk position value"],
    Float[Tensor, "batch head chunk value key"] | None,
    Float[Tensor, "sequence head value key"],
]:
    """Return the writes of all positions, the state before each chunk (None if all zero) and the last."""
    written = keys if strength is None else keys * strength
    coupling = written @ keys.mT
    early_keys, late_keys = written, keys
    kept = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    if decay is not None:
        coupling = coupling * decay.between
        early_keys, late_keys = early_keys * decay.from_start, keys * decay.to_end
        kept = kept * decay.total
    if strength is not None:
        values = values * strength
    if not layout.has_past(cross):
        writes = solve_unit_triangular(coupling, values)
        return writes, *layout.carry(chunks.chain_states, None, writes.mT @ late_keys)
    solved = solve_unit_triangular(coupling, torch.cat([values, early_keys], dim=-1))
    fresh, erased = solved.split([values.shape[-1], keys.shape[-1]], dim=-1)  # U_0, E
    starts, last = layout.carry(
        chunks.chain_states, cross, fresh.mT @ late_keys, kept - erased.mT @ late_keys
    )
    return fresh - erased @ cast(Tensor, starts).mT, starts, last
