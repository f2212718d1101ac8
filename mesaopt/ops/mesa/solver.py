"""Base of the solvers of the mesa operator's systems: small objects with the same few methods."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.ops.mesa.factors import Factors
from mesaopt.ops.mesa.preconditioner import Preconditioner
from mesaopt.ops.mesa.system import System, power_of_two
from mesaopt.ops.packing import Layout
from mesaopt.ops.validation import check_number, traced

Prepared = Factors | Preconditioner | None

# Log of the least decay of a chunk whose ridge decays too: its solutions are divided by the decay, which
# multiplies rounding errors.
_MIN_CHUNK_LOG_DECAY = -2.0
# Squared keys over the ridge, in units of the inverse rounding error, up to which iterations and updates
# have no more than a few times the errors of a dense solve.
_MAX_TRUSTED_RATIO = 2.0**-10
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
            static_ridge_forgets: whether the state is forgotten and the ridge is not, in chunks that may
                have several positions.

        Returns:
            The solver itself, which was asked for.

        Raises:
            ValueError: the solver cannot solve such systems.
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
            Most positions of a chunk, no more than in the layout.
        """
        if log_decay is None or not ridge_decays:
            return layout.limit
        if traced(log_decay):
            return min(layout.limit, TRACED_CHUNK_SIZE)
        size = layout.chunk_size
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

    def doubts(self, system: System, prepared: Prepared) -> Bool[Tensor, "*group"]:
        """Return where rounding may spoil the solutions.

        Args:
            system: the matrices.
            prepared: from :meth:`prepare`.

        Returns:
            Whether the keys of a chunk add up to many more than the ridge.
        """
        total, least = squared_keys(system), least_ridge(system)
        info = torch.finfo(total.dtype)
        return ~(total * info.eps <= _MAX_TRUSTED_RATIO * least) | (least < info.tiny)

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


# Residual above which not even a sum that rounding explains is accepted.
_MAX_ROUNDING = 1e-3


def least_ridge(system: System) -> Float[Tensor, "*group"]:
    """Return the least ridge of any channel and position of every chunk.

    Args:
        system: the matrices.

    Returns:
        One number per chunk.

    Example:
        >>> one = torch.ones(2, 3, 1)
        >>> least_ridge(System(one, one[:, :1])).tolist()
        [1.0, 1.0]
    """
    least = system.ridge.detach().amin((-2, -1))
    if not system.ridge_decays or system.since_start is None:
        return least
    return least * system.since_start.detach()[..., -1, 0]


@torch.no_grad()
def squared_keys(system: System) -> Float[Tensor, "*group"]:
    """Add up the squared keys of every chunk and of what came before, each with its strength.

    Args:
        system: the matrices.

    Returns:
        A bound of the largest eigenvalue without the ridge, one number per chunk.

    Example:
        >>> one = torch.ones(2, 3, 1)
        >>> squared_keys(System(one, one[:, :1])).tolist()
        [3.0, 3.0]
    """
    squares = system.keys.square()
    total = (squares if system.beta is None else squares * system.beta).sum((-2, -1))
    if system.start is None:
        return total
    return total + system.start.diagonal(dim1=-2, dim2=-1).sum(-1)


def rounding_level(
    norm: Float[Tensor, "*group position 1"],
    solution: Float[Tensor, "*group position key"],
    scale: Float[Tensor, "*group position 1"] | float = 1.0,
) -> Float[Tensor, "*group"]:
    """Return the relative residual that rounding alone explains at the worst position of every chunk.

    Args:
        norm: bounds of the matrices, from :meth:`System.frobenius_norm`.
        solution: one solution per position.
        scale: norms of the right-hand sides.

    Returns:
        Sixteen rounding errors of a product of the matrix and the solution.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> rounding_level(2 * one, one / 2).item() < 1e-5
        True
    """
    product = norm * solution.norm(dim=-1, keepdim=True) / scale
    return 16 * torch.finfo(solution.dtype).eps * (1 + product.amax((-2, -1)))


@torch.no_grad()
def measure_rounding(
    system: System, solved: Solved, rhs: Float[Tensor, "*group position key"]
) -> Solved:
    """Measure residuals, and accept those that rounding explains, up to a thousandth.

    Args:
        system: the matrices.
        solved: solutions whose residuals were not measured.
        rhs: one right-hand side per position.

    Returns:
        The same solutions.
    """
    residual = system.relative_residual(solved.solution, rhs)
    unit = power_of_two(rhs)
    scale = (rhs / unit).norm(dim=-1, keepdim=True)
    scale = torch.where(scale == 0, 1.0, scale)
    accepted = rounding_level(system.frobenius_norm(), solved.solution / unit, scale)
    return solved._replace(
        residual=residual, accepted=accepted.nan_to_num(_MAX_ROUNDING).clamp(max=_MAX_ROUNDING)
    )
