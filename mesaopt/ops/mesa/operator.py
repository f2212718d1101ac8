"""The mesa operator: ridge regression on the past, solved at every position.

Time is cut into chunks. A cumulative sum carries the Gram state H and the cross state G from chunk to
chunk; from there on all chunks are independent, and a solver solves their systems, which
:mod:`mesaopt.ops.mesa.system` defines. The gradient is that of the solution, not of the algorithm: see
:mod:`mesaopt.ops.mesa.backward`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa.auto import SolverLike, as_solver
from mesaopt.ops.mesa.backward import solve_and_read
from mesaopt.ops.mesa.exact import Exact
from mesaopt.ops.mesa.failures import failure, worst_chunk
from mesaopt.ops.mesa.solver import Prepared, Solved, Solver
from mesaopt.ops.mesa.state import MesaState
from mesaopt.ops.mesa.system import System
from mesaopt.ops.packing import Layout, lay_out
from mesaopt.ops.segments import Inputs, run_in_segments
from mesaopt.ops.state import full_precision, working_type
from mesaopt.ops.validation import (
    OnFailure,
    RidgeMode,
    check_choice,
    check_finite,
    check_gates,
    check_shapes,
    check_state,
    check_step,
    is_finite,
    readable,
    ridge_per_channel,
    traced,
)


@dataclass(frozen=True)
class SolveInfo:
    """How the systems of a call were solved, and how well; chunks are numbered from 0.

    Packed sequences lie chunk after chunk along the last axis of :attr:`steps` and :attr:`residual`,
    whose batch is then 1.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> info = mesa(one, one, one, ridge=1.0).info
        >>> info.solver, info.chunk_size, info.worst_residual < 1e-6
        (Exact(rtol=None), 3, True)
    """

    solver: Solver
    """The solver that ran, never :class:`mesaopt.ops.Auto`."""
    reason: str
    """Why it was chosen."""
    steps: Int[Tensor, "batch head chunk"]
    """Iterations that every chunk took; 0 for direct solvers."""
    layout: Layout = field(repr=False)
    """The chunks."""
    measure: Callable[[], Tensor] = field(repr=False)
    """Computes :attr:`residual`."""

    @property
    def chunk_size(self) -> int:
        """Positions of a chunk, which can be fewer than asked for."""
        return self.layout.chunk_size

    @cached_property
    def residual(self) -> Float[Tensor, "batch head chunk"]:
        """Worst relative residual |q - A x| / |q| of every chunk, measured when first asked for."""
        return self.measure()

    @property
    def worst_residual(self) -> float:
        """The largest residual anywhere; NaN if there is a NaN."""
        return self.residual.max().item()

    @property
    def worst_at(self) -> tuple[int, int, int]:
        """Sequence, head and first position of the chunk with the largest residual."""
        batch, head, chunk = worst_chunk(self.residual)
        sequence, position = self.layout.locate(batch, chunk)
        return sequence, head, position


class MesaOutput(NamedTuple):
    """Result of :func:`mesa` and :func:`mesa_step`.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> output, state, info = mesa(one, one, one, ridge=1.0)
        >>> output.shape
        torch.Size([1, 3, 1, 1])
    """

    output: Float[Tensor, "..."]
    """Predictions, shaped as the values."""
    state: MesaState
    """State after the last position, to continue from."""
    info: SolveInfo
    """How the systems were solved."""


def mesa(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    ridge: Float[Tensor, "..."] | float,
    beta: Float[Tensor, "batch time head"] | None = None,
    log_decay: Float[Tensor, "batch time head"] | None = None,
    ridge_mode: RidgeMode = "static",
    solver: SolverLike = "auto",
    chunk_size: int = 64,
    initial_state: MesaState | None = None,
    cu_seqlens: Int[Tensor, "offsets"] | None = None,
    on_failure: OnFailure = "raise",
) -> MesaOutput:
    """Predict at every position with the ridge regression of all pairs seen so far.

    o_t = G_t (H_t + ridge_t)^{-1} q_t with
    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T, G_t = gamma_t G_{t-1} + beta_t v_t k_t^T.

    Time and memory grow linearly with the sequence. Gradients flow to q, k, v, ridge, beta, log_decay
    and the initial state by implicit differentiation (through the steps for the two solvers of a
    fixed number of steps), and can be differentiated again.

    Args:
        q: queries [batch, time, head, key]. Half precision is computed in float32.
        k: keys (regression inputs), the same shape and type.
        v: values (regression targets) [batch, time, head, value], the same type.
        ridge: number added to the diagonal of H, finite and > 0: one number, or a tensor [head] or
            [head, key]. Calls whose squared keys add up to too many ridges for float32 run in float64.
        beta: write strengths in [0, 1], [batch, time, head]; 1 if None.
        log_decay: log gamma, 0 or less, [batch, time, head]; nothing is forgotten if None.
        ridge_mode: "static", the same ridge at every position; or "decayed", the ridge is forgotten
            with the state as in recursive least squares.
        solver: one of the solvers of :mod:`mesaopt.ops`, with its tolerance and number of steps, or for
            its default settings a name: "auto", "exact", "cg", "recursive", "neumann" or "chebyshev".
        chunk_size: most positions processed in parallel, 1 or more; it changes rounding only.
        initial_state: from an earlier call or step, to continue it; one per sequence.
        cu_seqlens: offsets [0, ..., time] of sequences packed along time, integers, best on the CPU;
            equal neighbours are an empty sequence. The batch must be 1, and states then have one entry
            per sequence.
        on_failure: what to do about a failed factorisation, a missed tolerance or numbers that are not
            finite: "raise", "warn" or "ignore". The first two make a GPU wait, as do gates, which set
            the chunks. Compilation and torch.func hide values: there nothing is checked, and gated
            chunks have 16 positions. In float32 a ridge that decays must then keep exp(-8) of itself
            over 16 positions; outputs that rounding spoils otherwise are NaN.

    Returns:
        (output [batch, time, head, value], state, info).

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: an argument has a wrong shape, device, type or value; the message names it.
        SolveError: the solve failed and `on_failure` is "raise".

    Source: von Oswald et al. 2023, equations 4 to 8, with ridge = 1 / lambda, the current pair included;
    von Oswald et al. 2025 for gates and the static ridge. The chunk factorisation is ours.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0).output.flatten()  # t / (t + 1)
        tensor([0.5000, 0.6667, 0.7500])
    """
    check_shapes(q, k, v, chunk_size)
    check_choice("ridge_mode", ridge_mode, RidgeMode)
    check_choice("on_failure", on_failure, OnFailure)
    asked = as_solver(solver)
    wait = on_failure != "ignore"
    check_gates(q, beta=beta, log_decay=log_decay, wait=wait)
    if wait:
        given = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay}
        provided = {name: x for name, x in given.items() if x is not None}
        check_finite(provided, failure(on_failure, ValueError))
    layout = lay_out(q, chunk_size, cu_seqlens)
    kind = working_type(q)
    gates = (None if x is None else x.to(kind) for x in (beta, log_decay))
    inputs = Inputs(q.to(kind), k.to(kind), v.to(kind), *gates)
    if initial_state is not None:
        _check_mesa_state("initial_state", initial_state, layout.sequences, inputs.q, v)
    rows = ridge_per_channel(ridge, inputs.q, wait=wait)
    decayed = ridge_mode == "decayed"
    static_ridge_forgets = log_decay is not None and not decayed and chunk_size > 1
    chosen, reason = asked.choose(static_ridge_forgets=static_ridge_forgets)
    layout = layout.resized(chosen.chunk_size(layout, inputs.log_decay, ridge_decays=decayed))
    call = _Call(chosen, reason, decayed, on_failure, layout)
    with full_precision(q):  # autocast would make a solve of half precision
        result = _run(call, inputs, rows, initial_state)
    output = result.output.to(q.dtype)
    if on_failure != "ignore" and not is_finite(output):
        cause = "the system is too ill-conditioned"
        if is_finite(result.output):
            cause = f"{q.dtype} holds no number beyond {torch.finfo(q.dtype).max:g}"
        failure(on_failure)(f"the output of mesa is not finite: {cause}")
    return result._replace(output=output)


def mesa_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: MesaState | None = None,
    *,
    ridge: Float[Tensor, "..."] | float,
    beta: Float[Tensor, "batch head"] | None = None,
    log_decay: Float[Tensor, "batch head"] | None = None,
    ridge_mode: RidgeMode = "static",
    on_failure: OnFailure = "raise",
) -> MesaOutput:
    """Continue :func:`mesa` by one position, at a cost that does not grow with the past.

    o_t = G_t (H_t + ridge_t)^{-1} q_t, solved directly.

    Args:
        q: query [batch, head, key].
        k: key, the same shape and type.
        v: value [batch, head, value], the same type.
        state: from an earlier call or step; None at the first position.
        ridge: as in :func:`mesa`.
        beta: write strength [batch, head] in [0, 1]; 1 if None.
        log_decay: log gamma [batch, head], 0 or less; nothing is forgotten if None.
        ridge_mode: as in :func:`mesa`.
        on_failure: as in :func:`mesa`.

    Returns:
        (output [batch, head, value], state, info).

    Raises:
        TypeError: an argument is of a wrong type, such as a list in place of a tensor.
        ValueError: an argument has a wrong shape, device, type or value; the message names it.
        SolveError: the matrix is not positive definite and `on_failure` is "raise".

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> first = mesa_step(one, one, one, ridge=1.0)
        >>> round(mesa_step(one, one, one, first.state, ridge=1.0).output.item(), 4)
        0.6667
    """
    check_step(q, k, v)
    check_gates(q, beta=beta, log_decay=log_decay)
    if state is not None:
        _check_mesa_state("state", state, len(q), q, v)
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))  # [B,1,H,K], [B,1,H,V]
    beta, log_decay = (None if x is None else x.unsqueeze(1) for x in (beta, log_decay))
    # A zero gate makes the chunk of one position factorise its own matrix, as a step should.
    gate = q.new_zeros(q.shape[:-1]) if log_decay is None else log_decay
    result = mesa(
        q, k, v, ridge=ridge, beta=beta, log_decay=gate, ridge_mode=ridge_mode, solver=Exact(),
        chunk_size=1, initial_state=state, on_failure=on_failure,
    )  # fmt: skip
    return result._replace(output=result.output.squeeze(1))


@dataclass(frozen=True)
class _Call:
    """Everything decided about a call."""

    solver: Solver
    reason: str
    ridge_decays: bool
    on_failure: OnFailure
    layout: Layout


def _check_mesa_state(name: str, state: MesaState, sequences: int, q: Tensor, v: Tensor) -> None:
    like = MesaState.empty(sequences, q.shape[-2], q.shape[-1], v.shape[-1], like=q)
    check_state(name, state, like)


def _run(
    call: _Call,
    inputs: Inputs,
    ridge: Float[Tensor, "head key"],
    initial: MesaState | None,
) -> MesaOutput:
    """Run a call: in float64 if it is too ill-conditioned for float32."""

    def run(layout: Layout, piece: Inputs, state: MesaState | None) -> MesaOutput | None:
        return _run_segment(replace(call, layout=layout), piece, ridge, state)

    joined = run_in_segments(run, call.layout, inputs, initial)
    if joined is None:
        return _run_in_double(call, inputs, ridge, initial)
    infos = [result.info for result in joined.results]
    return MesaOutput(joined.output, joined.state, _join_infos(call, infos))


def _run_segment(
    call: _Call,
    inputs: Inputs,
    ridge: Float[Tensor, "head key"],
    initial: MesaState | None,
) -> MesaOutput | None:
    """Carry the states, solve the chunks' systems, read out; None where float32 is not enough."""
    layout = call.layout
    queries, keys, values = (layout.cut(x) for x in (inputs.q, inputs.k, inputs.v))  # [B,H,N,C,K]
    beta, gates = (
        None if x is None else layout.cut_gate(x).unsqueeze(-1)
        for x in (inputs.beta, inputs.log_decay)
    )  # [B,H,N,C,1]
    decay = None if gates is None else chunks.decays(gates.squeeze(-1))
    strengths = [x for x in (beta, None if decay is None else decay.to_end) if x is not None]
    kept = keys * math.prod(strengths) if strengths else keys
    total = () if decay is None else (decay.total,)
    scan = chunks.sum_states if decay is None else chunks.chain_states
    first = None if initial is None else (initial.gram + initial.gram.mT) / 2
    gram, gram_end = layout.carry(scan, first, kept.mT @ keys, *total)
    first = None if initial is None else initial.cross
    cross, cross_end = layout.carry(scan, first, values.mT @ kept, *total)
    log_starts, log_end = _log_decays(call, inputs.q, gates, initial)
    rows = ridge[None, :, None, None]  # [1,H,1,1,K]
    system = System(
        keys,
        ridge=rows * log_starts.exp() if log_starts is not None and call.ridge_decays else rows,
        beta=beta,
        start=gram,
        between=None if decay is None else decay.between,
        since_start=None if decay is None else decay.from_start,
        ridge_decays=call.ridge_decays,
    )
    prepared = call.solver.prepare(system)
    doubtful = _is_doubtful(call, system, prepared)
    if doubtful and keys.dtype == torch.float32 and keys.device.type != "mps":
        return None
    solved, out = solve_and_read(
        system,
        queries,
        values,
        solver=call.solver,
        prepared=prepared,
        on_failure=call.on_failure,
        layout=layout,
        check_rounding=doubtful and call.solver.implicit,
    )
    if cross is not None:
        past = solved.solution if decay is None else solved.solution * decay.from_start
        out = out + past @ cross.mT
    return MesaOutput(
        layout.join(out),
        MesaState(gram_end, cross_end, log_end),
        _inform(call, system, solved, queries),
    )


