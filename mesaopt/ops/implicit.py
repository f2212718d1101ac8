"""Solving for a call of the mesa operator, reporting on it, and differentiating it implicitly."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.errors import SolveError, SolveWarning
from mesaopt.ops import chunked, chunks, iterative, recurrent
from mesaopt.ops.arguments import Method, OnFailure
from mesaopt.ops.checks import traced
from mesaopt.ops.chunked import Factors, Preconditioner, System
from mesaopt.ops.iterative import Solved
from mesaopt.ops.state import full_precision


@dataclass(frozen=True)
class Solver:
    """What to do with a system, once its tensors are known; the same forward and backward."""

    method: Method
    reason: str
    fades: bool
    rtol: float | None
    max_steps: int
    on_failure: OnFailure

    def factorise(self, system: System, chunk_size: int) -> Factors | Preconditioner | None:
        """Make the factors that the method needs, if any.

        Args:
            system: the matrices, [batch, head, chunk, position, ...].
            chunk_size: positions of a chunk.

        Returns:
            The factors.

        Raises:
            SolveError: a matrix is not positive definite to working precision.
        """
        if self.method == "cg":
            return chunked.precondition(system)
        if self.method != "exact":
            return None
        factors = chunked.factorise(system)
        if self.on_failure == "ignore":
            return factors
        if not traced(factors.failed) and bool(factors.failed.any()):
            where = _describe(place(factors.failed.int(), chunk_size), chunk_size)
            told = "H + ridge is not positive definite to working precision at"
            failure(self.on_failure)(f"{told} {where}: raise the ridge or use float64")
        return factors

    def solve(
        self, system: System, factors: Factors | Preconditioner | None, rhs: Tensor
    ) -> Solved:
        """Solve A_t x_t = b_t and check the residual where there is a tolerance.

        Args:
            system: the matrices.
            factors: from :meth:`factorise`.
            rhs: one right-hand side per position.

        Returns:
            The solutions; residuals and steps from conjugate gradients only.

        Raises:
            SolveError: the tolerance was missed.
        """
        if self.method == "cg":
            factors = cast(Preconditioner | None, factors)
            rtol = 16 * torch.finfo(rhs.dtype).eps if self.rtol is None else self.rtol
            blind = traced(rhs) or (factors is not None and traced(factors.inverse))
            # What is traced has always been factorised.
            descend = iterative.traced_gradient if blind else iterative.conjugate_gradient
            found = descend(system, cast(Any, factors), rhs, rtol=rtol, max_steps=self.max_steps)
            # A tolerance that was asked for is held; the default yields to rounding.
            accepted = found.rounding.clamp(min=rtol) if self.rtol is None else rtol
            self.check(found.residual, accepted, rhs.shape[-2], found.steps)
            return found
        if self.method == "exact":
            solution = chunked.solve_exactly(system, cast(Factors, factors), rhs)
        elif self.method == "recursive":
            solution = recurrent.solve_recursively(system, rhs)
        else:
            solution = iterative.iterate_fixed(
                system, rhs, method=self.method, steps=self.max_steps
            )
        found = Solved.direct(solution)
        if self.rtol is not None:
            residual = chunked.relative_residual(system, solution, rhs)
            steps = self.max_steps if self.method in ("neumann", "chebyshev") else 0
            self.check(residual, self.rtol, rhs.shape[-2], torch.full_like(residual, steps))
        return found

    def check(
        self, residual: Tensor, accepted: Tensor | float, chunk_size: int, steps: Tensor
    ) -> None:
        """Raise or warn if a residual is larger than accepted, or not a number.

        Args:
            residual: of every chunk.
            accepted: what is good enough, of every chunk or all.
            chunk_size: positions of a chunk, for the message.
            steps: that every chunk took, for the message.

        Raises:
            SolveError: naming the worst place.
        """
        if self.on_failure == "ignore" or traced(residual):
            return
        missed = ~(residual <= accepted)  # true for a NaN
        if bool(missed.any()):
            at = place(torch.where(missed, residual, 0.0).nan_to_num(torch.inf), chunk_size)
            index = (at[0], at[1], at[2] // chunk_size)
            told = f"mesa(method={self.method!r}) left a relative residual of {residual[index]:.1e}"
            limit = accepted[index] if isinstance(accepted, Tensor) else accepted
            where = _describe(at, chunk_size)
            failure(self.on_failure)(
                f"{told} at {where}: must be {limit:.1e} or less; {int(steps[index])} steps were taken"
            )


class Answer(NamedTuple):
    """Solutions, how good they are, and what they read from their own chunk."""

    solved: Solved
    read: Float[Tensor, "*group position value"]
    """sum_{s <= t} D_ts beta_s (k_s . x_t) v_s, the sources being those of the chunk."""


def solve_and_read(
    system: System,
    solver: Solver,
    rhs: Float[Tensor, "*group position key"],
    values: Float[Tensor, "*group position value"],
) -> Answer:
    """Solve all systems of all chunks, and read out what the chunks themselves hold.

    Args:
        system: the matrices.
        solver: what to do with them.
        rhs: one right-hand side per position.
        values: one value per position.

    Returns:
        Solutions and readout, differentiable in the system, the right-hand sides and the values:
        through the steps for methods with a fixed number of them, implicitly for the others.

    Raises:
        SolveError: a factorisation or a tolerance was missed, and the solver is to raise; the same
            holds in the backward pass.

    Example:
        >>> one = torch.ones(1, 1, 1, 1, 1)
        >>> system = System(one, None, None, one, None, None, True)
        >>> solver = Solver("exact", "", True, None, 0, "raise")
        >>> round(solve_and_read(system, solver, one, 3 * one).read.item(), 4)
        1.5
    """
    if solver.method in ("neumann", "chebyshev"):
        solved = solver.solve(system, None, rhs)
        return Answer(solved, _read(system, solved.solution, values)[0])
    factors = solver.factorise(system, rhs.shape[-2])
    return _apply(system, solver, factors, rhs, values)


def _read(system: System, solution: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    scores = chunks.weigh_past(solution @ system.keys.mT, system.between)
    return scores @ (values if system.beta is None else values * system.beta), scores


def _apply(
    system: System,
    solver: Solver,
    factors: Factors | Preconditioner | None,
    rhs: Tensor,
    values: Tensor | None,
) -> Answer:
    # Where nothing will be differentiated, compilation hands the class below one argument too many.
    tensors, parts = (rhs, values, *system[:-1]), factors or ()
    if torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    ):
        *solved, read, _ = _Solve.forward(*tensors, solver, *parts)
    else:
        *solved, read, _ = _Solve.apply(*tensors, solver, *parts)
    return Answer(Solved(*solved), read)


class _Solve(torch.autograd.Function):
    """x_t = A_t^{-1} b_t for all t of every chunk and its readout, differentiated implicitly.

    With the gradient dx, the readout's share included, and z_t = A_t^{-1} dx_t: db = z, and everything
    in A_t gets the gradient of -z_t^T A_t x_t with z and x held fixed. The backward pass is made of
    differentiable operations, itself among them, so second derivatives come for free.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rhs: Tensor,
        values: Tensor | None,
        keys: Tensor,
        beta: Tensor | None,
        start: Tensor | None,
        ridge: Tensor,
        between: Tensor | None,
        since_start: Tensor | None,
        solver: Solver,
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        system = System(keys, beta, start, ridge, between, since_start, solver.fades)
        solved = solver.solve(system, _regroup(solver, factors), rhs)
        if values is None:  # in the backward pass, where there is nothing to read
            return (*solved, rhs.new_empty(0), rhs.new_empty(0))
        return (*solved, *_read(system, solved.solution, values))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = (output[0], output[5], *inputs[1:8], *inputs[9:])
        ctx.present = tuple(x is not None for x in tensors)
        ctx.save_for_backward(*(x for x in tensors if x is not None))  # compilation drops a None
        ctx.solver = inputs[8]
        ctx.mark_non_differentiable(*output[1:4], output[5])
        # Zeros for the scores would cost as much as computing them.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        like = grads[4] if grads[0] is None else grads[0]
        if like is None:
            return (None,) * len(ctx.needs_input_grad)
        with full_precision(like):  # a compiled backward pass may be under autocast
            return _pull_back(ctx, grads[0], grads[4])


