"""A model over continuous tokens: mixers on a residual stream."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.config import MixerName, ModelConfig
from mesaopt.layers import LinearSelfAttention, MesaLayer, SelfAttention

_MIXERS: dict[MixerName, type[SelfAttention]] = {
    "linear_attention": LinearSelfAttention,
    "mesa": MesaLayer,
}


class SequenceModel(nn.Module):
    """Tokens in, one prediction per position out.

    x_0 = tokens (or W_in tokens), x_{l+1} = clip(x_l + mixer_l(x_l)), prediction = the first
    `output_dim` coordinates of x_L (or W_out x_L). No biases, no normalisation, no positions: what the
    constructed-token experiments use.

    Args:
        config: widths, mixers, heads, clipping and the scale of the initial weights.
        seed: seed of the initial weights, the same on every device.

    Source: von Oswald et al., section "Linear self-attention"; clipping and scales from their code.

    Example:
        >>> model = SequenceModel(ModelConfig(num_heads=2))
        >>> sum(p.numel() for p in model.parameters())
        6400
        >>> model(torch.randn(3, 50, 40)).shape
        torch.Size([3, 50, 10])
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        head_dim = config.head_dim or config.width // config.num_heads
        self.mixers = nn.ModuleList(
            _MIXERS[name](config.width, config.num_heads, head_dim) for name in config.mixers
        )
        embeds, reads = config.embed_dim is not None, config.readout == "linear"
        self.embedding = _linear(config.token_dim, config.width) if embeds else nn.Identity()
        self.readout = _linear(config.width, config.output_dim) if reads else nn.Identity()
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int) -> None:
        """Draw every weight matrix from a normal law of standard deviation `initial_std`.

        Args:
            seed: 0 or greater; the weights are a pure function of it.
        """
        for mixer in self.mixers:
            cast(SelfAttention, mixer).reset_parameters()  # what is no matrix, such as a ridge
        random = torch.Generator().manual_seed(seed)
        for _, parameter in sorted(self.named_parameters()):
            if parameter.dim() == 2:
                initial = torch.randn(parameter.shape, generator=random) * self.config.initial_std
                parameter.data.copy_(initial)

    def forward(
        self, tokens: Float[Tensor, "batch time token"]
    ) -> Float[Tensor, "batch time output"]:
        """Predict the next state at every position.

        Args:
            tokens: [batch, time, token_dim].

        Returns:
            Predictions [batch, time, output_dim].
        """
        x = self.embedding(tokens)
        for mixer in self.mixers:
            x = x + mixer(x)
            if self.config.activation_clip is not None:
                x = x.clamp(-self.config.activation_clip, self.config.activation_clip)
        return self.readout(x)[..., : self.config.output_dim]


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)
