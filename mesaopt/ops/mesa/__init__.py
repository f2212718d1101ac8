"""The mesa operator and its solvers, one solver a file.

:mod:`operator` holds the public functions, :mod:`system` the linear systems of all positions,
:mod:`solver` the methods that every solver has, :mod:`backward` the implicit gradients.
"""

from mesaopt.ops.mesa.auto import Auto, SolverLike, SolverName, as_solver
from mesaopt.ops.mesa.conjugate_gradient import ConjugateGradient
from mesaopt.ops.mesa.exact import Exact
from mesaopt.ops.mesa.fixed_steps import Chebyshev, Neumann
from mesaopt.ops.mesa.operator import MesaOutput, SolveInfo, mesa, mesa_step
from mesaopt.ops.mesa.recursive import Recursive
from mesaopt.ops.mesa.solver import Solver
from mesaopt.ops.mesa.state import MesaState

__all__ = [
    "Auto",
    "Chebyshev",
    "ConjugateGradient",
    "Exact",
    "MesaOutput",
    "MesaState",
    "Neumann",
    "Recursive",
    "SolveInfo",
    "Solver",
    "SolverLike",
    "SolverName",
    "as_solver",
    "mesa",
    "mesa_step",
]
