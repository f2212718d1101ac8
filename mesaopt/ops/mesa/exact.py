"""The exact solver: one factorisation per chunk, no iterations."""

import math
from dataclasses import dataclass
from typing import cast

from jaxtyping import Bool
from torch import Tensor

from mesaopt.ops.mesa.factors import Factors, apply_factors, factorise
from mesaopt.ops.mesa.solver import Prepared, Solved, Solver
from mesaopt.ops.mesa.system import System, flatten, select
from mesaopt.ops.validation import readable


@dataclass(frozen=True, kw_only=True)
class Exact(Solver):
    """Solve directly: one Cholesky factorisation per chunk serves all its positions.

    (H_t + ridge_t)^{-1} is a low-rank update of the chunk's first matrix where nothing is forgotten or
    the ridge is forgotten with the state (`ridge_mode="decayed"`). A static ridge under
    forgetting is for chunks of one position alone.

    Args:
        rtol: relative residual that every position must reach, > 0. None, the default, means that
            residuals are not measured.

    Raises:
        ValueError: rtol is not greater than 0.

    Source: the Woodbury identity; the factorisation of a whole chunk is ours.

    Example:
        >>> import torch
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0, solver=Exact()).output.flatten()
        tensor([0.5000, 0.6667, 0.7500])
    """

    def choose(self, *, static_ridge_forgets: bool) -> tuple[Solver, str]:
        """See :meth:`Solver.choose`; a static ridge under forgetting is refused."""
        if static_ridge_forgets:
            raise ValueError(
                "solver=Exact() with log_decay and ridge_mode='static': must be ConjugateGradient(), "
                "Recursive(), Neumann() or Chebyshev(), or ridge_mode='decayed'"
            )
        return super().choose(static_ridge_forgets=static_ridge_forgets)

    def prepare(self, system: System) -> Factors:
        """Factorise every chunk."""
        return factorise(system)

    def doubts(self, system: System, prepared: Prepared) -> Bool[Tensor, "*group"]:
        """Return where a factorisation failed, or amplifies rounding too much."""
        return cast(Factors, prepared).doubtful

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Apply the factors, and refine the solution where rounding shows.

        What rounding spoils is solved again in float64; where nobody can look, it becomes NaN.
        """
        factors = cast(Factors, prepared)
        solution = _solve_and_refine(system, factors, rhs)
        if not readable(factors.rounding):
            solution = solution.masked_fill(factors.hopeless[..., None], math.nan)
        return self._measure(system, solution, rhs)


def _solve_and_refine(system: System, factors: Factors, rhs: Tensor) -> Tensor:
    solution = _solve_once(system, factors, rhs)
    if factors.correction is None:  # the very matrix was factorised
        return solution
    if not readable(factors.needs_refinement):
        return solution + _solve_once(system, factors, rhs - system.multiply(solution))
    if not factors.needs_refinement.any():
        return solution
    chosen, group = factors.needs_refinement.flatten().nonzero().squeeze(-1), rhs.shape[:-2]
    part = select(flatten(system, group), chosen)
    part_factors = select(flatten(factors, group), chosen)
    flat = solution.flatten(0, -3)  # [G,C,K]
    remainder = rhs.flatten(0, -3)[chosen] - part.multiply(flat[chosen])
    refined = flat[chosen] + _solve_once(part, part_factors, remainder)
    return flat.index_copy(0, chosen, refined).view_as(solution)


def _solve_once(system: System, factors: Factors, rhs: Tensor) -> Tensor:
    solution = apply_factors(factors, rhs)
    if system.since_start is None or factors.correction is None:
        return solution
    return solution / system.since_start
