"""Solvers of a fixed number of steps, whose gradients flow through the steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesaopt.config import require_count
from mesaopt.ops.mesa.solver import Prepared, Solved, Solver, least_ridge, squared_keys
from mesaopt.ops.mesa.system import System, least_share

# Rounding errors, as a share of the solution, beyond which a call runs in float64.
_MAX_ROUNDING_GROWTH = 2.0**-15


@dataclass(frozen=True, kw_only=True)
class _FixedSteps(Solver):
    steps: int = 30

    implicit: ClassVar[bool] = False
    growth_order: ClassVar[int]
    """Rounding errors grow as this power of the steps, until the steps have converged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("steps", self.steps, smallest=0)

    def doubts(self, system: System, prepared: Prepared) -> Bool[Tensor, "*group"]:
        """Return where rounding would change the answer of the steps, or bounds would vanish."""
        least, kind = least_ridge(system), system.keys.dtype
        growth = (squared_keys(system) / least).clamp(max=float(self.steps**self.growth_order))
        smallest = least_share(kind) * system.scale().square()[..., 0, 0].clamp(min=1.0)
        return ~(growth * torch.finfo(kind).eps <= _MAX_ROUNDING_GROWTH) | (least < smallest)


@dataclass(frozen=True, kw_only=True)
class Neumann(_FixedSteps):
    """Take steps x <- x + (b - A x) / bound from x = b: a truncated Neumann series where the bound is 1.

    The bound is that of the largest eigenvalue, from the Frobenius norm. The answer is that of the steps,
    not the solution: along an eigenvector of eigenvalue a they leave (1 - a / bound)^steps of the first
    residual, and `info.residual` measures it. Calls whose steps float32 would spoil run in float64. That
    leaves out the start: while a sequence has fewer keys than channels, b remains where there is no key,
    and costs the output about a rounding error times the summed squares of the keys.

    Args:
        steps: 0 or more; with none, the solution is the right-hand side and mesa is linear attention.
        rtol: relative residual that every position must reach, > 0. None, the default, means that
            residuals are not measured.

    Raises:
        ValueError: a number is out of range.

    Source: von Oswald et al. (2023), truncated Neumann series.

    Example:
        >>> import torch
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0, solver=Neumann(steps=0)).output.flatten()
        tensor([1., 2., 3.])
    """

    growth_order: ClassVar[int] = 1

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Take the steps."""
        bound, solution = _bound(system), rhs
        for _ in range(self.steps):
            solution = solution + (rhs - system.multiply(solution)) / bound
        return self._measure(system, solution, rhs, self.steps)


@dataclass(frozen=True, kw_only=True)
class Chebyshev(_FixedSteps):
    """Take steps of the Chebyshev iteration from x = b, between bounds of the eigenvalues.

    The bounds are the least ridge and, from the Frobenius norm, one of the largest eigenvalue. The answer
    is that of the steps, not the solution: they leave at most 2 exp(-2 steps (least / bound)^(1/2)) of
    the first residual, and `info.residual` measures it. Calls whose steps float32 would spoil run in
    float64.

    Args:
        steps: 0 or more; with none, the solution is the right-hand side and mesa is linear attention.
        rtol: relative residual that every position must reach, > 0. None, the default, means that
            residuals are not measured.

    Raises:
        ValueError: a number is out of range.

    Source: Saad, "Iterative Methods for Sparse Linear Systems", algorithm 12.1.

    Example:
        >>> import torch
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0, solver=Chebyshev(steps=20)).output.flatten()
        tensor([0.5000, 0.6667, 0.7500])
    """

    growth_order: ClassVar[int] = 2

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Take the steps, with all numbers but the bound in units of the bound."""
        bound, solution, steps = _bound(system), rhs, self.steps
        least = system.ridge.amin(-1, keepdim=True)
        if system.ridge_decays and system.since_start is not None:
            least = least * system.since_start
        share = least / bound  # at most 1/2
        middle, radius = (1 + share) / 2, (1 - share) / 2
        momentum = radius / middle
        residual = (rhs - system.multiply(solution)) / bound if steps else rhs
        direction = residual / middle
        for step in range(steps):
            solution = solution + direction
            if step + 1 < steps:
                residual = residual - system.multiply(direction) / bound
                following = 1 / (2 * middle / radius - momentum)
                direction = following * momentum * direction + 2 * following / radius * residual
                momentum = following
        return self._measure(system, solution, rhs, steps)


def _bound(system: System) -> Float[Tensor, "*group position 1"]:
    """Bound the largest eigenvalues; where next to nothing is left of a matrix, derivatives stay finite."""
    return system.frobenius_norm().clamp(min=least_share(system.keys.dtype))
