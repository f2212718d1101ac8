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
    beta: Float[Tensor, "batch time head"] | None = None,
    log_decay: Float[Tensor, "batch time head"] | None = None,
    ridge_mode: str = "static",
    state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "batch time head value"], tuple[Tensor, Tensor, Tensor]]:
    """Mesa layer, as its definition reads: one dense solve per position.

    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T, G_t = gamma_t G_{t-1} + beta_t v_t k_t^T, and
    o_t = G_t (H_t + diag(ridge_t))^{-1} q_t is the prediction at q_t of the linear map fitted by ridge
    regression to the pairs (k_s, v_s) with s <= t.

    Args:
        q: queries [batch, time, head, key].
        k: keys (regression inputs), the same shape.
        v: values (regression targets) [batch, time, head, value].
        ridge: what is added to the diagonal of the Gram matrix, > 0, [head, key] or [head, 1].
        beta: write strengths in [0, 1], [batch, time, head]; 1 if not given.
        log_decay: log gamma, 0 or less, [batch, time, head]; 0 if not given.
        ridge_mode: "static", ridge_t = ridge; "decayed", ridge_t = gamma_1 ... gamma_t ridge.
        state: H [batch, head, key, key], G [batch, head, value, key] and the log of the decay so far
            [batch, head]; zeros if not given.

    Returns:
        Outputs [batch, time, head, value], and the state after the last position.

    Source: von Oswald et al. 2023, equations 4 to 8, with ridge = 1 / lambda; 2025 for the gates.

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=torch.ones(1, 1))[0].flatten()  # t / (t + 1)
        tensor([0.5000, 0.6667, 0.7500])
    """
    (batch, time, heads, key), value = k.shape, v.shape[-1]
    beta = torch.ones_like(k[..., 0]) if beta is None else beta
    log_decay = torch.zeros_like(k[..., 0]) if log_decay is None else log_decay
    shapes = ((key, key), (value, key), ())
    gram, cross, past = state or (k.new_zeros(batch, heads, *shape) for shape in shapes)
    outputs = []
    for t in range(time):
        decay, strength = (x[:, t, :, None, None] for x in (log_decay.exp(), beta))  # [B,H,1,1]
        gram = decay * gram + strength * torch.einsum("bhk,bhl->bhkl", k[:, t], k[:, t])
        cross = decay * cross + strength * torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        past = past + log_decay[:, t]
        fading = past.exp()[..., None] if ridge_mode == "decayed" else 1.0
        matrix = gram + torch.diag_embed(ridge.expand(heads, key) * fading)
        solved = torch.linalg.solve(matrix, q[:, t].unsqueeze(-1))
        outputs.append((cross @ solved).squeeze(-1))
    return torch.stack(outputs, dim=1), (gram, cross, past)
