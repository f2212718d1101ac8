"""Softmax self-attention, in the same frame as the layers that learn a linear map."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mesaopt import ops
from mesaopt.layers.attention import PLAIN, SelfAttention
from mesaopt.layers.frame import Frame
from mesaopt.layers.state import HeadInputs
from mesaopt.ops import KeyValueState, Output
from mesaopt.ops.validation import check_count, check_number


class SoftmaxSelfAttention(SelfAttention[KeyValueState]):
    """Causal softmax self-attention: output P sum_{s <= t} v_s softmax_s(scale k_s . q_t).

    The only layer whose state and steps grow with the past, unless a window is given: then a position sees
    the last `window` tokens, its own included, and the state holds no more than these.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: positions, convolutions and norms around the operator.
        scale: factor on the scores, > 0; 1 / sqrt(head_dim) if None.
        window: tokens that a position sees, 1 or more; all if None.
        num_key_value_heads: heads of keys, values and states, a divisor of `num_heads`: grouped-query
            attention. As many as queries if None.

    Raises:
        TypeError: the frame is something else.
        ConfigError: a setting is out of range or of another kind.

    Source: Vaswani et al., "Attention Is All You Need"; Ainslie et al. 2023, "GQA", for fewer keys.

    Example:
        >>> import torch
        >>> layer = SoftmaxSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    takes_fewer_keys = True

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        scale: float | None = None,
        window: int | None = None,
        num_key_value_heads: int | None = None,
    ):
        super().__init__(
            width, num_heads, head_dim, frame=frame, num_key_value_heads=num_key_value_heads
        )
        check_number("scale", scale)
        check_count("window", window, least=1)
        self.scale = scale
        self.window = window

    def _shown_settings(self) -> dict[str, Any]:
        return super()._shown_settings() | {"scale": self.scale, "window": self.window}

    def mix(
        self,
        inputs: HeadInputs,
        memory: KeyValueState | None,
        cu_seqlens: Int[Tensor, " offset"] | None = None,
    ) -> Output:
        """Apply :func:`mesaopt.ops.softmax_attention` to a sequence."""
        return ops.softmax_attention(
            *inputs[:3],
            scale=self.scale,
            window=self.window,
            initial_state=memory,
            cu_seqlens=cu_seqlens,
        )

    def mix_step(self, inputs: HeadInputs, memory: KeyValueState) -> Output:
        """Apply :func:`mesaopt.ops.softmax_attention_step` to one token."""
        return ops.softmax_attention_step(*inputs[:3], memory, scale=self.scale, window=self.window)

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> KeyValueState:
        """Return a cache without pairs."""
        keys = like[:, None][:, :0]  # [B,0,H,K]
        return KeyValueState(keys, keys.new_zeros(*keys.shape[:-1], self.head_dim))
