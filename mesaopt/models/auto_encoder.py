"""An auto-encoder: the blocks of a language model read tokens, and their last position gives all back."""

from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from mesaopt.config import AutoEncoderConfig
from mesaopt.layers.frame import sinusoids
from mesaopt.models.language import LanguageModel
from mesaopt.models.random import keep_global_random


class AutoEncoder(LanguageModel):
    """A language model's blocks, and a decoder of the last position: each token is to be given back.

    e = x_L at the last position, h_t = e + p_t, h_t <- gelu(W_i norm(h_t) + b_i) for i = 1, 2, and the
    logits of token t are those of a language model at h_t. The positions p are sinusoids. Nothing but e
    knows the sequence, so that it has to hold all of it.

    Args:
        config: vocabulary, widths, the mixer of every block, and what is around them.
        seed: of the initial weights, 0 or greater.

    Raises:
        ConfigError: a setting is out of range.

    Source: Poli et al., arXiv 2403.17844, the compression task, and their public code, whose decoder this
    is: it does not widen and has no residual sums.

    Example:
        >>> model = AutoEncoder(AutoEncoderConfig(vocabulary=16, width=8, num_heads=2))
        >>> model(torch.randint(16, (3, 10))).shape
        torch.Size([3, 10, 16])
    """

    _settings = AutoEncoderConfig

    @keep_global_random()
    def __init__(self, config: AutoEncoderConfig, *, seed: int = 0):
        super().__init__(config, seed=seed)
        self.decoder = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(2))
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw all matrices and set the rest to its first values; see :class:`LanguageModel`.

        Args:
            seed: 0 or greater; the weights are a pure function of it.
        """
        super().reset_parameters(seed)
        for layer in getattr(self, "decoder", ()):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        at: Int[Tensor, "batch scored"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch scored vocabulary"]:
        """Compute the logits of the tokens themselves.

        Args:
            tokens: [batch, time], from 0 to vocabulary - 1.
            at: positions to give back, of each sequence, counted from 0; None: all.
            mask: must be None: all sequences are of one length.

        Returns:
            Logits [batch, time, vocabulary], or [batch, scored, vocabulary] with `at`.

        Raises:
            ValueError: an argument has the wrong shape or type, a token is not in the vocabulary, or a
                position not in the sequence.
        """
        if mask is not None:
            raise ValueError("mask is given: must be None: an auto-encoder takes no padding")
        tokens, at = self._checked(tokens, at=at)
        encoding = self._read(tokens, None)[:, -1:]
        times = torch.arange(tokens.shape[1], device=tokens.device) if at is None else at
        hidden = encoding + sinusoids(times, self.config.width, like=encoding)
        for layer in self.decoder:
            hidden = gelu(layer(rms_norm(hidden, hidden.shape[-1:], eps=1e-6)))
        return self._logits(hidden)

    def extend(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: an auto-encoder needs the whole sequence."""
        raise ValueError(
            "model is an auto-encoder, which continues no text: must be a LanguageModel"
        )

    step = init_state = extend
