"""Neumann and Chebyshev: where their steps lead, and none at all."""

import pytest
from mesa_problems import CLOSE, MODES, compare, error, make

from mesaopt.ops import Chebyshev, Neumann, gated_linear_attention, linear_attention, mesa


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("solver", [Neumann(steps=1200), Chebyshev(steps=240)])
def test_fixed_iterations_converge_to_the_definition(solver, gate, mode):
    # The error shrinks by 1 - 1/condition, or the root of it, a step: below 1e-12 after these steps.
    compare(make(9, gate=gate, ridge=0.5), mode, tolerance=1e-10, solver=solver)


@pytest.mark.parametrize("solver", [Neumann(steps=0), Chebyshev(steps=0)])
def test_no_steps_give_linear_attention(solver):
    inputs = make(20, gate=None)
    inputs["beta"] = None
    found = mesa(**inputs, solver=solver, chunk_size=8).output
    wanted = linear_attention(*(inputs[n] for n in "qkv"), chunk_size=8).output
    assert error(found, wanted) <= CLOSE


@pytest.mark.parametrize("solver", [Neumann(steps=0), Chebyshev(steps=0)])
def test_no_steps_under_forgetting_give_gated_linear_attention(solver):
    inputs = make(20, gate=0.05)
    found = mesa(**inputs, solver=solver, chunk_size=8).output
    gates = {name: inputs[name] for name in ("beta", "log_decay")}
    wanted = gated_linear_attention(*(inputs[n] for n in "qkv"), **gates, chunk_size=8).output
    assert error(found, wanted) <= CLOSE
