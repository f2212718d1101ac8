"""One dense, readable definition per operator, in any precision: what every fast path is tested against.

Everything here materialises what the fast paths avoid (a state for every position); use it to read
and to check, not to train.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
) -> Float[Tensor, "batch time head value"]:
    """Causal linear attention, o_t = G_t q_t with G_t = sum_{s <= t} v_s k_s^T.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> linear_attention(one, one, one).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    cross = torch.einsum("bthv,bthk->bthvk", v, k).cumsum(1)
    return torch.einsum("bthvk,bthk->bthv", cross, q)


def mesa(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    ridge: Float[Tensor, "head #key"],
) -> Float[Tensor, "batch time head value"]:
    """Mesa layer: o_t = G_t (H_t + diag(ridge))^{-1} q_t, with H_t = sum_{s <= t} k_s k_s^T.

    o_t is the prediction at q_t of the linear map fitted by ridge regression to all pairs (k_s, v_s)
    with s <= t.

    Args:
        q: queries [batch, time, head, key].
        k: keys (regression inputs), the same shape.
        v: values (regression targets) [batch, time, head, value].
        ridge: what is added to the diagonal of the Gram matrix, > 0, [head, key] or [head, 1].

    Returns:
        Outputs [batch, time, head, value].

    Source: von Oswald et al., equations 4 to 8, with ridge = 1 / lambda.

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=torch.ones(1, 1)).flatten()  # t / (t + 1)
        tensor([0.5000, 0.6667, 0.7500])
    """
    gram = torch.einsum("bthk,bthl->bthkl", k, k).cumsum(1)
    solved = torch.linalg.solve(gram + torch.diag_embed(ridge.expand(k.shape[-2:])), q)
    return linear_attention(solved, k, v)
