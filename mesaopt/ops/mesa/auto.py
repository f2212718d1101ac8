"""The choice of a solver: by the call, or by name."""

from dataclasses import dataclass
from typing import Literal

from mesaopt.ops.mesa.conjugate_gradient import ConjugateGradient
from mesaopt.ops.mesa.exact import Exact
from mesaopt.ops.mesa.fixed_steps import Chebyshev, Neumann
from mesaopt.ops.mesa.recursive import Recursive
from mesaopt.ops.mesa.solver import Solver
from mesaopt.ops.validation import check_choice, check_count, check_number


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Choose :class:`Exact` where it is possible, and otherwise :class:`ConjugateGradient`.

    Args:
        rtol: relative residual that every position must reach, > 0; see the solver that is chosen.
        max_steps: most steps of :class:`ConjugateGradient`, 0 or more.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> import torch
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0, solver=Auto(rtol=1e-5)).info.solver
        Exact(rtol=1e-05)
    """

    rtol: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol)
        check_count("max_steps", self.max_steps, least=0)

    def choose(self, *, static_ridge_forgets: bool) -> tuple[Solver, str]:
        """Return the solver to run on a call, and the reason for it.

        Args:
            static_ridge_forgets: whether the state is forgotten and the ridge is not, in chunks that may
                have several positions.

        Returns:
            The solver, with the settings given here.
        """
        if static_ridge_forgets:
            reason = "a static ridge under forgetting has no chunk factorisation"
            return ConjugateGradient(rtol=self.rtol, max_steps=self.max_steps), reason
        return Exact(rtol=self.rtol), "nothing is forgotten, or the ridge with the state"


SolverName = Literal["auto", "exact", "cg", "recursive", "neumann", "chebyshev"]
"""Names of the solvers with their default settings."""
SolverLike = Solver | Auto | SolverName
"""A solver, or the name of one."""
_BY_NAME = {
    "auto": Auto,
    "exact": Exact,
    "cg": ConjugateGradient,
    "recursive": Recursive,
    "neumann": Neumann,
    "chebyshev": Chebyshev,
}


def as_solver(solver: SolverLike) -> Solver | Auto:
    """Return a solver, made with its default settings if a name was given.

    Args:
        solver: a solver or the name of one.

    Returns:
        The solver.

    Raises:
        ValueError: it is neither a solver nor the name of one.

    Example:
        >>> as_solver("cg")
        ConjugateGradient(rtol=None, max_steps=None)
        >>> as_solver("exakt")
        Traceback (most recent call last):
        ...
        ValueError: solver='exakt': did you mean 'exact'?
    """
    if isinstance(solver, Solver | Auto):
        return solver
    check_choice("solver", solver, SolverName)
    return _BY_NAME[solver]()
