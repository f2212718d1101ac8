"""The model of Zheng et al.: one layer of complex linear attention with merged weights."""

import warnings

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor, nn

from mesaopt.config import MergedAttentionConfig, require_config, require_count
from mesaopt.errors import InitialisationWarning
from mesaopt.layers import MergedLinearSelfAttention
from mesaopt.models.random import draw_normal, keep_global_random


class OneLayerModel(nn.Module):
    """One layer of complex linear attention, whose output is the prediction.

    On tokens (x_t ; x_{t-1}) the prediction is the layer's output. On the paper's (0 ; x_t ; x_{t-1}) it
    is the first slot of e_t + layer(e)_t, where the residual adds the zero in that slot. With the other
    blocks at zero, both compute the same from the same K and V:

    prediction_t = V S_t K x_t / (t - 1), S_t = sum_{s <= t} x_s x_{s-1}^*.

    Some blocks of the wider matrices cannot reach the prediction: they multiply a zero slot, or write to a
    slot that is not read. They are zero.

    Args:
        config: tokens, initial weights, and the trained blocks.
        seed: seed of normal initial weights, which are the same for both token layouts.
        dtype: type of weights and tokens, torch.complex64 or torch.complex128.

    Warns:
        InitialisationWarning: training from these diagonal weights ends where nothing is learnt.

    Source: Zheng et al., section 3 and Assumption 3.1; shorter tokens and no residual in their code. The
    paper does not say whether the "ordinary Gaussian" weights of its figures are real; we take them to be.

    Example:
        >>> model = OneLayerModel(MergedAttentionConfig(dim=2))
        >>> model.key_query_block
        tensor([[0.1000+0.j, 0.0000+0.j],
                [0.0000+0.j, 0.1000+0.j]], grad_fn=<SliceBackward0>)
        >>> model(torch.randn(3, 7, 4, dtype=torch.complex64)).shape
        torch.Size([3, 7, 2])
    """

    @keep_global_random()
    def __init__(
        self,
        config: MergedAttentionConfig,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.complex64,
    ):
        super().__init__()
        require_config(config, MergedAttentionConfig, part="model")
        self.config = config
        slots, dim = config.token_slots, config.dim
        self._current, self._previous = (
            slice(slots.index(slot) * dim, (slots.index(slot) + 1) * dim)
            for slot in ("current", "previous")
        )
        self.residual = "zero" in slots
        width = config.token_dim
        output_width = width if self.residual else dim
        key_query, output_value = self._masks(width, output_width)
        self.layer = MergedLinearSelfAttention(
            width,
            output_width,
            trained_key_query=key_query,
            trained_output_value=output_value,
            dtype=dtype,
        )
        self.reset_parameters(seed)

    @property
    def key_query_block(self) -> Inexact[Tensor, "dim dim"]:
        """K, between a previous state as key and a current one as query; a view of the layer's matrix."""
        return self.layer.key_query[self._previous, self._current]

    @property
    def value_block(self) -> Inexact[Tensor, "dim dim"]:
        """V, from a current state to the prediction; a view of the layer's matrix."""
        return self.layer.output_value[: self.config.dim, self._current]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Set the initial weights: multiples of the identity, or real normal numbers in the trained blocks.

        A model built on the meta device gets its weights, and what is trained of them, in this way, after
        `to_empty`.

        Args:
            seed: seed of normal weights, 0 or greater.
        """
        require_count("seed", seed, smallest=0)
        config, random = self.config, torch.Generator().manual_seed(seed)
        output_width, width = self.layer.output_value.shape
        masks = self._masks(width, output_width)
        for buffer, mask in zip(self.layer.buffers(), masks, strict=True):
            buffer.copy_(mask)
        self.layer.key_query.zero_()
        self.layer.output_value.zero_()
        if config.initial == "diagonal":
            self._warn_of_stuck_training()
            weights = self.layer.key_query
            identity = torch.eye(config.dim, dtype=weights.dtype, device=weights.device)
            self.key_query_block.copy_(config.initial_key_query * identity)
            self.value_block.copy_(config.initial_value * identity)
            return
        # Block by block, so that both token layouts draw the same numbers.
        for block in self._reaching_blocks():
            draw_normal(block, random, std=config.initial_std)

    def forward(
        self, tokens: Inexact[Tensor, "batch time token"]
    ) -> Inexact[Tensor, "batch time dim"]:
        """Predict the next state at every position; the first prediction is zero, for want of a pair.

        Args:
            tokens: [batch, time, token_dim], in the type of the weights.

        Returns:
            Predictions [batch, time, dim].

        Raises:
            ValueError: tokens have the wrong shape or type.
        """
        y = self.layer(tokens)
        return (tokens + y)[..., : self.config.dim] if self.residual else y

    def _reaching_blocks(self) -> list[Tensor]:
        """Return the blocks that can reach the prediction: K and V, then the others if they are trained."""
        blocks = [self.key_query_block, self.value_block]
        if self.config.blocks == "core":
            return blocks
        key_query, output_value = self.layer.key_query, self.layer.output_value
        current, previous = self._current, self._previous
        others = [(current, current), (current, previous), (previous, previous)]
        blocks += [key_query[rows, columns] for rows, columns in others]
        return [*blocks, output_value[: self.config.dim, previous]]

    def _masks(self, width: int, output_width: int) -> tuple[Bool[Tensor, "rows columns"], ...]:
        """Mask the trained entries of the key-query and of the output-value matrix."""
        return (
            self._trained(width, width, self._previous),
            self._trained(output_width, width, slice(self.config.dim)),
        )

    def _trained(self, rows: int, columns: int, core_rows: slice) -> Bool[Tensor, "rows columns"]:
        """Mask the trained entries of a matrix with K or V at [core_rows, current]."""
        trained = torch.full((rows, columns), self.config.blocks == "all", device="cpu")
        core = trained[core_rows, self._current]
        core.fill_(True)
        if self.config.off_diagonal == "masked":
            core.copy_(torch.eye(self.config.dim, dtype=torch.bool, device="cpu"))
        return trained

    def _warn_of_stuck_training(self) -> None:
        a, b = self.config.initial_key_query, self.config.initial_value
        if a + b != 0:
            return
        reason = (
            "the gradient is zero there, and training never moves"
            if a == 0
            else "gradient descent runs into the saddle at zero, where nothing is learnt"
        )
        message = f"initial_key_query={a}, initial_value={b}: {reason}"
        # of the caller that made the model, two decorators further up
        warnings.warn(message, InitialisationWarning, stacklevel=6)
