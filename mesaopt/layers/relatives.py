"""The relatives of the mesa layer: the same frame around another learner."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt import ops
from mesaopt.layers.attention import PLAIN, UNIT_KEYS, HeadInputs, SelfAttention
from mesaopt.layers.frame import Frame, GateName
from mesaopt.ops import KeyValueState, LinearState, Output
from mesaopt.ops.state import working_type


class _LinearMemory(SelfAttention[LinearState]):
    """A layer whose operator learns a linear map S, chunk by chunk."""

    GATES: tuple[GateName, ...] = ()

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        chunk_size: int = 64,
    ):
        super().__init__(width, num_heads, head_dim, frame=frame, gates=self.GATES)
        self.chunk_size = chunk_size

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> LinearState:
        """Return the map that predicts zero."""
        shape = (*like.shape, like.shape[-1])  # [B,H,V,K]
        return LinearState(torch.zeros(shape, dtype=working_type(like), device=like.device))


class LinearSelfAttention(_LinearMemory):
    """Causal linear self-attention: output P sum_{s <= t} v_s (k_s . q_t), without scaling.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions and norms around the operator.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Source: von Oswald et al., section "Linear self-attention".

    Example:
        >>> layer = LinearSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    def mix(self, inputs: HeadInputs, memory: LinearState | None) -> Output:
        """See :func:`mesaopt.ops.linear_attention`."""
        return ops.linear_attention(*inputs[:3], chunk_size=self.chunk_size, initial_state=memory)

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """See :func:`mesaopt.ops.linear_attention_step`."""
        return ops.linear_attention_step(*inputs[:3], memory)


class GatedLinearSelfAttention(_LinearMemory):
    """Linear self-attention that forgets: S_t = gamma_t S_{t-1} + beta_t v_t k_t^T, output P S_t q_t.

    gamma_t and beta_t are read off the input, one of each per head.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions, the cap on forgetting and norms around the operator.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Source: see :func:`mesaopt.ops.gated_linear_attention`.

    Example:
        >>> layer = GatedLinearSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    GATES = ("log_decay", "beta")

    def mix(self, inputs: HeadInputs, memory: LinearState | None) -> Output:
        """See :func:`mesaopt.ops.gated_linear_attention`."""
        return ops.gated_linear_attention(
            *inputs[:3],
            log_decay=cast(Tensor, inputs.log_decay),
            beta=inputs.beta,
            chunk_size=self.chunk_size,
            initial_state=memory,
        )

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """See :func:`mesaopt.ops.gated_linear_attention_step`."""
        return ops.gated_linear_attention_step(
            *inputs[:3], memory, log_decay=cast(Tensor, inputs.log_decay), beta=inputs.beta
        )


class DeltaRuleLayer(_LinearMemory):
    """Online gradient descent: S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, output P S_t q_t.

    beta_t is read off the input, one per head.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions and norms around the operator;
            unit queries and keys by default, without which long keys make it diverge.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Source: see :func:`mesaopt.ops.delta_rule`.

    Example:
        >>> layer = DeltaRuleLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    GATES = ("beta",)

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = UNIT_KEYS,
        chunk_size: int = 64,
    ):
        super().__init__(width, num_heads, head_dim, frame=frame, chunk_size=chunk_size)

    def mix(self, inputs: HeadInputs, memory: LinearState | None) -> Output:
        """See :func:`mesaopt.ops.delta_rule`."""
        return ops.delta_rule(
            *inputs[:3], beta=inputs.beta, chunk_size=self.chunk_size, initial_state=memory
        )

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """See :func:`mesaopt.ops.delta_rule_step`."""
        return ops.delta_rule_step(*inputs[:3], memory, beta=inputs.beta)


class GatedDeltaRuleLayer(_LinearMemory):
    """Online gradient descent that forgets, S' = gamma_t S_{t-1}, output P S_t q_t.

    S_t = S' + beta_t (v_t - S' k_t) k_t^T; gamma_t and beta_t are read off the input, one of each per head.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions, the cap on forgetting and norms around the operator;
            unit queries and keys by default, without which long keys make it diverge.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Source: see :func:`mesaopt.ops.gated_delta_rule`.

    Example:
        >>> layer = GatedDeltaRuleLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    GATES = ("log_decay", "beta")

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = UNIT_KEYS,
        chunk_size: int = 64,
    ):
        super().__init__(width, num_heads, head_dim, frame=frame, chunk_size=chunk_size)

    def mix(self, inputs: HeadInputs, memory: LinearState | None) -> Output:
        """See :func:`mesaopt.ops.gated_delta_rule`."""
        return ops.gated_delta_rule(
            *inputs[:3],
            log_decay=cast(Tensor, inputs.log_decay),
            beta=inputs.beta,
            chunk_size=self.chunk_size,
            initial_state=memory,
        )

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """See :func:`mesaopt.ops.gated_delta_rule_step`."""
        return ops.gated_delta_rule_step(
            *inputs[:3], memory, log_decay=cast(Tensor, inputs.log_decay), beta=inputs.beta
        )


class LonghornLayer(_LinearMemory):
    """Online learning by implicit steps, output P S_t q_t.

    S_t = argmin_S |S - S_{t-1}|^2 + beta_t |v_t - S k_t|^2, with beta_t read off the input, one per head.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions and norms around the operator.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Source: see :func:`mesaopt.ops.longhorn`.

    Example:
        >>> layer = LonghornLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    GATES = ("beta",)

    def mix(self, inputs: HeadInputs, memory: LinearState | None) -> Output:
        """See :func:`mesaopt.ops.longhorn`."""
        return ops.longhorn(
            *inputs[:3], beta=inputs.beta, chunk_size=self.chunk_size, initial_state=memory
        )

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """See :func:`mesaopt.ops.longhorn_step`."""
        return ops.longhorn_step(*inputs[:3], memory, beta=inputs.beta)


class SoftmaxSelfAttention(SelfAttention[KeyValueState]):
    """Causal softmax self-attention: output P sum_{s <= t} v_s softmax_s(scale k_s . q_t).

    The only layer whose state and steps grow with the past.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions and norms around the operator.
        scale: of the scores, > 0; 1 / sqrt(head_dim) if None.

    Source: Vaswani et al., "Attention Is All You Need".

    Example:
        >>> layer = SoftmaxSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        scale: float | None = None,
    ):
        super().__init__(width, num_heads, head_dim, frame=frame)
        self.scale = scale

    def mix(self, inputs: HeadInputs, memory: KeyValueState | None) -> Output:
        """See :func:`mesaopt.ops.softmax_attention`."""
        return ops.softmax_attention(*inputs[:3], scale=self.scale, initial_state=memory)

    def mix_step(self, inputs: HeadInputs, memory: KeyValueState) -> Output:
        """See :func:`mesaopt.ops.softmax_attention_step`."""
        return ops.softmax_attention_step(*inputs[:3], memory, scale=self.scale)

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> KeyValueState:
        """Return a cache without pairs."""
        empty = like[:, None][:, :0]  # [B,0,H,K]
        return KeyValueState(empty, empty)
