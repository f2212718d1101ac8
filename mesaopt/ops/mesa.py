"""The mesa operator: ridge regression on the past, solved at every position.

Time is cut into chunks. A cumulative sum carries the Gram state H and the cross state G from chunk to
chunk; from there on all chunks are independent, and :mod:`mesaopt.ops.chunked` solves their systems.
The gradient is that of the solution, not of the algorithm: see :mod:`mesaopt.ops.implicit`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops import arguments, chunked, chunks
from mesaopt.ops.arguments import Method, OnFailure, RidgeMode
from mesaopt.ops.checks import check_gates, check_shapes, traced
from mesaopt.ops.chunked import System
from mesaopt.ops.implicit import Solver, failure, place, solve_and_read
from mesaopt.ops.iterative import Solved
from mesaopt.ops.state import full_precision

_KEPT = -2.0  # log of the least decay of a chunk whose ridge fades: dividing by it costs precision
_FORGOTTEN = 0.44  # minus the log of a chunk's decay up to which four steps reach 1e-4
_SHORTEST = 14  # positions of a chunk below which its factors cost more than the steps they save
_WORTHWHILE = 0.48  # minus the log of the shortest chunk's decay from which plain steps cost less
_UNSEEN = 16  # positions of a chunk under forgetting whose gates cannot be looked at


class MesaState(NamedTuple):
    """All that the operator remembers: constant in size however long the past."""

    gram: Float[Tensor, "batch head key key"]
    """H_t = sum_s (decay from s to t) beta_s k_s k_s^T, without the ridge."""
    cross: Float[Tensor, "batch head value key"]
    """G_t = sum_s (decay from s to t) beta_s v_s k_s^T."""
    log_decay: Float[Tensor, "batch head"]
    """Sum of all log_decay so far, which a decayed ridge needs."""

    @classmethod
    def empty(
        cls, batch: int, heads: int, key: int, value: int, *, like: Tensor | None = None
    ) -> "MesaState":
        """State of an empty past.

        Args:
            batch: sequences.
            heads: heads.
            key: width of a key.
            value: width of a value.
            like: a tensor whose device is taken, and its type if that is float64; float32 otherwise.

        Returns:
            Zeros.

        Example:
            >>> MesaState.empty(2, 3, 4, 5).cross.shape
            torch.Size([2, 3, 5, 4])
        """
        like = torch.zeros(()) if like is None else like
        dtype = torch.promote_types(like.dtype, torch.float32)
        sizes = ((key, key), (value, key), ())
        return cls(*(torch.zeros(batch, heads, *s, dtype=dtype, device=like.device) for s in sizes))


@dataclass(frozen=True)
class SolveInfo:
    """How the systems of a call were solved, and how well; chunks are numbered from 0."""

    method: str
    """What ran, never "auto"."""
    reason: str
    """Why it was picked."""
    chunk_size: int
    """Positions of a chunk, which can be fewer than asked for."""
    steps: Int[Tensor, "batch head chunk"]
    """Iterations that every chunk took; 0 for direct methods."""
    measure: Callable[[], Tensor] = field(repr=False)
    """Computes :attr:`residual`."""

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
        """Batch item, head and first position of the chunk with the largest residual."""
        return place(self.residual, self.chunk_size)


class MesaOutput(NamedTuple):
    """What :func:`mesa` returns, always."""

    output: Float[Tensor, "..."]
    """Predictions, shaped as the values."""
    state: MesaState
    """State after the last position, to go on from."""
    info: SolveInfo
    """What was done."""


def mesa(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    ridge: Float[Tensor, "..."] | float,
    beta: Float[Tensor, "batch time head"] | None = None,
    log_decay: Float[Tensor, "batch time head"] | None = None,
    ridge_mode: RidgeMode = "static",
    method: Method = "auto",
    chunk_size: int = 64,
    rtol: float | None = None,
    max_steps: int | None = None,
    initial_state: MesaState | None = None,
    cu_seqlens: Int[Tensor, "offsets"] | None = None,
    on_failure: OnFailure = "raise",
) -> MesaOutput:
    """Predict at every position with the ridge regression of all pairs seen so far.

    o_t = G_t (H_t + ridge_t)^{-1} q_t with
    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T, G_t = gamma_t G_{t-1} + beta_t v_t k_t^T.

    Time and memory grow linearly with the sequence. Gradients flow to q, k, v, ridge, beta, log_decay
    and the initial state by implicit differentiation (through the steps for the two methods of a
    fixed number of steps), and can be differentiated again.

    Args:
        q: queries [batch, time, head, key]. Half precision is computed in float32.
        k: keys (regression inputs), the same shape.
        v: values (regression targets) [batch, time, head, value].
        ridge: what is added to the diagonal of H, > 0: a number, or a tensor [head] or [head, key].
            Should exceed about 1e-6 (float32) of the largest sum of squared keys.
        beta: write strengths in [0, 1], [batch, time, head]; 1 if not given.
        log_decay: log gamma, 0 or less, [batch, time, head]; nothing is forgotten if not given.
        ridge_mode: "static", the same ridge at every position; or "decayed", the ridge is forgotten
            with the state as in recursive least squares.
        method: "exact", chunk factorisation, unless a static ridge meets forgetting; "cg", conjugate
            gradients preconditioned by it; "recursive", one position after the other; "neumann" or
            "chebyshev", `max_steps` steps from x = q; "auto", "exact" where possible, or else "cg".
        chunk_size: most positions processed in parallel, 1 or more; it changes rounding only.
        rtol: relative residual that every position must reach. If not given, "cg" goes on to 16 times
            the rounding unit, or as far as rounding allows, and the others are not measured.
        max_steps: most steps of "cg", 4 * key + 32 if not given; the steps of "neumann" and
            "chebyshev", 30 if not given.
        initial_state: what earlier calls left behind; an empty past if not given.
        cu_seqlens: int [sequences + 1], offsets 0 ... time of sequences packed one behind the other
            into a batch of 1; states then have a batch of `sequences`.
        on_failure: of a factorisation or tolerance, or of numbers that are not finite: "raise",
            "warn", or "ignore". The first two make a GPU wait, as do gates, which set the chunks.
            Compilation and torch.func see no values: nothing is checked, and gated chunks are 16.

    Returns:
        (output [batch, time, head, value], state, info).

    Raises:
        ValueError: an argument has a wrong shape, device, type or value; the message names it.
        SolveError: the solve failed and `on_failure` is "raise".

    Source: von Oswald et al. 2023, equations 4 to 8, with ridge = 1 / lambda, the current pair included;
    von Oswald et al. 2025 for gates and the static ridge. The chunk factorisation is ours.

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0).output.flatten()  # t / (t + 1)
        tensor([0.5000, 0.6667, 0.7500])
    """
    given = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay}
    there = {name: x for name, x in given.items() if x is not None}
    check_shapes(q, k, v, chunk_size)
    arguments.check_choices(ridge_mode, method, on_failure, rtol, max_steps)
    if on_failure != "ignore":
        arguments.check_finite(there, failure(on_failure, ValueError))
    check_gates(q, beta=beta, log_decay=log_decay)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    packing = None if cu_seqlens is None else arguments.unpacking(cu_seqlens, q.shape[:2])
    if packing is not None:
        given = {name: None if x is None else packing.unpack(x) for name, x in given.items()}
    precision = torch.promote_types(dtype, torch.float32)
    tensors: list[Any] = [None if x is None else x.to(precision) for x in given.values()]
    inputs = _Inputs(*tensors)
    batch, _, heads, width = inputs.q.shape
    if initial_state is not None:
        like = MesaState.empty(batch, heads, width, v.shape[-1], like=inputs.q)
        arguments.check_state(initial_state, like)
    rows = arguments.ridge_per_channel(ridge, inputs.q)
    solver, size = _plan(inputs, ridge_mode, method, chunk_size, rtol, max_steps, on_failure)
    with full_precision(q):  # autocast would make a solve of half precision
        output, state, info = _run(inputs, rows, initial_state, solver, size)
    if on_failure != "ignore" and not arguments.is_finite(output):
        failure(on_failure)("the output of mesa is not finite: the system is too ill-conditioned")
    return MesaOutput((output if packing is None else packing.pack(output)).to(dtype), state, info)


def mesa_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    *,
    ridge: Float[Tensor, "..."] | float,
    state: MesaState | None = None,
    beta: Float[Tensor, "batch head"] | None = None,
    log_decay: Float[Tensor, "batch head"] | None = None,
    ridge_mode: RidgeMode = "static",
    on_failure: OnFailure = "raise",
) -> MesaOutput:
    """Take in one more token: the numbers of :func:`mesa`, at a cost that does not grow.

    Args:
        q: queries [batch, head, key].
        k: keys, the same shape.
        v: values [batch, head, value].
        ridge: as in :func:`mesa`.
        state: what the tokens before left behind; an empty past if not given.
        beta: write strengths [batch, head].
        log_decay: log gamma [batch, head].
        ridge_mode: as in :func:`mesa`.
        on_failure: as in :func:`mesa`.

    Returns:
        (output [batch, head, value], state, info).

    Raises:
        ValueError: an argument has a wrong shape, device, type or value; the message names it.
        SolveError: the matrix is not positive definite and `on_failure` is "raise".

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> first = mesa_step(one, one, one, ridge=1.0)
        >>> round(mesa_step(one, one, one, ridge=1.0, state=first.state).output.item(), 4)
        0.6667
    """
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    beta, log_decay = (None if x is None else x.unsqueeze(1) for x in (beta, log_decay))
    # A zero gate makes the chunk of one position factorise its own matrix, as a step should.
    gate = q.new_zeros(q.shape[:-1]) if log_decay is None else log_decay
    result = mesa(
        q, k, v, ridge=ridge, beta=beta, log_decay=gate, ridge_mode=ridge_mode,
        method="exact", chunk_size=1, initial_state=state, on_failure=on_failure,
    )  # fmt: skip
    return result._replace(output=result.output.squeeze(1))


class _Inputs(NamedTuple):
    q: Float[Tensor, "batch time head key"]
    k: Float[Tensor, "batch time head key"]
    v: Float[Tensor, "batch time head value"]
    beta: Float[Tensor, "batch time head"] | None
    log_decay: Float[Tensor, "batch time head"] | None


def _plan(
    inputs: _Inputs,
    ridge_mode: RidgeMode,
    method: Method,
    chunk_size: int,
    rtol: float | None,
    max_steps: int | None,
    on_failure: OnFailure,
) -> tuple[Solver, int]:
    """Pick the method and the chunk size."""
    size, log_decay = min(chunk_size, inputs.q.shape[1]), inputs.log_decay
    mixed = log_decay is not None and ridge_mode == "static"  # not a low-rank update
    reason = "asked for"
    if method == "auto":
        method = "cg" if mixed else "exact"
        reason = "a static ridge under forgetting has no chunk factorisation" if mixed else ""
        reason = reason or "nothing is forgotten, or the ridge with the state"
    elif method == "exact" and mixed and size > 1:
        raise ValueError(
            "method='exact' with log_decay and ridge_mode='static': must be 'cg', 'recursive', "
            "'neumann' or 'chebyshev', or ridge_mode='decayed'"
        )
    if log_decay is not None and ridge_mode == "decayed":
        size = _remembering_size(log_decay, size)
    elif mixed and method == "cg":
        size = _preconditioned_size(log_decay, size)
    default = 4 * inputs.q.shape[-1] + 32 if method == "cg" else 30
    steps = default if max_steps is None else max_steps
    fades = ridge_mode == "decayed"
    return Solver(method, reason, fades, rtol, steps, on_failure), size


@torch.no_grad()
def _remembering_size(log_decay: Tensor, size: int) -> int:
    """Halve chunks until none of them forgets much."""
    if traced(log_decay):
        return min(size, _UNSEEN)
    while size > 1 and chunks.split(log_decay.unsqueeze(-1), size).sum(-2).amin() < _KEPT:
        size = (size + 1) // 2
    return size


@torch.no_grad()
def _preconditioned_size(log_decay: Tensor, size: int) -> int:
    """Chunks short enough for their factors to be good, where heads remember enough to have any."""
    if traced(log_decay):
        return min(size, _UNSEEN)
    rates = -log_decay.mean((0, 1))  # [H]
    slow = rates[rates * _SHORTEST <= _WORTHWHILE]
    fastest = slow.max().item() if len(slow) else 0.0
    wanted = int(_FORGOTTEN / fastest) if fastest * size > _FORGOTTEN else size
    return min(size, max(wanted, _SHORTEST))


def _run(
    inputs: _Inputs,
    ridge: Float[Tensor, "head key"],
    initial: MesaState | None,
    solver: Solver,
    size: int,
) -> tuple[Tensor, MesaState, SolveInfo]:
    """Carry the states, solve the chunks' systems, read out."""
    queries, keys, values = (chunks.split(x, size) for x in inputs[:3])  # [B,H,N,C,K]
    beta, gates = (
        None if x is None else chunks.split(x.unsqueeze(-1), size) for x in inputs[3:]
    )  # [B,H,N,C,1]
    decay = None if gates is None else chunks.decays(gates.squeeze(-1))
    written = keys if beta is None else keys * beta
    kept = written if decay is None else written * decay.to_end
    whole = None if decay is None else decay.whole
    before = (None, None) if initial is None else (_symmetric(initial.gram), initial.cross)
    gram, gram_end = _carry(before[0], kept.mT @ keys, whole)
    cross, cross_end = _carry(before[1], values.mT @ kept, whole)
    logs, log_end = _log_decays(inputs.q, gates, initial)
    fresh = initial is None and queries.shape[2] == 1
    rows = ridge[None, :, None, None]
    if solver.fades and gates is not None:
        rows = rows * logs.exp()
    between, since_start = (None, None) if decay is None else (decay.between, decay.from_start)
    system = System(keys, beta, None if fresh else gram, rows, between, since_start, solver.fades)
    found, out = solve_and_read(system, solver, queries, values)
    if not fresh:
        past = found.solution if since_start is None else found.solution * since_start
        out = out + past @ cross.mT
    info = _inform(solver, size, system, found, queries)
    return chunks.join(out, inputs.q.shape[1]), MesaState(gram_end, cross_end, log_end), info


