"""What the weights of a linear self-attention layer compute, in a handful of numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.layers import SelfAttention
from mesaopt.ops import linear_attention


def effective_coefficients(
    layer: SelfAttention, dim: int
) -> Float[Tensor, "query_slot key_slot value_slot"]:
    """Sum up a layer in one scalar per slot of its query, key and value.

    Each [dim, dim] block of a head's W_k^T W_q and of the rows of its P W_v that write the prediction is
    replaced by the mean of its diagonal, c times the identity. Then

        E[a, b, c] = sum_heads KQ[b, a] * PV[0, c],
        prediction_t = sum_{a, b, c} E[a, b, c] sum_{s <= t} slot_c(s) (slot_b(s) . slot_a(t)).

    One step of gradient descent has a single coefficient that is not zero, the step size, at (a, b, c) =
    (current, previous, current).

    Args:
        layer: linear self-attention on tokens made of slots.
        dim: width of a slot.

    Returns:
        E [slots, slots, slots].

    Raises:
        ValueError: the width of the tokens is not a multiple of dim.

    Source: von Oswald et al., section "Linear self-attention" (the compressed model of one layer).

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> effective_coefficients(LinearSelfAttention(width=40, num_heads=2, head_dim=20), 10).shape
        torch.Size([4, 4, 4])
    """
    key_query, value_output = (_diagonal_means(x, dim) for x in layer.head_products())
    return torch.einsum("hba,hc->abc", key_query, value_output[:, 0])


def compressed_prediction(
    coefficients: Float[Tensor, "query_slot key_slot value_slot"],
    tokens: Float[Tensor, "batch time token"],
) -> Float[Tensor, "batch time dim"]:
    """Predict with a layer compressed by :func:`effective_coefficients`.

    Args:
        coefficients: E [slots, slots, slots].
        tokens: [batch, time, slots * dim].

    Returns:
        Predictions [batch, time, dim].

    Raises:
        ValueError: the tokens cannot be cut into as many slots.

    Example:
        >>> tokens = torch.randn(2, 5, 4 * 10)
        >>> compressed_prediction(torch.zeros(4, 4, 4), tokens).shape
        torch.Size([2, 5, 10])
    """
    slots = coefficients.shape[0]
    _check_divides(tokens.shape[-1], slots, "slots")
    parts = tokens.unflatten(-1, (slots, -1))  # [B,T,S,D]
    values = torch.einsum(
        "abc,ntcd->ntabd", coefficients, parts
    )  # what is written for a pair (a, b)
    # One head per pair of a query slot and a key slot.
    queries, keys = (
        parts.unsqueeze(axis).expand(-1, -1, slots, slots, -1).flatten(2, 3) for axis in (3, 2)
    )
    return linear_attention(queries, keys, values.flatten(2, 3)).output.sum(2)


def block_energy(products: Float[Tensor, "head width width"], dim: int) -> Float[Tensor, " head"]:
    """Share of the squared entries of each matrix that scaled identity blocks explain.

    Args:
        products: matrices from :meth:`mesaopt.layers.SelfAttention.head_products`.
        dim: width of a block.

    Returns:
        [head], each between 0 and 1; 1 where every block is a multiple of the identity.

    Raises:
        ValueError: the width is not a multiple of dim.

    Source: von Oswald et al., the comparison behind the compressed model.

    Example:
        >>> block_energy(torch.eye(4).unsqueeze(0), 2)
        tensor([1.])
    """
    explained = _diagonal_means(products, dim).square().sum((-2, -1)) * dim
    return explained / products.square().sum((-2, -1))


def _diagonal_means(
    products: Float[Tensor, "head width width"], dim: int
) -> Float[Tensor, "head slot slot"]:
    _check_divides(products.shape[-1], dim, "dim")
    slots = products.shape[-1] // dim
    blocks = products.unflatten(-1, (slots, dim)).unflatten(-3, (slots, dim))  # [H,S,D,S,D]
    return blocks.diagonal(dim1=-3, dim2=-1).mean(-1)


def _check_divides(width: int, part: int, name: str) -> None:
    if part < 1 or width % part:
        raise ValueError(f"{name}={part}: must be a divisor of {width}, the width of a token")
