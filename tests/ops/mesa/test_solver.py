"""Solvers: their information about a call, tolerances, names and ranges."""

import dataclasses
import math
import weakref

import pytest
import torch
from mesa_problems import CLOSE, make

from mesaopt.errors import SolveError, SolveWarning
from mesaopt.ops import Auto, Chebyshev, ConjugateGradient, Exact, Neumann, Recursive, mesa


def test_info_says_what_ran_and_why():
    inputs = make(10)
    info = mesa(**inputs).info
    assert (info.solver, "static ridge" in info.reason) == (ConjugateGradient(), True)
    assert info.steps.shape == info.residual.shape == (2, 2, 1)
    info = mesa(**inputs, ridge_mode="decayed", chunk_size=4).info
    assert (info.solver, info.steps.max()) == (Exact(), 0)
    assert info.worst_residual <= CLOSE
    batch, head, position = info.worst_at
    assert info.residual[batch, head, position // info.chunk_size] == info.worst_residual


@pytest.mark.parametrize("length", [1, 2, 70])
def test_exact_refuses_a_static_ridge_under_forgetting_at_any_length(length):
    inputs = make(length)
    with pytest.raises(ValueError, match="must be ConjugateGradient"):
        mesa(**inputs, solver="exact")
    one = mesa(**inputs, solver="exact", chunk_size=1).output
    auto = mesa(**inputs, chunk_size=1)
    assert auto.info.solver == Exact()
    wanted = mesa(**inputs, solver=ConjugateGradient(rtol=1e-12)).output
    for output in (one, auto.output):
        torch.testing.assert_close(output, wanted, rtol=1e-9, atol=1e-9)


class Kept:
    """A tensor that a graph holds."""

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("rtol", [None, 1e3])
@pytest.mark.parametrize("solver", [Exact, ConjugateGradient, Recursive, Neumann, Chebyshev])
def test_what_is_known_of_a_solve_does_not_keep_the_graph(solver, rtol):
    kept = []

    def pack(x):
        kept.append(weakref.ref(box := Kept(x.detach())))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.x):
        result = mesa(**make(20), ridge_mode="decayed", solver=solver(rtol=rtol))
    info = result.info
    del result
    assert kept
    assert not any(box() for box in kept)
    assert info.worst_residual >= 0


@pytest.mark.parametrize("solver", ["exact", "cg", "recursive", "neumann", "chebyshev"])
def test_autocast_does_not_change_the_residual(solver):
    info = mesa(**make(20, dtype=torch.float32), ridge_mode="decayed", solver=solver).info
    again = dataclasses.replace(info)  # without what was measured
    with torch.autocast("cpu"):
        residual = again.residual
    assert residual.equal(info.residual)


@pytest.mark.parametrize(
    "solver",
    [
        Auto(rtol=1e-9, max_steps=1),
        ConjugateGradient(rtol=1e-9, max_steps=1),
        Neumann(rtol=1e-9, steps=1),
        Chebyshev(rtol=1e-9, steps=1),
    ],
    ids=str,
)
def test_a_missed_tolerance_is_raised_warned_of_or_ignored(solver):
    inputs = make(20)
    with pytest.raises(SolveError, match=r"relative residual of .* at batch .* must be 1.0e-09"):
        mesa(**inputs, solver=solver)
    with pytest.warns(SolveWarning, match="relative residual"):
        mesa(**inputs, solver=solver, on_failure="warn")
    info = mesa(**inputs, solver=solver, on_failure="ignore").info
    assert info.worst_residual > 1e-9
    assert (info.steps == 1).all()


@pytest.mark.parametrize("solver", [Exact(rtol=1e-30), Recursive(rtol=1e-30)], ids=str)
def test_direct_solvers_measure_where_there_is_a_tolerance(solver):
    inputs = make(20)
    with pytest.raises(SolveError, match="must be 1.0e-30 or less; 0 steps were taken"):
        mesa(**inputs, ridge_mode="decayed", solver=solver)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("exact", Exact()),
        ("cg", ConjugateGradient()),
        ("recursive", Recursive()),
        ("neumann", Neumann(steps=30)),
        ("chebyshev", Chebyshev(steps=30)),
    ],
)
def test_names_stand_for_solvers_with_default_settings(name, solver):
    inputs = make(9)
    named, given = (mesa(**inputs, ridge_mode="decayed", solver=x) for x in (name, solver))
    assert named.info.solver == given.info.solver == solver
    assert named.output.equal(given.output)


@pytest.mark.parametrize("rtol", [0.0, -1, math.nan, math.inf, True, "1"])
@pytest.mark.parametrize("solver", [Auto, Exact, ConjugateGradient, Recursive, Neumann, Chebyshev])
def test_a_tolerance_out_of_range_is_named(solver, rtol):
    with pytest.raises(ValueError, match=f"^rtol={rtol!r}: must be a finite number greater than 0"):
        solver(rtol=rtol)


@pytest.mark.parametrize("count", [-1, 2.0, 2.5, True, "2"])
@pytest.mark.parametrize(
    ("solver", "name"),
    [
        (Auto, "max_steps"),
        (ConjugateGradient, "max_steps"),
        (Neumann, "steps"),
        (Chebyshev, "steps"),
    ],
)
def test_a_number_of_steps_out_of_range_is_named(solver, name, count):
    with pytest.raises(ValueError, match=f"^{name}={count!r}: must be (a whole number|between 0)"):
        solver(**{name: count})


@pytest.mark.parametrize("solver", [Neumann, Chebyshev])
def test_fixed_steps_must_be_given(solver):
    with pytest.raises(ValueError, match="^steps=None: must be a whole number"):
        solver(steps=None)
