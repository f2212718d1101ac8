"""Self-attention without softmax: projections to heads around one operator."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.ops import linear_attention


class SelfAttention(nn.Module):
    """Projections to queries, keys and values, an operator on them, and a projection back.

    Subclasses say what happens in between with :meth:`mix`. There are no biases and no scaling.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.

    Example:
        >>> LinearSelfAttention(width=6, num_heads=2, head_dim=5).query.weight.shape
        torch.Size([10, 6])
    """

    def __init__(self, width: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Mix the sequence.

        Args:
            x: [batch, time, width].

        Returns:
            What is to be added to the residual stream, the same shape.
        """
        heads = (self.num_heads, -1)
        q, k, v = (
            p(x).unflatten(-1, heads) for p in (self.query, self.key, self.value)
        )  # [B,T,H,K]
        return self.output(self.mix(q, k, v).flatten(-2))

    def mix(
        self,
        q: Float[Tensor, "batch time head key"],
        k: Float[Tensor, "batch time head key"],
        v: Float[Tensor, "batch time head value"],
    ) -> Float[Tensor, "batch time head value"]:
        """Apply the operator between the projections.

        Args:
            q: queries [batch, time, head, key].
            k: keys, the same shape.
            v: values [batch, time, head, value].

        Returns:
            Outputs [batch, time, head, value].
        """
        raise NotImplementedError

    @torch.no_grad()
    def head_products(
        self,
    ) -> tuple[Float[Tensor, "head width width"], Float[Tensor, "head width width"]]:
        """Multiply out what a head's weights do to tokens; only these products matter.

        Returns:
            W_k^T W_q and P W_v of every head, [head, width, width] each, acting on column vectors:
            a score is key_token^T (W_k^T W_q) query_token, and (P W_v) value_token is what is written.

        Source: von Oswald et al., Proposition 1 is stated in these products.
        """
        heads = (self.num_heads, -1)
        q, k, v = (p.weight.unflatten(0, heads) for p in (self.query, self.key, self.value))
        p = self.output.weight.unflatten(1, heads).transpose(0, 1)  # [H,width,V]
        return k.mT @ q, p @ v


class LinearSelfAttention(SelfAttention):
    """Causal linear self-attention: output P sum_{s <= t} v_s (k_s . q_t), without scaling.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.

    Source: von Oswald et al., section "Linear self-attention".

    Example:
        >>> layer = LinearSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    def mix(
        self,
        q: Float[Tensor, "batch time head key"],
        k: Float[Tensor, "batch time head key"],
        v: Float[Tensor, "batch time head value"],
    ) -> Float[Tensor, "batch time head value"]:
        """See :func:`mesaopt.ops.linear_attention`."""
        return linear_attention(q, k, v).output
