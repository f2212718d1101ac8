"""The mesa layer: self-attention that answers with the ridge regression of the past."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.layers.attention import SelfAttention
from mesaopt.ops import mesa


class MesaLayer(SelfAttention):
    """Per head, output P Phi_t q_t where Phi_t is the ridge regression of all values on all keys so far.

    Phi_t = argmin_Phi 1/2 sum_{s <= t} |v_s - Phi k_s|^2 + ridge/2 |Phi|_F^2.

    As in the paper, each head learns lambda = 1/ridge, here `inverse_ridge`, starting from 1. It is
    unconstrained, as in the authors' code; a value at or below 0 is an error in the operator.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.

    Source: von Oswald et al., equations 4 to 8. Where their code calls the regression inputs "values"
    and the targets "keys", keys are the inputs here, as in the paper.

    Example:
        >>> layer = MesaLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    def __init__(self, width: int, num_heads: int, head_dim: int):
        super().__init__(width, num_heads, head_dim)
        self.inverse_ridge = nn.Parameter(torch.ones(num_heads))

    def mix(
        self,
        q: Float[Tensor, "batch time head key"],
        k: Float[Tensor, "batch time head key"],
        v: Float[Tensor, "batch time head value"],
    ) -> Float[Tensor, "batch time head value"]:
        """See :func:`mesaopt.ops.mesa`."""
        return mesa(q, k, v, ridge=self.inverse_ridge.reciprocal()).output
