"""Neumann and Chebyshev: the steps of their definition, where these lead, and none at all."""

import pytest
import torch
from mesa_problems import CLOSE, MODES, compare, define_steps, error, gradients, make

from mesaopt.ops import Chebyshev, Neumann, gated_linear_attention, linear_attention, mesa

DEEP_MODES = [*MODES, (50.0, "static"), (1.0, "decayed")]


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("solver", [Neumann(steps=1200), Chebyshev(steps=240)])
def test_fixed_iterations_converge_to_the_definition(solver, gate, mode):
    # The error shrinks by 1 - 1/condition, or the root of it, a step: below 1e-12 after these steps.
    compare(make(9, gate=gate, ridge=0.5), mode, tolerance=1e-10, solver=solver)


def worst(found, wanted):
    """Largest error of a position, relative to the median of the right norms."""
    return (found - wanted).norm(dim=-1).max() / wanted.norm(dim=-1).median()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [1e0, 1e3, 1e6, 1e10])
@pytest.mark.parametrize(("gate", "mode"), DEEP_MODES)
@pytest.mark.parametrize(
    "solver", [Neumann(steps=40), Chebyshev(steps=15), Chebyshev(steps=60)], ids=str
)
def test_the_steps_are_those_of_the_definition(solver, gate, mode, condition, dtype):
    inputs = make(24, gate=gate, batch=1, heads=1, ridge=24 / condition, dtype=dtype)
    found = mesa(**inputs, ridge_mode=mode, solver=solver, chunk_size=10).output
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items() if x is not None}
    wanted, _ = define_steps(**exact, ridge_mode=mode, solver=solver)
    # Rounding grows with the steps of Neumann and the squared steps of Chebyshev, in float32 up to 2^-15.
    # An output is smaller than the solution, as much again, where the key is nearly orthogonal to it.
    allowed = 1e-3 if dtype == torch.float32 else 1e-8
    assert worst(found.double(), wanted) <= allowed
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9)).double()
    slopes = gradients(found, inputs, upstream.to(dtype))
    for name, mine, right in zip(exact, slopes, gradients(wanted, exact, upstream), strict=True):
        assert error(mine, right) <= allowed, name


@pytest.mark.parametrize("scale", [1e-15, 1e-12, 1e6, 1e12])
@pytest.mark.parametrize("solver", [Neumann(steps=10), Chebyshev(steps=10)], ids=str)
def test_steps_are_free_of_the_scale_of_keys(solver, scale):
    inputs = make(20, dtype=torch.float32)
    scaled = {**inputs, "k": inputs["k"] * scale, "ridge": inputs["ridge"] * scale**2}
    found = mesa(**scaled, solver=solver).output
    exact = {n: x.detach().double() for n, x in scaled.items()}
    wanted, _ = define_steps(**exact, ridge_mode="static", solver=solver)
    assert error(found, wanted) <= 1e-4


def test_a_long_chebyshev_iteration_on_little_ridge_runs_in_double_precision():
    inputs = make(40, ridge=1e-4, dtype=torch.float32)
    assert "in float64" in mesa(**inputs, solver=Chebyshev()).info.reason
    assert "in float64" not in mesa(**inputs, solver=Chebyshev(steps=5)).info.reason
    assert "in float64" not in mesa(**make(40, dtype=torch.float32), solver="chebyshev").info.reason


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
