"""Keys, strengths and what is left of the past at zero: values and derivatives of every solver."""

import math

import pytest
import torch
from mesa_problems import define_steps

from mesaopt.errors import SolveError
from mesaopt.ops import Chebyshev, Neumann, mesa, reference

ITERATIVE = (Neumann(steps=7), Chebyshev(steps=7))
TIME = 6
# A position whose matrix has this condition number may be refused, and matrices this small are none.
MAX_CONDITION, MIN_BOUND = 1e12, 1e-60


def draw(zeros, gate, dtype):
    random = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(1, TIME, 1, *shape, generator=random, dtype=torch.float64)

    inputs = {n: uniform(size) - 0.5 for n, size in {"q": 3, "k": 3, "v": 2}.items()}
    inputs |= {"beta": uniform(), "ridge": 1 + uniform(3)[0, 0]}
    inputs["log_decay"] = gate * torch.ones_like(inputs["beta"])
    for name, position in zeros.items():
        inputs[name][:, position] = 0.0
    return {n: x.to(dtype).requires_grad_() for n, x in inputs.items()}


def differentiate(output, inputs):
    """Return the sums' first and second derivatives."""
    first = torch.autograd.grad(output.sum(), list(inputs.values()), create_graph=True)
    total = sum(x.sum() for x in first)
    second = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    return first, [x for x in second if x is not None]


def define(inputs, mode, solver):
    """Return the outputs and whether the problem is one that must be solved."""
    if solver in ITERATIVE:
        output, bounds = define_steps(**inputs, ridge_mode=mode, solver=solver)
        return output, bool((bounds > MIN_BOUND).all())
    conditions, gram, past = [], 0.0, 0.0
    for t in range(TIME):
        k, decay = inputs["k"][0, t, 0], inputs["log_decay"][0, t, 0]
        gram = decay.exp() * gram + inputs["beta"][0, t, 0] * torch.outer(k, k)
        past = past + decay
        ridge = inputs["ridge"][0] * (past.exp() if mode == "decayed" else 1.0)
        conditions.append(torch.linalg.cond((gram + torch.diag(ridge)).detach()).item())
    if not max(conditions) < MAX_CONDITION:
        return None, False
    return reference.mesa(**inputs, ridge_mode=mode)[0], True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["static", "decayed"])
@pytest.mark.parametrize("gate", [-0.05, -5.0, -20.0, -50.0, -math.inf])
@pytest.mark.parametrize(
    "zeros",
    [{"k": 0, "beta": 1}, {"k": ...}, {"beta": ...}, {"q": ..., "k": ..., "v": ..., "beta": ...}],
    ids=str,
)
@pytest.mark.parametrize("solver", ["auto", "cg", "recursive", *ITERATIVE], ids=str)
def test_zeros_have_the_values_and_derivatives_of_the_definition(solver, zeros, gate, mode, dtype):
    inputs = draw(zeros, gate, dtype)
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    wanted, solvable = define(exact, mode, solver)
    try:
        found = mesa(**inputs, ridge_mode=mode, solver=solver).output
        first, second = differentiate(found, inputs)
    except SolveError:
        assert not solvable
        return
    assert not any(x.isnan().any() for x in (found, *first, *second))
    if not solvable:
        return
    slopes = torch.autograd.grad(wanted.sum(), list(exact.values()))
    for mine, right in zip((found, *first), (wanted, *slopes), strict=True):
        right = right.detach().to(dtype)  # infinite where the derivative is beyond float32
        scale = right.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()
        # Where terms near 1 cancel, their rounding in float64 is left.
        torch.testing.assert_close(mine.detach(), right, rtol=1e-4, atol=1e-4 * scale + 1e-14)
