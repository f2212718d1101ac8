"""Solving a call's systems and differentiating the solution implicitly."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.mesa.factors import Factors
from mesaopt.ops.mesa.failures import check_factors, check_residuals
from mesaopt.ops.mesa.preconditioner import Preconditioner
from mesaopt.ops.mesa.solver import Prepared, Solved, Solver, measure_rounding
from mesaopt.ops.mesa.system import System
from mesaopt.ops.packing import Layout
from mesaopt.ops.state import full_precision
from mesaopt.ops.validation import OnFailure, differentiated, refuse_nested_forward_mode, traced


class Answer(NamedTuple):
    """Solutions, how good they are, and the readout of their own chunk."""

    solved: Solved
    read: Float[Tensor, "*group position value"]
    """sum_{s <= t} D_ts beta_s (k_s . x_t) v_s, over the sources of the chunk."""


def solve_and_read(
    system: System,
    rhs: Float[Tensor, "*group position key"],
    values: Float[Tensor, "*group position value"],
    *,
    solver: Solver,
    prepared: Prepared,
    on_failure: OnFailure,
    layout: Layout,
    check_rounding: bool = False,
) -> Answer:
    """Solve the systems of all chunks, and read out the values that the chunks themselves hold.

    Args:
        system: the matrices, [batch, head, chunk, position, ...].
        rhs: one right-hand side per position.
        values: one value per position.
        solver: how to solve.
        prepared: from :meth:`Solver.prepare`.
        on_failure: what to do where a solve fails, also in the backward pass.
        layout: the chunks, for messages.
        check_rounding: whether to measure residuals that the solver does not measure, and to accept no
            more than rounding explains.

    Returns:
        Solutions and readout, differentiable in the system, the right-hand sides and the values:
        through the steps for solvers with a fixed number of them, implicitly for the others.

    Raises:
        SolveError: a factorisation or a tolerance was missed, and `on_failure` is "raise"; the same
            holds in the backward pass.

    Example:
        >>> from mesaopt.ops import Exact
        >>> from mesaopt.ops.packing import lay_out
        >>> one = torch.ones(1, 1, 1, 1, 1)
        >>> layout = lay_out(one[0], 1, None)
        >>> system, solver = System(one, one), Exact()
        >>> settings = {"solver": solver, "prepared": solver.prepare(system)}
        >>> settings |= {"on_failure": "raise", "layout": layout}
        >>> round(solve_and_read(system, one, 3 * one, **settings).read.item(), 4)
        1.5
    """
    if isinstance(prepared, Factors):
        check_factors(prepared.failed, on_failure, layout)
    call = _Call(solver, on_failure, layout, system.ridge_decays, type(prepared), check_rounding)
    if solver.implicit:
        return _solve(call, system, rhs, values, prepared)
    solved = call.solve(system, prepared, rhs)
    return Answer(solved, _read(system, solved.solution, values)[0])


@dataclass(frozen=True)
class _Call:
    """Settings of a solve, the same forward and backward."""

    solver: Solver
    on_failure: OnFailure
    layout: Layout
    ridge_decays: bool
    prepared_type: type
    check_rounding: bool

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Solve, and check the residuals where there is a tolerance or rounding may show."""
        solved = self.solver.solve(system, prepared, rhs)
        if self.check_rounding and not solved.is_measured:
            solved = measure_rounding(system, solved, rhs)
        check_residuals(solved, rhs, self.solver, self.on_failure, self.layout)
        return solved

    def regroup(self, tensors: tuple[Any, ...]) -> Prepared:
        """Undo the flattening of the factors or the preconditioner."""
        if self.prepared_type is Factors:
            return Factors(*tensors)
        return Preconditioner(*tensors) if self.prepared_type is Preconditioner else None


class _Arguments(NamedTuple):
    """Arguments of :class:`_Solve`, in order; the tensors that the solver prepared follow them."""

    call: _Call
    rhs: Tensor
    values: Tensor | None
    keys: Tensor
    ridge: Tensor
    beta: Tensor | None
    start: Tensor | None
    between: Tensor | None
    since_start: Tensor | None

    @property
    def system(self) -> System:
        return System(*self[3:], ridge_decays=self.call.ridge_decays)


