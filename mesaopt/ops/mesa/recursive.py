"""The recursive solver: recursive least squares, one position after the other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mesaopt.ops.mesa.factors import invert_factor
from mesaopt.ops.mesa.solver import Prepared, Solved, Solver
from mesaopt.ops.mesa.system import System
from mesaopt.ops.validation import in_graph, traced


@dataclass(frozen=True, kw_only=True)
class Recursive(Solver):
    """Solve position by position, keeping the inverse R_t = A_t^{-1} up to date.

    R_t = (R - beta (R k)(R k)^T / (gamma + beta k^T R k)) / gamma with R = R_{t-1}, where the ridge decays
    or nothing is forgotten. A static ridge under forgetting changes all of the matrix at every step, and a
    gate near 0 leaves no digit of R, so there A_t is formed and factorised anew. Every chunk starts from
    a new factorisation, and all chunks go on side by side.

    Args:
        rtol: relative residual that every position must reach, > 0. None, the default, means that
            residuals are not measured.

    Raises:
        ValueError: rtol is not greater than 0.

    Source: Sherman and Morrison (1950); recursive least squares with a forgetting factor.

    Example:
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0, solver=Recursive()).output.flatten()
        tensor([0.5000, 0.6667, 0.7500])
    """

    def solve(self, system: System, prepared: Prepared, rhs: Tensor) -> Solved:
        """Run through the positions of all chunks."""
        # Chunks of several positions forget little. Where gates are hidden they may do otherwise.
        remembers = rhs.shape[-2] > 1 and not traced(rhs)
        updates = system.since_start is None or (system.ridge_decays and remembers)
        if in_graph():
            solution = _operation(*system, rhs, updates)
        else:
            solution = _solve_by_position(system, rhs, updates)
        return self._measure(system, solution, rhs)


@torch.no_grad()
def _solve_by_position(system: System, rhs: Tensor, updates: bool) -> Tensor:
    """Run through the positions, with updates of the inverse or a factorisation for each."""
    group, ridge = rhs.shape[:-2], torch.diag_embed(system.ridge.squeeze(-2))
    start = torch.zeros_like(ridge) if system.start is None else system.start
    matrix = (start + ridge if updates else start).expand(*group, -1, -1)
    gates = _gates(system, rhs)
    if updates:
        inverse, _ = invert_factor(matrix)
        matrix = inverse.mT @ inverse
    solutions = []
    for position, gate in enumerate(gates):
        key = system.keys[..., position, :].unsqueeze(-1)  # [*G,K,1]
        beta = 1.0 if system.beta is None else system.beta[..., position, None, :]
        if updates:
            image = matrix @ key
            gain = beta / (gate + beta * (key.mT @ image))
            matrix = (matrix - gain * image @ image.mT) / gate
            solutions.append(matrix @ rhs[..., position, :, None])
        else:
            matrix = gate * matrix + beta * key @ key.mT
            ridge = gate * ridge if system.ridge_decays else ridge
            inverse, _ = invert_factor(matrix + ridge)
            solutions.append(inverse.mT @ (inverse @ rhs[..., position, :, None]))
    return torch.stack(solutions, dim=-3).squeeze(-1)


def _gates(system: System, rhs: Tensor) -> list[Tensor | float]:
    """Return the forget gates of every position: the decays between neighbours."""
    positions = rhs.shape[-2]
    if system.since_start is None or system.between is None:
        return [1.0] * positions
    first = system.since_start[..., :1, :]
    later = system.between.diagonal(offset=-1, dim1=-2, dim2=-1).unsqueeze(-1)
    return list(torch.cat([first, later], dim=-2).unsqueeze(-1).unbind(-3))


# The same as one operation of a compiled graph, which would be another for every number of positions.


@torch.library.custom_op("mesaopt::recursive", mutates_args=())
def _operation(
    keys: Tensor,
    ridge: Tensor,
    beta: Tensor | None,
    start: Tensor | None,
    between: Tensor | None,
    since_start: Tensor | None,
    ridge_decays: bool,
    rhs: Tensor,
    updates: bool,
) -> Tensor:
    system = System(keys, ridge, beta, start, between, since_start, ridge_decays)
    return _solve_by_position(system, rhs, updates)


@_operation.register_fake
def _shape(*arguments: Any) -> Tensor:
    rhs = arguments[-2]
    return rhs.new_empty(rhs.shape)
