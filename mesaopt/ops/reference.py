"""One dense, readable definition per operator, in any precision: the reference for all tests.

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
        ridge: number added to the diagonal of the Gram matrix, > 0, [head, key] or [head, 1].
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
        ridge_decay = past.exp()[..., None] if ridge_mode == "decayed" else 1.0
        matrix = gram + torch.diag_embed(ridge.expand(heads, key) * ridge_decay)
        solved = torch.linalg.solve(matrix, q[:, t].unsqueeze(-1))
        outputs.append((cross @ solved).squeeze(-1))
    return torch.stack(outputs, dim=1), (gram, cross, past)


def gated_linear_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    log_decay: Float[Tensor, "batch time head"],
    beta: Float[Tensor, "batch time head"],
) -> Float[Tensor, "batch time head value"]:
    """Linear attention that forgets: S_t = exp(log_decay_t) S_{t-1} + beta_t v_t k_t^T, o_t = S_t q_t.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        log_decay: logarithm of the share of the past that is kept, [batch, time, head], <= 0.
        beta: write strength [batch, time, head] in [0, 1].

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> halve = torch.full((1, 3, 1), 0.5).log()
        >>> gated_linear_attention(one, one, one, log_decay=halve, beta=one[..., 0]).flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    state = torch.zeros(*v[:, 0].shape, k.shape[-1], dtype=k.dtype, device=k.device)
    outputs = []
    for t in range(k.shape[1]):
        write = torch.einsum("bh,bhv,bhk->bhvk", beta[:, t], v[:, t], k[:, t])
        state = log_decay[:, t, :, None, None].exp() * state + write
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1)


def delta_rule(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    beta: Float[Tensor, "batch time head"],
) -> Float[Tensor, "batch time head value"]:
    """Online gradient descent: S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        beta: step size [batch, time, head] in [0, 1].

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> delta_rule(one, one, one, beta=torch.full((1, 3, 1), 0.5)).flatten()
        tensor([0.5000, 0.7500, 0.8750])
    """
    return gated_delta_rule(q, k, v, log_decay=torch.zeros_like(beta), beta=beta)


def gated_delta_rule(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    log_decay: Float[Tensor, "batch time head"],
    beta: Float[Tensor, "batch time head"],
) -> Float[Tensor, "batch time head value"]:
    """Forget, then one gradient step: S_t = S' + beta_t (v_t - S' k_t) k_t^T, o_t = S_t q_t.

    S' = exp(log_decay_t) S_{t-1}.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        log_decay: logarithm of the share of the past that is kept, [batch, time, head], <= 0.
        beta: step size [batch, time, head] in [0, 1].

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> one = torch.ones(1, 2, 1, 1)
        >>> half = torch.full((1, 2, 1), 0.5)
        >>> gated_delta_rule(one, one, one, log_decay=half.log(), beta=half).flatten()
        tensor([0.5000, 0.6250])
    """
    state = torch.zeros(*v[:, 0].shape, k.shape[-1], dtype=k.dtype, device=k.device)
    outputs = []
    for t in range(k.shape[1]):
        state = log_decay[:, t, :, None, None].exp() * state
        error = v[:, t] - torch.einsum("bhvk,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhv,bhk->bhvk", beta[:, t], error, k[:, t])
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1)


def longhorn(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    beta: Float[Tensor, "batch time head"],
) -> Float[Tensor, "batch time head value"]:
    """Implicit steps: S_t = argmin_S |S - S_{t-1}|^2 + beta_t |v_t - S k_t|^2, o_t = S_t q_t.

    The normal equations S_t (I + beta_t k_t k_t^T) = S_{t-1} + beta_t v_t k_t^T are solved as they are.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        beta: weight of the new pair against the old state [batch, time, head] in [0, 1].

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> longhorn(one, one, one, beta=one[..., 0]).flatten()
        tensor([0.5000, 0.7500, 0.8750])
    """
    state = torch.zeros(*v[:, 0].shape, k.shape[-1], dtype=k.dtype, device=k.device)
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    outputs = []
    for t in range(k.shape[1]):
        curvature = torch.einsum("bh,bhk,bhl->bhkl", beta[:, t], k[:, t], k[:, t])
        target = state + torch.einsum("bh,bhv,bhk->bhvk", beta[:, t], v[:, t], k[:, t])
        state = torch.linalg.solve(identity + curvature, target, left=False)
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1)


def softmax_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "batch time head value"]:
    """Causal softmax attention, o_t = sum_{t - window < s <= t} v_s softmax_s(scale k_s . q_t).

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        scale: of the scores; 1 / sqrt(key) if None.
        window: pairs that a position sees, its own included; all if None.

    Returns:
        Outputs [batch, time, head, value].

    Example:
        >>> zero, v = torch.zeros(1, 2, 1, 1), torch.tensor([3.0, 6.0]).reshape(1, 2, 1, 1)
        >>> softmax_attention(zero, zero, v).flatten().tolist()
        [3.0, 4.5]
    """
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    times = torch.arange(q.shape[1], device=q.device)
    back = times.unsqueeze(1) - times  # [T,T]
    unseen = (back < 0) | (back >= (len(times) if window is None else window))
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", weights, v)