def _pull_back(
    ctx: Any, d_solution: Tensor | None, d_read: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients for the arguments of :class:`_Solve`, of which there is at least one incoming."""
    saved = iter(ctx.saved_tensors)
    unpacked: list[Any] = [next(saved) if x else None for x in ctx.present]
    solution, scores, values, keys, beta, start, ridge, between, since_start, *parts = unpacked
    system = System(keys, beta, start, ridge, between, since_start, ctx.solver.fades)
    factors = _regroup(ctx.solver, parts)
    d_scores = None
    if d_read is None:
        values = None
    else:
        d_scores = d_read @ values.mT
        weighed = chunks.weigh_past(d_scores, between)
        through = weighed @ (keys if beta is None else keys * beta)
        d_solution = through if d_solution is None else d_solution + through
    adjoint = _apply(system, ctx.solver, factors, cast(Tensor, d_solution), None).solved.solution
    # The saved scores have no derivative.
    if torch.is_grad_enabled() or scores.numel() == 0:
        scores = chunks.weigh_past(solution @ keys.mT, between)
    mixed = _Mixed(solution, adjoint, scores, values, d_read, d_scores)
    d_values, d_keys, d_beta, d_between = _pull_back_local(system, mixed)
    d_start, d_ridge, d_since_start = _pull_back_start(system, solution, adjoint)
    d_system = (d_keys, d_beta, d_start, d_ridge, d_between, d_since_start)
    return adjoint, d_values, *d_system, *[None] * (1 + len(parts))


def _regroup(solver: Solver, factors: Sequence[Any]) -> Factors | Preconditioner | None:
    """Undo the flattening that autograd asks for."""
    if not factors:
        return None
    return Factors(*factors) if solver.method == "exact" else Preconditioner(*factors)


class _Mixed(NamedTuple):
    """What a backward pass knows about a chunk: x, z, (k_s . x_t), v, and the readout's gradients."""

    solution: Tensor
    adjoint: Tensor
    scores: Tensor
    values: Tensor | None
    d_read: Tensor | None
    d_scores: Tensor | None


def _pull_back_local(system: System, known: _Mixed) -> tuple[Tensor | None, ...]:
    """Gradients for values, keys, beta and between; two attentions ahead, on joined features.

    With w_ts = D_ts (v_s . do_t - k_s . z_t) and a_s = sum_t w_ts x_t:
    dk_s = beta_s (a_s - sum_t D_ts (k_s . x_t) z_t), dbeta_s = k_s . a_s,
    dv_s = beta_s sum_t D_ts (k_s . x_t) do_t, dD_ts = beta_s (k_s . x_t) (v_s . do_t - k_s . z_t).
    """
    keys, beta, between = system.keys, system.beta, system.between
    solution, adjoint, scores, values, d_read, d_scores = known
    d_between = d_values = None
    d_scores = _subtract_product(d_scores, adjoint, keys.mT)
    if between is not None:
        d_between = chunks.weigh_past((solution @ keys.mT) * d_scores, None)
        d_between = d_between if beta is None else d_between * beta.mT
    toward = chunks.weigh_past(d_scores, between).mT @ solution
    if values is None:
        away = scores.mT @ adjoint
    else:
        sizes = (values.shape[-1], keys.shape[-1])
        d_values, away = (scores.mT @ torch.cat([cast(Tensor, d_read), adjoint], -1)).split(
            sizes, -1
        )
    d_beta, d_keys = None, toward - away
    if beta is not None:
        d_beta, d_keys = (keys * toward).sum(-1, keepdim=True), d_keys * beta
        d_values = None if d_values is None else d_values * beta
    return d_values, d_keys, d_beta, d_between


def _subtract_product(x: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Subtract left @ right from x, in the memory of x where nothing remembers it."""
    if x is None:
        return -(left @ right)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x - left @ right
    flat = (t.flatten(0, -3) for t in (x, left, right))
    return torch.baddbmm(*flat, alpha=-1, out=x.flatten(0, -3)).view_as(x)


def _pull_back_start(
    system: System, solution: Tensor, adjoint: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of -sum_t z_t^T (f_t start + ridge_t) x_t for start, ridge and f."""
    start, ridge, since_start = system.start, system.ridge, system.since_start
    d_start = d_since_start = None
    product = adjoint * solution
    kept = solution if since_start is None else solution * since_start
    if start is not None:
        d_start = -(adjoint.mT @ kept)
    if since_start is not None:
        past = solution * ridge if system.fades else torch.zeros_like(solution)
        past = past if start is None else past + solution @ start
        d_since_start = -(adjoint * past).sum(-1, keepdim=True)
        product = product * since_start if system.fades else product
    return d_start, -product.sum_to_size(ridge.shape), d_since_start


def place(badness: Tensor, chunk_size: int) -> tuple[int, int, int]:
    """Find the largest entry.

    Args:
        badness: one number for every [batch, head, chunk].
        chunk_size: positions of a chunk.

    Returns:
        Batch item, head and first position of the chunk.

    Example:
        >>> place(torch.tensor([[[0, 0, 1]]]), 16)
        (0, 0, 32)
    """
    flat = int(badness.flatten().argmax())
    rest, chunk = divmod(flat, badness.shape[2])
    return rest // badness.shape[1], rest % badness.shape[1], chunk * chunk_size


def _describe(where: tuple[int, int, int], chunk_size: int) -> str:
    batch, head, position = where
    return f"batch {batch}, head {head}, positions {position} to {position + chunk_size - 1}"


def failure(on_failure: OnFailure, error: type[Exception] = SolveError) -> Callable[[str], None]:
    """Choose what to do with a message.

    Args:
        on_failure: "raise" or "warn".
        error: what to raise.

    Returns:
        A function that raises the message or warns of it.

    Example:
        >>> failure("raise")("no")
        Traceback (most recent call last):
        ...
        mesaopt.errors.SolveError: no
    """

    def act(message: str) -> None:
        if on_failure == "raise":
            raise error(message)
        warnings.warn(message, SolveWarning, stacklevel=4)

    return act