def _is_doubtful(call: _Call, system: System, prepared: Prepared) -> bool:
    """Return whether rounding may spoil a solve; never where to know it is to wait, or impossible."""
    doubts = call.solver.doubts(system, prepared)
    if not (readable(doubts) or call.on_failure != "ignore"):
        return False
    return not traced(doubts) and bool(doubts.any())


def _run_in_double(
    call: _Call, inputs: Inputs, ridge: Float[Tensor, "head key"], initial: MesaState | None
) -> MesaOutput:
    """Run a call in float64 that is too ill-conditioned for float32."""
    tensors = {name: x.double() for name, x in inputs._asdict().items() if x is not None}
    inputs = inputs._replace(**tensors)
    initial = None if initial is None else MesaState(*(x.double() for x in initial))
    result = _run(
        replace(call, reason=f"{call.reason}; in float64, for float32 would lose too many digits"),
        inputs, ridge.double(), initial,
    )  # fmt: skip
    return result._replace(state=MesaState(*(x.float() for x in result.state)))


def _log_decays(
    call: _Call, q: Tensor, gates: Tensor | None, initial: MesaState | None
) -> tuple[Tensor | None, Float[Tensor, "sequence head"]]:
    """Return the log of the decay from the very first position to every chunk's start, and to the end.

    The former is None if no ridge decays.
    """
    layout = call.layout
    first = q.new_zeros(layout.sequences, q.shape[2]) if initial is None else initial.log_decay
    if gates is None and (initial is None or not call.ridge_decays):
        return None, first
    if gates is None:
        totals = q.new_zeros(len(q), q.shape[2], sum(layout.counts), 1, 1)
    else:
        totals = gates.sum(-2, keepdim=True)  # [B,H,N,1,1]
    starts, end = layout.carry(chunks.sum_states, first[..., None, None], totals)
    return starts, end[..., 0, 0]


def _join_infos(call: _Call, infos: list[SolveInfo]) -> SolveInfo:
    if len(infos) == 1:
        return infos[0]
    steps = torch.cat([info.steps for info in infos], dim=2)

    def measure() -> Tensor:
        return torch.cat([info.residual for info in infos], dim=2)

    return SolveInfo(call.solver, call.reason, steps, call.layout, measure)


def _inform(call: _Call, system: System, solved: Solved, queries: Tensor) -> SolveInfo:
    solution, queries, system = solved.solution.detach(), queries.detach(), system.detach()
    residual = solved.residual if solved.is_measured else None

    def measure() -> Tensor:  # holds nothing with a history, which would keep the graph alive
        if residual is not None:
            return residual
        with full_precision(queries):  # whoever asks may be under autocast
            return system.relative_residual(solution, queries)

    return SolveInfo(call.solver, call.reason, solved.steps, call.layout, measure)