def _carry(initial: Tensor | None, written: Tensor, whole: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give the state at every chunk's start and at the end."""
    if whole is None:
        return chunks.sum_states(initial, written)
    return chunks.chain_states(initial, written, whole)


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) / 2


def _log_decays(
    q: Tensor, gates: Tensor | None, initial: MesaState | None
) -> tuple[Tensor, Float[Tensor, "batch head"]]:
    """Log of the decay from the very first position to every chunk's start, and to the end."""
    first = q.new_zeros(q.shape[0], q.shape[2]) if initial is None else initial.log_decay
    if gates is None:
        return first[..., None, None, None], first
    starts, end = chunks.sum_states(first[..., None, None], gates.sum(-2, keepdim=True))
    return starts, end[..., 0, 0]


def _inform(solver: Solver, size: int, system: System, found: Solved, queries: Tensor) -> SolveInfo:
    if solver.method == "cg":
        return SolveInfo(solver.method, solver.reason, size, found.steps, lambda: found.residual)
    steps = solver.max_steps if solver.method in ("neumann", "chebyshev") else 0
    counts = torch.full(queries.shape[:3], steps, device=queries.device)
    solution, detached = found.solution.detach(), System(*map(_detach, system))
    return SolveInfo(
        solver.method, solver.reason, size, counts,
        lambda: chunked.relative_residual(detached, solution, queries.detach()),
    )  # fmt: skip


def _detach(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x
