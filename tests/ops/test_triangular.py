"""Triangular systems by blocks: values, derivatives, and what LAPACK is left with."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesaopt.ops.triangular import solve_unit_triangular


def draw(size: int, columns: int) -> tuple[Tensor, Tensor]:
    """Unit keys of beta 1, with numbers above the diagonal that must not matter."""
    keys = torch.nn.functional.normalize(torch.randn(2, 3, size, 5, dtype=torch.float64), dim=-1)
    return keys @ keys.mT, torch.randn(2, 3, size, columns, dtype=torch.float64)


def define(below: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(below.shape[-1]).double() + below.tril(-1), right)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 33, 50, 64, 130])
@pytest.mark.parametrize("columns", [1, 3, 70])
def test_values_and_gradients_are_those_of_a_dense_solve(size: int, columns: int) -> None:
    inputs = [x.requires_grad_() for x in draw(size, columns)]
    upstream = torch.randn(2, 3, size, columns, dtype=torch.float64)
    found = []
    for solve in (solve_unit_triangular, define):
        solution = solve(*inputs)
        found.append([solution, *torch.autograd.grad(solution, inputs, upstream)])
    for ours, theirs in zip(*found, strict=True):
        # Condition numbers up to some 1e3, and sums of up to 130 products.
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("size", [3, 18])
def test_derivatives(size: int) -> None:
    inputs = [x.requires_grad_() for x in draw(size, 2)]
    settings = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        solve_unit_triangular, inputs, **settings,
        check_forward_ad=True, check_batched_forward_grad=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(solve_unit_triangular, inputs, **settings)


def test_rows_that_do_not_depend_on_one_another_solve_themselves() -> None:
    right = torch.randn(1, 20, 3)
    assert torch.equal(solve_unit_triangular(torch.zeros(1, 20, 20), right), right)


class Sizes(TorchDispatchMode):
    """Collect the sizes of the systems that LAPACK gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.linalg_solve_triangular:
            self.seen.append(args[1].shape[-2:])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("size", "columns"), [(50, 20), (64, 128), (17, 1)])
def test_lapack_gets_systems_too_small_for_several_threads(size: int, columns: int) -> None:
    below, right = (x.requires_grad_() for x in draw(size, columns))
    with Sizes() as sizes:
        torch.autograd.grad(solve_unit_triangular(below, right).sum(), (below, right))
    assert sizes.seen
    # MKL was seen to use several threads from 20 x 64 and 50 x 20 on.
    assert all(rows <= 16 and width <= 16 for rows, width in sizes.seen)
