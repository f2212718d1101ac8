"""The mesa operator one token at a time: recursive least squares, and the step that decoding takes."""

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.ops.chunked import System, invert_factor


@torch.no_grad()
def solve_recursively(
    system: System, rhs: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position key"]:
    """Solve A_t x_t = b_t position by position, keeping the inverse R_t = A_t^{-1} up to date.

    R_t = (R - beta (R k)(R k)^T / (gamma + beta k^T R k)) / gamma, R = R_{t-1}, where the ridge fades or
    nothing is forgotten. A static ridge under forgetting changes all of the matrix at every step, so
    there A_t is formed and factorised afresh. Every chunk starts from a fresh factorisation, and all
    chunks go on side by side.

    Args:
        system: the matrices.
        rhs: one right-hand side per position.

    Returns:
        The solutions.

    Source: Sherman and Morrison (1950); recursive least squares with a forgetting factor.

    Example:
        >>> one = torch.ones(1, 3, 1)
        >>> system = System(one, None, None, one[:, :1], None, None, True)
        >>> [round(x, 4) for x in solve_recursively(system, one).flatten().tolist()]
        [0.5, 0.3333, 0.25]
    """
    updates = system.since_start is None or system.fades
    group, ridge = rhs.shape[:-2], torch.diag_embed(system.ridge.squeeze(-2))
    start = torch.zeros_like(ridge) if system.start is None else system.start
    matrix = (start + ridge if updates else start).expand(*group, -1, -1)
    gates = _gates(system, rhs)
    if updates:
        inverse, _ = invert_factor(matrix)
        matrix = inverse.mT @ inverse
    solutions = []
    for position, gate in enumerate(gates):
        key = system.keys[..., position, :].unsqueeze(-1)  # [*G,K,1]
        beta = 1.0 if system.beta is None else system.beta[..., position, None, :]
        if updates:
            image = matrix @ key
            gain = beta / (gate + beta * (key.mT @ image))
            matrix = (matrix - gain * image @ image.mT) / gate
            solutions.append(matrix @ rhs[..., position, :, None])
        else:
            matrix = gate * matrix + beta * key @ key.mT
            inverse, _ = invert_factor(matrix + ridge)
            solutions.append(inverse.mT @ (inverse @ rhs[..., position, :, None]))
    return torch.stack(solutions, dim=-3).squeeze(-1)


def _gates(system: System, rhs: Tensor) -> list[Tensor | float]:
    """Forget gates of every position: the decays between neighbours."""
    positions = rhs.shape[-2]
    if system.since_start is None or system.between is None:
        return [1.0] * positions
    first = system.since_start[..., :1, :]
    later = system.between.diagonal(offset=-1, dim1=-2, dim2=-1).unsqueeze(-1)
    return list(torch.cat([first, later], dim=-2).unsqueeze(-1).unbind(-3))
