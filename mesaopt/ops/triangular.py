"""Triangular systems of the delta rules: many small ones, solved by matrix products."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.ops.validation import differentiated, readable

# Rows of the blocks that LAPACK solves, one after the other. Larger systems it solves on all threads, which
# wait for one another at every one of them. Where waiting threads sleep, as on our command line, or where a
# neighbour takes a core, that is longer than they compute.
_MAX_LAPACK_SIZE = 16


def solve_unit_triangular(
    below: Float[Tensor, "*group size size"], right: Float[Tensor, "*group size column"]
) -> Float[Tensor, "*group size column"]:
    """Solve (1 + L) x = right, where L is what a matrix has below its diagonal.

    Args:
        below: the matrices; entries on the diagonal and above are not looked at.
        right: the right-hand sides.

    Returns:
        The solutions, differentiable as often as wanted.

    Example:
        >>> solve_unit_triangular(torch.ones(1, 2, 2), torch.ones(1, 2, 1)).flatten()
        tensor([1., 0.])
    """
    if not (readable(below) and readable(right)):
        return _solve(below, right)
    if not differentiated(below, right):
        return _Solve.forward(below, right)
    solution: Tensor = _Solve.apply(below, right)
    return solution


def _solve(matrix: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    """Solve as PyTorch does, with ones on the diagonal."""
    return torch.linalg.solve_triangular(matrix, right, upper=upper, unitriangular=True)


def _solve_by_blocks(matrix: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    """Solve some rows at a time, without derivatives."""
    size = matrix.shape[-1]
    result = right.clone(memory_format=torch.contiguous_format)
    matrices, solution = matrix.flatten(0, -3), result.flatten(0, -3)  # [G,C,C], [G,C,V]
    blocks = torch.arange(size).tensor_split(-(-size // _MAX_LAPACK_SIZE))
    for block in reversed(blocks) if upper else blocks:
        begin, end = int(block[0]), int(block[-1]) + 1
        solved = slice(end, None) if upper else slice(begin)
        remainder = torch.baddbmm(
            solution[:, begin:end], matrices[:, begin:end, solved], solution[:, solved], alpha=-1
        )
        inner = matrices[:, begin:end, begin:end]
        identity = torch.eye(end - begin, dtype=right.dtype, device=right.device)
        inverse = _solve(inner, identity.expand_as(inner), upper=upper)
        solution[:, begin:end] = inverse @ remainder
    return result  # not a view, which could have no tangent


class _Solve(torch.autograd.Function):
    """x = (1 + L)^{-1} b. With z = (1 + L)^{-T} dx: db = z, and dL = -z x^T below the diagonal."""

    @staticmethod
    def forward(below: Tensor, right: Tensor) -> Tensor:
        return _solve_by_blocks(below, right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        below, solution = ctx.saved_tensors
        by_blocks = readable(grads[0]) and not torch.is_grad_enabled()
        adjoint = (_solve_by_blocks if by_blocks else _solve)(below.mT, grads[0], upper=True)
        # A product is faster than tril(), see chunks.weigh_past.
        mask = torch.ones(below.shape[-2:], dtype=below.dtype, device=below.device).tril_(-1)
        return (adjoint @ solution.mT) * -mask, adjoint

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        below, solution = ctx.saved_tensors
        return _solve(below, tangents[1] - tangents[0].tril(-1) @ solution)
