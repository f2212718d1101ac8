"""Base of the solvers of the mesa operator's systems: small objects with the same few methods."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.ops.mesa.factors import Factors
from mesaopt.ops.mesa.preconditioner import Preconditioner
from mesaopt.ops.mesa.system import System
from mesaopt.ops.packing import Layout
from mesaopt.ops.validation import check_number, traced

Prepared = Factors | Preconditioner | None

# Log of the least decay of a chunk whose ridge decays too: its solutions are divided by the decay, which
# multiplies rounding errors.
_MIN_CHUNK_LOG_DECAY = -2.0
TRACED_CHUNK_SIZE = 16  # of gated chunks where compilation or torch.func hides the gates


class Solved(NamedTuple):
    """Solutions and how good they are."""

    solution: Float[Tensor, "*group position key"]
    residual: Float[Tensor, "*group"]
    """Worst relative residual |b - A x| / |b| of a chunk's positions; empty if not measured."""
    accepted: Float[Tensor, "*group"]
    """Largest residual that is good enough; empty if not measured."""
    steps: Int[Tensor, "*group"]
    """Iterations of every chunk; 0 for direct solvers."""

    @property
    def is_measured(self) -> bool:
        """Whether the residuals were measured."""
        return self.residual.numel() > 0


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to solve the systems A_t x_t = b_t of all positions; the same forward and backward.

    Args:
        rtol: relative residual that every position must reach, > 0. None means that residuals are not
            measured.

    Raises:
        ValueError: a number is out of range.
    """

    rtol: float | None = None

    implicit: ClassVar[bool] = True
    """Whether gradients are those of the solution, by implicit differentiation. Otherwise they flow
    through the solver's steps."""

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol)

    def choose(self, *, static_ridge_forgets: bool) -> tuple["Solver", str]:
        """Return the solver to run on a call, and the reason for it.

        Args:
            static_ridge_forgets: whether the state is forgotten and the ridge is not.

        Returns:
            The solver itself, which was asked for.
        """
        return self, "asked for"

    def chunk_size(
        self,
        layout: Layout,
        log_decay: Float[Tensor, "batch time head"] | None,
        *,
        ridge_decays: bool,
    ) -> int:
        """Return how long chunks may be.

        Args:
            layout: chunks of the largest size allowed.
            log_decay: the forget gates, None if there are none.
            ridge_decays: whether the ridge decays with the state; then no chunk may forget much.

        Returns:
            Positions of a chunk, no more than those of the layout.
        """
        size = layout.chunk_size
        if log_decay is None or not ridge_decays:
            return size
        if traced(log_decay):
            return min(size, TRACED_CHUNK_SIZE)
        gates = log_decay.detach().unsqueeze(-1)
        while size > 1 and layout.resized(size).cut(gates).sum(-2).amin() < _MIN_CHUNK_LOG_DECAY:
            size = (size + 1) // 2
        return size

    def prepare(self, system: System) -> Prepared:
        """Compute factors or a preconditioner, which forward and backward pass share.

        Args:
            system: the matrices.

        Returns:
            The argument `prepared` of :meth:`solve`.
        """
        return None

    @abstractmethod
    def solve(
        self, system: System, prepared: Prepared, rhs: Float[Tensor, "*group position key"]
    ) -> Solved:
        """Solve A_t x_t = b_t for all positions.

        Args:
            system: the matrices.
            prepared: from :meth:`prepare`.
            rhs: one right-hand side per position.

        Returns:
            The solutions, and their residuals where there is a tolerance.
        """

    def _measure(self, system: System, solution: Tensor, rhs: Tensor, steps: int = 0) -> Solved:
        """Measure the residuals if there is a tolerance."""
        counts = rhs.new_full(rhs.shape[:-2], steps, dtype=torch.int64)
        if self.rtol is None:
            return Solved(solution, rhs.new_empty(0), rhs.new_empty(0), counts)
        residual = system.relative_residual(solution, rhs)
        return Solved(solution, residual, torch.full_like(residual, self.rtol), counts)
