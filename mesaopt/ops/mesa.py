"""The mesa operator: ridge regression on the past, solved exactly at every position.

Every step below is a batched matrix product, Cholesky factorisation or triangular solve; nothing is
sequential in time but one cumulative sum over chunks. With H the Gram state at a chunk's start:

1. H + diag(ridge) = L L^T, and R = L^{-1}.
2. The chunk's keys are whitened, P = K R^T, and I + P P^T = M M^T. A leading block of a Cholesky
   factor is the factor of the leading block, so this one factor serves every position of the chunk.
3. With Y = M^{-1} P, the Woodbury identity gives for every position t of the chunk
   (H_t + diag(ridge))^{-1} q_t = R^T (R q_t - sum_{i <= t} (R q_t . y_i) y_i).

The gradient is that of the solution, not of the algorithm: one more solve with the same factors.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.ops import chunks
from mesaopt.ops.linear import check_shapes


def mesa(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    ridge: Float[Tensor, "..."] | float,
    chunk_size: int = 64,
) -> Float[Tensor, "batch time head value"]:
    """Predict at every position with the ridge regression of all pairs seen so far.

    o_t = G_t (H_t + diag(ridge))^{-1} q_t, H_t = sum_{s <= t} k_s k_s^T, G_t = sum_{s <= t} v_s k_s^T.

    Exact up to rounding. Time and memory grow linearly with the sequence. Gradients flow to q, k, v
    and ridge by implicit differentiation, and can be differentiated again.

    Args:
        q: queries [batch, time, head, key], float32 or float64.
        k: keys (regression inputs), the same shape.
        v: values (regression targets) [batch, time, head, value].
        ridge: what is added to the diagonal of the Gram matrix, > 0: a number, or a tensor [head] or
            [head, key]. The matrices are factorised in the precision of q, so ridge should exceed
            about 1e-6 (float32) of the largest sum of squared keys.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Returns:
        Outputs [batch, time, head, value].

    Raises:
        ValueError: the shapes do not fit together, or a ridge is not greater than 0.
        torch.linalg.LinAlgError: a Gram matrix is not positive definite to working precision.

    Source: von Oswald et al., equations 4 to 8, with ridge = 1 / lambda; the current pair is included.
    The chunk factorisation is ours.

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0).flatten()  # t / (t + 1)
        tensor([0.5000, 0.6667, 0.7500])
    """
    check_shapes(q, k, v, chunk_size)
    ridge = _ridge_per_channel(ridge, q)
    queries, keys, values = (chunks.split(x, chunk_size) for x in (q, k, v))
    with torch.no_grad():
        factors = _factorise(keys, ridge)
    solved: Tensor = _Solve.apply(queries, keys, ridge, factors)
    return chunks.join(chunks.attend_back(solved, keys, values), q.shape[1])


def _ridge_per_channel(ridge: Tensor | float, q: Tensor) -> Float[Tensor, "head key"]:
    ridge = torch.as_tensor(ridge, dtype=q.dtype, device=q.device)
    heads, width = q.shape[-2:]
    if tuple(ridge.shape) not in ((), (heads,), (heads, width)):
        wanted = f"a number, ({heads},) or ({heads}, {width})"
        raise ValueError(f"ridge has shape {tuple(ridge.shape)}: must be {wanted}")
    # Looking at a value on a GPU would make every call wait for the device.
    if ridge.device.type == "cpu" and not bool((ridge > 0).all()):
        raise ValueError(f"ridge has the value {ridge.min().item():g}: must be greater than 0")
    return (ridge.unsqueeze(-1) if ridge.dim() == 1 else ridge).expand(heads, width)


class _Factors(NamedTuple):
    """What turns a solve into matrix products; see the module's docstring."""

    whitening: Float[Tensor, "batch head chunk key key"]  # R
    correction: Float[Tensor, "batch head chunk position key"]  # Y


def _factorise(
    keys: Float[Tensor, "batch head chunk position key"], ridge: Float[Tensor, "head key"]
) -> _Factors:
    gram = (keys.mT @ keys)[:, :, :-1].cumsum(2) + torch.diag_embed(ridge)[:, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    later = torch.linalg.solve_triangular(
        torch.linalg.cholesky(gram), identity.expand_as(gram), upper=False
    )
    # The first chunk starts from the ridge alone, whose root is a diagonal.
    first = torch.diag_embed(ridge.rsqrt())[:, None].expand(len(keys), -1, -1, -1, -1)
    whitening = torch.cat([first, later], dim=2)
    whitened = keys @ whitening.mT
    inner = whitened @ whitened.mT  # [B,H,N,C,C]
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    correction = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), whitened, upper=False)
    return _Factors(whitening, correction)


class _Solve(torch.autograd.Function):
    """x_t = (H_t + diag(ridge))^{-1} q_t for all t, differentiated implicitly.

    With the gradient dx, and z_t = (H_t + diag(ridge))^{-1} dx_t: dq = z, dridge = -sum_t z_t * x_t and
    dk_s = -sum_{t >= s} [(k_s . x_t) z_t + (k_s . z_t) x_t]. The backward pass is made of
    differentiable operations, itself among them, so second derivatives come for free.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, ridge: Tensor, factors: _Factors
    ) -> Tensor:
        whitening, correction = factors
        white = queries @ whitening.mT
        solved = (white - (white @ correction.mT).tril_() @ correction) @ whitening
        ctx.save_for_backward(keys, ridge, solved)
        ctx.factors = factors
        return solved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        keys, ridge, solved = ctx.saved_tensors
        adjoint = _Solve.apply(grads[0], keys, ridge, ctx.factors)
        d_keys = -chunks.attend_ahead(keys, solved, adjoint)
        d_keys = d_keys - chunks.attend_ahead(keys, adjoint, solved)
        return adjoint, d_keys, -(adjoint * solved).sum((0, 2, 3)), None
