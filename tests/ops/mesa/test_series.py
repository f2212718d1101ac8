"""The series of a chunk's factors: its bound, its corrections, and blocks of chunks."""

import pytest
import torch
from mesa_problems import make

from mesaopt.errors import SolveWarning
from mesaopt.ops import ConjugateGradient, mesa
from mesaopt.ops.mesa import conjugate_gradient
from mesaopt.ops.mesa.preconditioner import Series, precondition, terms_needed
from mesaopt.ops.mesa.system import System


def dense(system, rhs):
    return torch.linalg.solve(system.matrices(), rhs.unsqueeze(-1)).squeeze(-1)


def problem(forgetting, *, spread=1.0, dtype=torch.float64):
    """Make three chunks of 20 positions that lose exp(-forgetting) of their starts."""
    random = torch.Generator().manual_seed(0)
    keys, rhs, past = (
        torch.randn(3, size, 6, generator=random, dtype=torch.float64) for size in (20, 20, 40)
    )
    times = torch.arange(1, 21, dtype=torch.float64)[:, None]
    since_start = (-forgetting / 20 * times).exp().expand(3, 20, 1)
    between = (since_start / since_start.mT).tril()
    ridge = torch.logspace(-spread, spread, 6, dtype=torch.float64).expand(3, 1, 6)
    beta = torch.rand(3, 20, 1, generator=random, dtype=torch.float64)
    start = past.mT @ past
    given = (keys, ridge, beta, start, between, since_start)
    return System(*(x.to(dtype) for x in given)), rhs.to(dtype)


@pytest.mark.parametrize("forgetting", [1e-9, 0.1, 0.44, 0.85])
def test_the_terms_that_are_needed_reach_the_tolerance(forgetting):
    system, rhs = problem(forgetting, spread=0.0)
    made = precondition(system)
    for rtol in (1e-2, 1e-4, 1e-9, 1e-13):
        (terms,) = terms_needed(system, made, rtol).unique().tolist()
        series = Series.of(system, made)
        # The bound is twice the tolerance; terms for the chunk alone are no more.
        assert system.relative_residual(series.apply(rhs, terms), rhs).max() <= 2 * rtol
        assert 1 <= series.terms_needed(rtol) <= terms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ridges_of_very_different_channels(dtype):
    system, rhs = problem(0.6, spread=3.0, dtype=dtype)
    solver = ConjugateGradient()
    solved = solver.solve(system, solver.prepare(system), rhs)
    assert (solved.residual <= solved.accepted).all()
    wanted = dense(System(*(x.double() for x in system[:-1])), rhs.double())
    error = (solved.solution - wanted).norm() / wanted.norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-12)


def test_blocks_change_nothing_but_rounding(monkeypatch):
    gates = torch.tensor([0.1, 1.0, 12.0])  # slow, middle and forgetful heads
    inputs = make(200, gate=0.03, batch=2, heads=3, key=8, value=8)
    inputs["log_decay"] = inputs["log_decay"].detach() * gates
    whole = mesa(**inputs, solver="cg")
    monkeypatch.setattr(conjugate_gradient, "_BLOCK_NUMBERS", 700)
    blocks = mesa(**inputs, solver="cg")
    torch.testing.assert_close(blocks.output, whole.output, rtol=1e-11, atol=1e-13)
    assert torch.equal(blocks.info.steps, whole.info.steps)


@pytest.mark.parametrize("max_steps", [0, 1])
def test_steps_that_do_not_suffice_are_reported(max_steps):
    inputs = make(60, gate=0.02)
    with pytest.warns(SolveWarning, match="ConjugateGradient left a relative residual"):
        result = mesa(**inputs, solver=ConjugateGradient(max_steps=max_steps), on_failure="warn")
    assert (result.info.steps == max_steps).all()
