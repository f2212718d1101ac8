"""Linear attention and its variants: layers whose operator learns a linear map, one pair after another.

Neighbours: :mod:`mesaopt.layers.softmax`, :mod:`mesaopt.layers.mesa`, and :mod:`mesaopt.ops` for the
operators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt import ops
from mesaopt.config import require_count
from mesaopt.layers.attention import PLAIN, UNIT_KEYS, SelfAttention
from mesaopt.layers.frame import Frame, GateName
from mesaopt.layers.state import HeadInputs
from mesaopt.ops import LinearState, Output
from mesaopt.ops.state import working_type


@dataclass(frozen=True, kw_only=True)
class LearningRule:
    """An operator that learns a linear map, and the surroundings it needs."""

    operator: Callable[..., Output]
    """Takes a sequence: q, k, v, the gates by name, `chunk_size`, `initial_state`."""
    step: Callable[..., Output]
    """Takes one token: q, k, v, the state, the gates by name."""
    gates: tuple[GateName, ...] = ()
    """Gates that both take, computed from the layer's input."""
    frame: Frame = PLAIN
    """Frame of a layer that is given none."""


class LinearAttentionLayer(SelfAttention[LinearState]):
    """Base class of layers whose operator learns a linear map; a subclass sets `rule`.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: positions, convolutions, norms and cap on forgetting around the operator; that of `rule` if
            None.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.
        num_key_value_heads: heads of keys, values, gates and states, see
            :class:`mesaopt.layers.SelfAttention`.

    Raises:
        TypeError: the frame is something else.
        ConfigError: a setting is out of range or of another kind.

    Example:
        >>> class PlainDeltaRule(LinearAttentionLayer):
        ...     rule = LearningRule(operator=ops.delta_rule, step=ops.delta_rule_step)
        >>> PlainDeltaRule(width=6, num_heads=2, head_dim=3)(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule: ClassVar[LearningRule]

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame | None = None,
        chunk_size: int = 64,
        num_key_value_heads: int | None = None,
    ):
        super().__init__(
            width,
            num_heads,
            head_dim,
            frame=self.rule.frame if frame is None else frame,
            gates=self.rule.gates,
            num_key_value_heads=num_key_value_heads,
        )
        require_count("chunk_size", chunk_size, smallest=1)
        self.chunk_size = chunk_size

    def _shown_settings(self) -> dict[str, Any]:
        return super()._shown_settings() | {"chunk_size": self.chunk_size}

    def mix(
        self,
        inputs: HeadInputs,
        memory: LinearState | None,
        cu_seqlens: Int[Tensor, " offset"] | None = None,
    ) -> Output:
        """Apply the operator of `rule` to a sequence."""
        return self.rule.operator(
            *inputs[:3],
            **self._gates(inputs),
            chunk_size=self.chunk_size,
            initial_state=memory,
            cu_seqlens=cu_seqlens,
        )

    def mix_step(self, inputs: HeadInputs, memory: LinearState) -> Output:
        """Apply the operator of `rule` to one token."""
        return self.rule.step(*inputs[:3], memory, **self._gates(inputs))

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> LinearState:
        """Return the map that predicts zero."""
        shape = (*like.shape[:-1], self.head_dim, like.shape[-1])  # [B,H,V,K]
        return LinearState(torch.zeros(shape, dtype=working_type(like), device=like.device))

    def _gates(self, inputs: HeadInputs) -> dict[str, Any]:
        return {name: getattr(inputs, name) for name in self.rule.gates}


class LinearSelfAttention(LinearAttentionLayer):
    """Causal linear self-attention: output P sum_{s <= t} v_s (k_s . q_t), without scaling.

    Args:
        As for :class:`LinearAttentionLayer`.

    Source: von Oswald et al., section "Linear self-attention"; :func:`mesaopt.ops.linear_attention`.

    Example:
        >>> layer = LinearSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule = LearningRule(operator=ops.linear_attention, step=ops.linear_attention_step)


class GatedLinearSelfAttention(LinearAttentionLayer):
    """Linear self-attention that forgets: S_t = gamma_t S_{t-1} + beta_t v_t k_t^T, output P S_t q_t.

    gamma_t and beta_t are computed from the input, one of each per head.

    Args:
        As for :class:`LinearAttentionLayer`.

    Source: see :func:`mesaopt.ops.gated_linear_attention`.

    Example:
        >>> layer = GatedLinearSelfAttention(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule = LearningRule(
        operator=ops.gated_linear_attention,
        step=ops.gated_linear_attention_step,
        gates=("log_decay", "beta"),
    )


class DeltaRuleLayer(LinearAttentionLayer):
    """Online gradient descent: S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, output P S_t q_t.

    beta_t is computed from the input, one per head. Queries and keys have unit length by default: long keys
    make the rule diverge.

    Args:
        As for :class:`LinearAttentionLayer`.

    Source: see :func:`mesaopt.ops.delta_rule`.

    Example:
        >>> layer = DeltaRuleLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule = LearningRule(
        operator=ops.delta_rule, step=ops.delta_rule_step, gates=("beta",), frame=UNIT_KEYS
    )


class GatedDeltaRuleLayer(LinearAttentionLayer):
    """Online gradient descent that forgets, S' = gamma_t S_{t-1}, output P S_t q_t.

    S_t = S' + beta_t (v_t - S' k_t) k_t^T; gamma_t and beta_t are computed from the input, one of each
    per head. Queries and keys have unit length by default: long keys make the rule diverge.

    Args:
        As for :class:`LinearAttentionLayer`.

    Source: see :func:`mesaopt.ops.gated_delta_rule`.

    Example:
        >>> layer = GatedDeltaRuleLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule = LearningRule(
        operator=ops.gated_delta_rule,
        step=ops.gated_delta_rule_step,
        gates=("log_decay", "beta"),
        frame=UNIT_KEYS,
    )


class LonghornLayer(LinearAttentionLayer):
    """Online learning by implicit steps, output P S_t q_t.

    S_t = argmin_S |S - S_{t-1}|^2 + beta_t |v_t - S k_t|^2; beta_t is computed from the input, one per
    head.

    Args:
        As for :class:`LinearAttentionLayer`.

    Source: see :func:`mesaopt.ops.longhorn`.

    Example:
        >>> layer = LonghornLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    rule = LearningRule(operator=ops.longhorn, step=ops.longhorn_step, gates=("beta",))
