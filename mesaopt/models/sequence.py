"""A model over continuous tokens: mixers on a residual stream. The mixers are in `models.mixers`."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from mesaopt.config import ModelConfig, require_config, require_count
from mesaopt.layers import CausalConvolution, SelfAttention
from mesaopt.layers.checks import check_input
from mesaopt.models.mixers import make_mixer
from mesaopt.models.random import draw_normal, keep_global_random


class Block(nn.Module):
    """One layer of the residual stream: y = x + mixer(x), then clip(y + mlp(y)).

    Args:
        config: settings of the model.
        layer: index of the layer, from 0.

    Example:
        >>> Block(ModelConfig(), 0)(torch.randn(3, 50, 40)).shape
        torch.Size([3, 50, 40])
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.mixer = make_mixer(config, layer)
        self.mlp = None if config.mlp_dim is None else _mlp(config.width, config.mlp_dim)
        self.clip = config.activation_clip

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Apply the layer to the stream.

        Args:
            x: the stream [batch, time, width].

        Returns:
            The stream after this layer, in the same shape.
        """
        x = x + self.mixer(x)
        if self.mlp is not None:
            x = x + self.mlp(x)
        # Like clamp, but its gradient is one pass over memory instead of four.
        return x if self.clip is None else hardtanh(x, -self.clip, self.clip)


class SequenceModel(nn.Module):
    """A stack of mixers on a residual stream: tokens in, one prediction per position out.

    x_0 = tokens (or W_in tokens), y_l = x_l + mixer_l(x_l), x_{l+1} = clip(y_l + mlp_l(y_l)), prediction =
    the first `output_dim` coordinates of x_L (or W_out x_L). mlp(y) = W_2 gelu(W_1 y), or nothing, with the
    tanh approximation of GELU, as in the authors' code. There are no biases and no layer norm.

    Args:
        config: widths, mixers, heads, positions, norms, clipping and the scale of the initial weights.
        seed: seed of the initial weights, 0 or greater; the weights are the same on every device.

    Source: von Oswald et al., sections on models; the authors' code where the text differs. The text has
    blocks with layer norm, and hidden layers four times as wide as the stream. The code behind the figures
    has neither, except for a hidden layer of 300 on the nonlinear task. The code of the mesa layer swaps
    the names of keys and values, so that positions and norms reach queries and regression targets; here
    they reach queries and keys, as in softmax attention; `unit_queries_values` puts norms where theirs are.

    Example:
        >>> model = SequenceModel(ModelConfig(num_heads=2))
        >>> sum(p.numel() for p in model.parameters())
        6400
        >>> model(torch.randn(3, 50, 40)).shape
        torch.Size([3, 50, 10])
        >>> hybrid = ModelConfig(
        ...     mixers=("softmax_attention", "mesa"), positions="first_layer", mlp_dim=8
        ... )
        >>> list(SequenceModel(hybrid).mixers[0].query.weight.shape)  # of a token and its position
        [80, 80]
    """

    @keep_global_random()
    def __init__(self, config: ModelConfig, *, seed: int = 0):
        super().__init__()
        require_config(config, ModelConfig, part="model")
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        embeds, reads = config.embed_dim is not None, config.readout == "linear"
        self.embedding = _linear(config.token_dim, config.width) if embeds else nn.Identity()
        read = _linear if reads else _FirstSlot
        self.readout = read(config.width, config.output_dim)
        self.reset_parameters(seed)

    @keep_global_random()
    def reset_parameters(self, seed: int) -> None:
        """Draw the matrix of every linear map from a normal distribution of deviation `initial_std`.

        Convolutions start as in their layer; ridges, norms and the biases of gates start at fixed values.

        Args:
            seed: 0 or greater; the weights are a pure function of it.
        """
        require_count("seed", seed, smallest=0)
        for mixer in self.mixers:
            mixer.reset_parameters()  # parameters that are not drawn, such as a ridge
        random = torch.Generator().manual_seed(seed)
        blocks = [cast(Block, block) for block in self.blocks]
        mlps = [block.mlp for block in blocks if block.mlp is not None]
        for module in (self.embedding, *self.mixers, *mlps, self.readout):
            for _, part in sorted(module.named_modules()):
                if isinstance(part, nn.Linear):
                    draw_normal(part.weight, random, std=self.config.initial_std)
                elif isinstance(part, CausalConvolution):
                    part.reset_parameters(generator=random)

    @property
    def mixers(self) -> list[SelfAttention]:
        """The mixer of each layer, first to last."""
        return [cast(SelfAttention, block.mixer) for block in self.blocks]

    def forward(
        self, tokens: Float[Tensor, "batch time token"]
    ) -> Float[Tensor, "batch time output"]:
        """Predict the next state at every position.

        Args:
            tokens: [batch, time, token_dim].

        Returns:
            Predictions [batch, time, output_dim].

        Raises:
            TypeError: tokens is no tensor.
            ValueError: its shape or type is another.
        """
        none = isinstance(self.embedding, nn.Identity)
        first: Any = self.mixers[0].value if none else self.embedding
        if hasattr(first, "in_features"):  # what a user put in its place checks for itself
            width, dtype = first.in_features, first.weight.dtype
            check_input("tokens", tokens, ("batch", "time"), width=width, dtype=dtype)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.readout(x)


class _FirstSlot(nn.Module):
    """Read the first coordinates of the stream, or of each of several streams: see `models.seeds`."""

    def __init__(self, width: int, output_dim: int):
        super().__init__()
        self.width, self.output_dim = width, output_dim

    def forward(self, x: Float[Tensor, "batch time wide"]) -> Float[Tensor, "batch time output"]:
        return x.unflatten(-1, (-1, self.width))[..., : self.output_dim].flatten(-2)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        _linear(width, hidden), nn.GELU(approximate="tanh"), _linear(hidden, width)
    )


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)
