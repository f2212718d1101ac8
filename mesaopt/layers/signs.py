"""Forget gates that may be negative, around operators that take positive ones.

With gamma_t = s_t |gamma_t| and s_t = ±1, the weight of pair s at position t is
zeta_ts = |zeta_ts| p_t p_s, where p_t = s_1 ... s_t. So an operator that is linear in its values computes
the signed sum from values p_s v_s, when its output is multiplied by p_t. Signs are exact, and so is this.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.layers.state import HeadInputs
from mesaopt.ops import MesaOutput, Output


def running_signs(
    sign: Float[Tensor, "batch time head"], lengths: tuple[int, ...] | None = None
) -> tuple[Float[Tensor, "batch time head"], Float[Tensor, "sequence head"]]:
    """Multiply signs from the beginning of each sequence.

    Args:
        sign: 1 or -1.
        lengths: tokens of sequences that are packed along time; None for a plain batch.

    Returns:
        The products p_t at every position, and those at the end of every sequence.

    Example:
        >>> signs, ends = running_signs(torch.tensor([[[1.0], [-1.0], [-1.0], [-1.0]]]), (2, 2))
        >>> signs.flatten().tolist(), ends.flatten().tolist()
        ([1.0, -1.0, -1.0, 1.0], [-1.0, 1.0])
    """
    products = sign.cumprod(1)
    if lengths is None:
        return products, products[:, -1]
    whole = torch.cat([torch.ones_like(products[:, :1]), products], dim=1).squeeze(0)  # [1+T,H]
    sizes = torch.tensor(lengths, device=sign.device)
    ends = sizes.cumsum(0)
    before = whole[ends - sizes]  # its inverse, too
    within = before.repeat_interleave(sizes, dim=0, output_size=sign.shape[1])
    return products * within, whole[ends] * before


def without_signs(inputs: HeadInputs, signs: Float[Tensor, "*position head"]) -> HeadInputs:
    """Return the inputs of an operator without signs: p_s v_s in place of v_s.

    Args:
        inputs: with a sign.
        signs: p_s.

    Returns:
        The same inputs, with other values.
    """
    return inputs._replace(v=inputs.v * signs.unsqueeze(-1).to(inputs.v.dtype), sign=None)


def with_signs(
    result: Output | MesaOutput,
    signs: Float[Tensor, "*position head"],
    ends: Float[Tensor, "sequence head"],
) -> Output | MesaOutput:
    """Return the result of the operator with signs: p_t o_t, and a state to go on from without any p.

    Args:
        result: of the operator, for the inputs that :func:`without_signs` gave.
        signs: p_t.
        ends: p_t at the end of every sequence.

    Returns:
        The result for the inputs with their sign. A Gram matrix keeps positive weights.
    """
    state: Any = result.state
    cross = state.cross * ends[..., None, None].to(state.cross.dtype)
    output = result.output * signs.unsqueeze(-1).to(result.output.dtype)
    return cast(Any, result)._replace(output=output, state=state._replace(cross=cross))
