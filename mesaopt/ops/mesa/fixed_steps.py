"""Solvers of a fixed number of steps, whose gradients flow through the steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from mesaopt.ops.mesa.solver import Prepared, Solved, Solver, least_ridge
from mesaopt.ops.mesa.system import System
from mesaopt.ops.validation import check_number


@dataclass(frozen=True, kw_only=True)
class _FixedSteps(Solver):
    steps: int = 30

    implicit: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("steps", self.steps, least=0)

    def doubts(self, system: System, prepared: Prepared) -> Bool[Tensor, "*group"]:
        """Return where a ridge that decays is so small that its square, in the bounds, vanishes.

        Rounding is no reason for doubt: what a few steps leave out is more.
        """
        least = least_ridge(system)
        return least.square() < torch.finfo(least.dtype).tiny


@dataclass(frozen=True, kw_only=True)
class Neumann(_FixedSteps):
    """Take steps x <- x + (b - A x) / bound from x = b: a truncated Neumann series where the bound is 1.

    The bound is that of the largest eigenvalue, from the Frobenius norm.

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

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Take the steps."""
        bound, solution = system.frobenius_norm(), rhs
        for _ in range(self.steps):
            solution = solution + (rhs - system.multiply(solution)) / bound
        return self._measure(system, solution, rhs, self.steps)


@dataclass(frozen=True, kw_only=True)
class Chebyshev(_FixedSteps):
    """Take steps of the Chebyshev iteration from x = b, between bounds of the eigenvalues.

    The bounds are the least ridge and, from the Frobenius norm, one of the largest eigenvalue.

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

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Take the steps."""
        bound, solution, steps = system.frobenius_norm(), rhs, self.steps
        least = system.ridge.amin(-1, keepdim=True)
        if system.ridge_decays and system.since_start is not None:
            least = least * system.since_start
        middle, radius = (bound + least) / 2, (bound - least) / 2
        momentum = radius / middle
        residual = rhs - system.multiply(solution) if steps else rhs
        direction = residual / middle
        for step in range(steps):
            solution = solution + direction
            if step + 1 < steps:
                residual = residual - system.multiply(direction)
                following = 1 / (2 * middle / radius - momentum)
                direction = following * momentum * direction + 2 * following / radius * residual
                momentum = following
        return self._measure(system, solution, rhs, steps)