class _Results(NamedTuple):
    """Results of :class:`_Solve`, in order: those of :class:`Solved`, the readout and its scores."""

    solution: Tensor
    residual: Tensor
    accepted: Tensor
    steps: Tensor
    read: Tensor
    scores: Tensor


class _Saved(NamedTuple):
    """Tensors that derivatives need; those that the solver prepared follow them."""

    solution: Tensor
    scores: Tensor | None
    values: Tensor | None
    keys: Tensor
    ridge: Tensor
    beta: Tensor | None
    start: Tensor | None
    between: Tensor | None
    since_start: Tensor | None

    def system(self, call: _Call) -> System:
        return System(*self[3:], ridge_decays=call.ridge_decays)


def _split(kind: type[Any], tensors: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Take the fields of a named tuple from the front, and return the rest too."""
    count = len(kind._fields)
    return kind(*tensors[:count]), tuple(tensors[count:])


def _solve(call: _Call, system: System, rhs: Tensor, values: Tensor, prepared: Prepared) -> Answer:
    """Solve with implicit gradients, and read out."""
    arguments = (*_Arguments(call, rhs, values, *system[:-1]), *(prepared or ()))
    results = _Results(*_apply(_Solve, _DualSolve, arguments))
    solved = Solved(*results[:4])
    return Answer(solved._replace(steps=solved.steps.long()), results.read)


def _solve_again(call: _Call, system: System, rhs: Tensor, prepared: Prepared) -> Tensor:
    """Return a solution with implicit gradients."""
    arguments = (*_Arguments(call, rhs, None, *system[:-1]), *(prepared or ()))
    return _apply(_SolveAgain, _DualSolveAgain, arguments)


def _apply(
    plain: type[torch.autograd.Function],
    dual: type[torch.autograd.Function],
    arguments: tuple[Any, ...],
) -> Any:
    """Apply a function: with forward mode, unless the code is being compiled."""
    if not differentiated(*arguments):  # where compilation would hand it one argument too many
        return plain.forward(*arguments)
    if torch.compiler.is_compiling():
        return plain.apply(*arguments)
    refuse_nested_forward_mode()
    return dual.apply(*arguments)


def _read(system: System, solution: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the readout and its scores."""
    scores = chunks.weigh_past(solution @ system.keys.mT, system.between)
    return scores @ (values if system.beta is None else values * system.beta), scores


class _Solve(torch.autograd.Function):
    """x_t = A_t^{-1} b_t for all t of every chunk and its readout, differentiated implicitly.

    With the gradient dx, the readout's share included, and z_t = A_t^{-1} dx_t: db = z, and everything
    in A_t gets the gradient of -z_t^T A_t x_t with z and x held fixed. The backward pass is made of
    differentiable operations, itself among them, so second derivatives come for free.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        given, prepared = _split(_Arguments, inputs)
        solved = given.call.solve(given.system, given.call.regroup(prepared), given.rhs)
        # Forward mode takes no integers, not even where they are not differentiated.
        solved = solved._replace(steps=solved.steps.to(given.rhs.dtype))
        return (*solved, *_read(given.system, solved.solution, cast(Tensor, given.values)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        results = _Results(*output)
        _save(ctx, inputs, results.solution, results.scores)
        ctx.mark_non_differentiable(
            results.residual, results.accepted, results.steps, results.scores
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_results = _Results(*cast(Any, grads))
        return _pull_back_saved(ctx, d_results.solution, d_results.read)


class _DualSolve(_Solve):
    """The same with forward mode, which compilation cannot follow."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        d_solution, d_read = _push_forward_saved(ctx, tangents)
        return d_solution, None, None, None, d_read, None


class _SolveAgain(torch.autograd.Function):
    """The same without a readout, for derivatives; of one result, since nested vmap takes no more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        given, prepared = _split(_Arguments, inputs)
        return given.call.solve(given.system, given.call.regroup(prepared), given.rhs).solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _pull_back_saved(ctx, grads[0], None)


class _DualSolveAgain(_SolveAgain):
    """The same with forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _push_forward_saved(ctx, tangents)[0]


def _save(ctx: Any, inputs: tuple[Any, ...], solution: Tensor, scores: Tensor | None) -> None:
    """Save what backward and forward mode need."""
    given, prepared = _split(_Arguments, inputs)
    tensors = (*_Saved(solution, scores, given.values, *given.system[:-1]), *prepared)
    ctx.call = given.call
    ctx.provided = tuple(x is not None for x in tensors)
    present = [x for x in tensors if x is not None]  # compilation drops a None
    ctx.save_for_backward(*present)
    ctx.save_for_forward(*present)
    # Zeros for the scores would cost as much as computing them.
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[_Saved, tuple[Tensor | None, ...]]:
    """Return what was saved, and the tensors that the solver prepared."""
    tensors = iter(ctx.saved_tensors)
    return _split(_Saved, tuple(next(tensors) if there else None for there in ctx.provided))


def _pull_back_saved(
    ctx: Any, d_solution: Tensor | None, d_read: Tensor | None
) -> tuple[Tensor | None, ...]:
    like = d_read if d_solution is None else d_solution
    if like is None:
        return (None,) * len(ctx.needs_input_grad)
    saved, prepared = _saved(ctx)
    with full_precision(like):  # a compiled backward pass may be under autocast
        gradients = _pull_back(ctx.call, saved, prepared, d_solution, d_read)
    return (*gradients, *[None] * len(prepared))


def _push_forward_saved(ctx: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
    saved, prepared = _saved(ctx)
    with full_precision(saved.solution):
        return _push_forward(ctx.call, saved, prepared, _split(_Arguments, tangents)[0])


def _pull_back(
    call: _Call,
    saved: _Saved,
    prepared: tuple[Tensor | None, ...],
    d_solution: Tensor | None,
    d_read: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of :class:`_Arguments`; at least one of those of the results is given."""
    system, keys = saved.system(call), saved.keys
    d_scores = None
    if d_read is None:
        saved = saved._replace(values=None)
    else:
        d_scores = d_read @ cast(Tensor, saved.values).mT
        weighed = chunks.weigh_past(d_scores, saved.between)
        through = weighed @ (keys if saved.beta is None else keys * saved.beta)
        d_solution = through if d_solution is None else d_solution + through
    rhs = cast(Tensor, d_solution)
    adjoint = _solve_again(call, system, rhs, call.regroup(prepared))
    # The saved scores have no derivative.
    if torch.is_grad_enabled() or saved.scores is None:
        scores = chunks.weigh_past(saved.solution @ keys.mT, saved.between)
        saved = saved._replace(scores=scores)
    d_values, d_keys, d_beta, d_between = _pull_back_local(saved, adjoint, d_read, d_scores)
    d_start, d_ridge, d_since_start = _pull_back_start(system, saved.solution, adjoint)
    d_system = (d_keys, d_ridge, d_beta, d_start, d_between, d_since_start)
    return None, adjoint, d_values, *d_system


def _push_forward(
    call: _Call, saved: _Saved, prepared: tuple[Tensor | None, ...], d: _Arguments
) -> tuple[Tensor, Tensor | None]:
    """Return how solution and readout change with the arguments: dx = A^{-1} (db - dA x)."""
    system, solution, keys, beta = saved.system(call), saved.solution, saved.keys, saved.beta
    weighted = keys if beta is None else keys * beta
    products = solution @ keys.mT
    scores = chunks.weigh_past(products.clone(), saved.between)
    # Of the scores, with the solution held fixed.
    d_scores = _sum(
        None if d.keys is None else chunks.weigh_past(solution @ d.keys.mT, saved.between),
        None if d.between is None else products * d.between,
    )
    d_product = _sum(
        None if d_scores is None else d_scores @ weighted,
        None if d.keys is None else scores @ (d.keys if beta is None else d.keys * beta),
        None if d.beta is None else scores @ (keys * d.beta),
        _push_start(system, solution, d),
    )
    rhs = _sum(d.rhs, None if d_product is None else -d_product)
    rhs = torch.zeros_like(solution) if rhs is None else rhs
    d_solution = _solve_again(call, system, rhs, call.regroup(prepared))
    if saved.values is None:
        return d_solution, None
    moved = chunks.weigh_past(d_solution @ keys.mT, saved.between)
    d_scores = moved if d_scores is None else d_scores + moved
    values = saved.values if beta is None else saved.values * beta
    d_read = _sum(
        d_scores @ values,
        None if d.values is None else scores @ (d.values if beta is None else d.values * beta),
        None if d.beta is None else scores @ (saved.values * d.beta),
    )
    return d_solution, d_read


def _push_start(system: System, solution: Tensor, d: _Arguments) -> Tensor | None:
    """Return the change of (f_t start + ridge_t) x_t, with the solution held fixed."""
    start, since_start = system.start, system.since_start
    kept = solution if since_start is None else solution * since_start
    decays = system.ridge_decays and since_start is not None
    terms = [
        None if d.ridge is None else (kept if decays else solution) * d.ridge,
        None if d.start is None else kept @ d.start,
    ]
    if d.since_start is not None:
        moved = solution * d.since_start
        terms.append(moved * system.ridge if decays else None)
        terms.append(None if start is None else moved @ start)
    return _sum(*terms)


def _sum(*terms: Tensor | None) -> Tensor | None:
    """Add the terms that are there."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], start=present[0]) if present else None


def _pull_back_local(
    saved: _Saved, adjoint: Tensor, d_read: Tensor | None, d_scores: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of values, keys, beta and between: two attentions ahead, on joined features.

    With w_ts = D_ts (v_s . do_t - k_s . z_t) and a_s = sum_t w_ts x_t:
    dk_s = beta_s (a_s - sum_t D_ts (k_s . x_t) z_t), dbeta_s = k_s . a_s,
    dv_s = beta_s sum_t D_ts (k_s . x_t) do_t, dD_ts = beta_s (k_s . x_t) (v_s . do_t - k_s . z_t).
    """
    keys, beta, between, values = saved.keys, saved.beta, saved.between, saved.values
    scores = cast(Tensor, saved.scores)
    d_between = d_values = None
    d_scores = _subtract_product(d_scores, adjoint, keys.mT)
    if between is not None:
        d_between = chunks.weigh_past((saved.solution @ keys.mT) * d_scores, None)
        d_between = d_between if beta is None else d_between * beta.mT
    toward = chunks.weigh_past(d_scores, between).mT @ saved.solution
    if values is None:
        away = scores.mT @ adjoint
    else:
        joined = scores.mT @ torch.cat([cast(Tensor, d_read), adjoint], -1)
        d_values, away = joined.split((values.shape[-1], keys.shape[-1]), -1)
    d_beta, d_keys = None, toward - away
    if beta is not None:
        d_beta, d_keys = (keys * toward).sum(-1, keepdim=True), d_keys * beta
        d_values = None if d_values is None else d_values * beta
    return d_values, d_keys, d_beta, d_between


def _subtract_product(x: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Subtract left @ right from x, in the memory of x where nothing remembers it."""
    if x is None:
        return -(left @ right)
    if torch.is_grad_enabled() or traced(x) or traced(left):
        return x - left @ right
    flat = (t.flatten(0, -3) for t in (x, left, right))  # [G,C,C], [G,C,K], [G,K,C]
    return torch.baddbmm(*flat, alpha=-1, out=x.flatten(0, -3)).view_as(x)


def _pull_back_start(
    system: System, solution: Tensor, adjoint: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of -sum_t z_t^T (f_t start + ridge_t) x_t for start, ridge and f."""
    start, ridge, since_start = system.start, system.ridge, system.since_start
    d_start = d_since_start = None
    product = adjoint * solution
    if start is not None:
        kept = -solution if since_start is None else solution * -since_start
        d_start = adjoint.mT @ kept
    if since_start is not None:
        past = _sum(
            solution * ridge if system.ridge_decays else None,
            None if start is None else solution @ start,
        )
        past = torch.zeros_like(solution) if past is None else past
        d_since_start = -(adjoint * past).sum(-1, keepdim=True)
        product = product * since_start if system.ridge_decays else product
    return d_start, -product.sum_to_size(ridge.shape), d_since_start
