"""Implicit gradients: first and second derivatives, failures and transforms."""

import pytest
import torch
from mesa_problems import CLOSE, MODES, NAMES, error, make, make_state

from mesaopt.errors import SolveError
from mesaopt.ops import Chebyshev, ConjugateGradient, MesaState, Neumann, mesa


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize(
    "solver", ["auto", "cg", "recursive", Neumann(steps=3), Chebyshev(steps=3)], ids=str
)
def test_gradcheck(solver, gate, mode):
    inputs, state = make(5, gate=gate, batch=1, key=2, value=1), make_state(batch=1, key=2, value=1)
    present = [n for n in NAMES if inputs[n] is not None]

    def function(*tensors):
        named = dict(zip(present, tensors[:-3], strict=True))
        result = mesa(
            **named,
            initial_state=MesaState(*tensors[-3:]),
            ridge_mode=mode,
            solver=solver,
            chunk_size=2,
        )
        return result.output, *result.state

    tensors = [inputs[n] for n in present]
    assert torch.autograd.gradcheck(function, (*tensors, *state))


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("chunk_size", [2, 8])
def test_gradgradcheck(gate, mode, chunk_size):
    inputs = make(4, gate=gate, batch=1, heads=1, key=2, value=1)
    present = [n for n in NAMES if inputs[n] is not None]

    def function(*tensors):
        named = dict(zip(present, tensors, strict=True))
        return mesa(**named, ridge_mode=mode, chunk_size=chunk_size).output

    assert torch.autograd.gradgradcheck(function, [inputs[n] for n in present])


def test_a_solve_that_fails_in_the_backward_pass_says_so():
    inputs = make(20)
    with torch.no_grad():
        inputs["q"].zero_()  # nothing to solve forward
    result = mesa(**inputs, solver=ConjugateGradient(rtol=1e-9, max_steps=1))
    with pytest.raises(SolveError, match="relative residual"):
        result.output.sum().backward()


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_vmap_over_models(gate, mode):
    inputs = make(10, gate=gate)
    ridges = torch.stack([inputs["ridge"], 2 * inputs["ridge"]]).detach()
    fixed = {n: x for n, x in inputs.items() if n != "ridge"}

    def loss(ridge, options):
        return mesa(**fixed, ridge=ridge, ridge_mode=mode, **options).output.square().sum()

    quiet = {"on_failure": "ignore", "chunk_size": 4}
    values = torch.func.vmap(lambda r: loss(r, quiet))(ridges)
    slopes = torch.func.vmap(torch.func.grad(lambda r: loss(r, quiet)))(ridges)
    for i, ridge in enumerate(ridges):
        own = ridge.clone().requires_grad_()
        wanted = loss(own, {"chunk_size": 4})
        assert error(values[i], wanted) <= CLOSE
        assert error(slopes[i], torch.autograd.grad(wanted, own)[0]) <= CLOSE
