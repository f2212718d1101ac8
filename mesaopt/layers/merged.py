"""Linear self-attention with merged weights: one matrix for keys and queries, one for output and values."""

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor, nn

from mesaopt import ops
from mesaopt.config import require_count
from mesaopt.config.checks import shown
from mesaopt.errors import ConfigError
from mesaopt.layers.checks import check_input
from mesaopt.layers.frame import settings_in_words


class MergedLinearSelfAttention(nn.Module):
    """Causal linear self-attention as in theory, averaged over the pairs seen so far.

    y_t = W_PV E_t E_t^* W_KQ e_t / rho_t, with E_t = [e_1 ... e_t], * the conjugate transpose and rho_t =
    t - 1. At t = 1 there is no pair yet, and the output is zero. Time and memory grow linearly with the
    sequence.

    Args:
        width: width of a token e_t, 1 or more.
        output_width: width of an output y_t, 1 or more.
        trained_key_query: mask of the entries of W_KQ that get a gradient, [width, width]; all if None. The
            others keep their values under any optimiser that does not move a weight of zero gradient.
        trained_output_value: mask of the entries of W_PV, [output_width, width].
        dtype: type of the weights and tokens, floating-point or complex.
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Raises:
        ConfigError: a setting is out of range.

    Source: Zheng et al., arXiv 2405.16845, the model of their section 3.

    Example:
        >>> layer = MergedLinearSelfAttention(6, 3)
        >>> layer(torch.randn(2, 7, 6, dtype=torch.complex64)).shape
        torch.Size([2, 7, 3])
    """

    key_query: nn.Parameter
    """W_KQ, [width, width]: a score is key_token^* W_KQ query_token."""
    output_value: nn.Parameter
    """W_PV, [output_width, width]."""
    trained_key_query: Tensor | None
    trained_output_value: Tensor | None

    def __init__(
        self,
        width: int,
        output_width: int,
        *,
        trained_key_query: Bool[Tensor, "width width"] | None = None,
        trained_output_value: Bool[Tensor, "output width"] | None = None,
        dtype: torch.dtype = torch.complex64,
        chunk_size: int = 16,
    ):
        super().__init__()
        sizes = {"width": width, "output_width": output_width, "chunk_size": chunk_size}
        for name, size in sizes.items():
            require_count(name, size, smallest=1)
        numeric = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
        if not numeric:
            raise ConfigError(f"dtype={dtype}: must be a floating-point or complex type")
        self.chunk_size = chunk_size
        self.key_query = nn.Parameter(torch.empty(width, width, dtype=dtype))
        self.output_value = nn.Parameter(torch.empty(output_width, width, dtype=dtype))
        for name, mask, weight in (
            ("trained_key_query", trained_key_query, self.key_query),
            ("trained_output_value", trained_output_value, self.output_value),
        ):
            found = None if mask is None else _checked(name, mask, weight)
            self.register_buffer(name, found, persistent=False)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Name the sizes."""
        output_width, width = self.output_value.shape
        dtype = self.key_query.dtype
        return settings_in_words(
            width=width, output_width=output_width, dtype=dtype, chunk_size=self.chunk_size
        )

    def reset_parameters(self) -> None:
        """Draw all weights from a normal distribution of variance 1 / width: outputs are of order 1."""
        for parameter in (self.key_query, self.output_value):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(
        self, tokens: Inexact[Tensor, "batch time width"]
    ) -> Inexact[Tensor, "batch time output"]:
        """Process a whole sequence.

        Args:
            tokens: e_1 ... e_T [batch, time, width], in the type of the weights.

        Returns:
            y_1 ... y_T [batch, time, output_width].

        Raises:
            ValueError: tokens have the wrong shape or type.
        """
        width, dtype = self.key_query.shape[0], self.key_query.dtype
        check_input("tokens", tokens, ("batch", "time"), width=width, dtype=dtype)
        queries = tokens @ _trained(self.key_query, self.trained_key_query).mT
        values = tokens @ _trained(self.output_value, self.trained_output_value).mT
        keys = tokens.conj().to(queries.dtype)  # which autocast may have lowered
        q, k, v = (x.unsqueeze(2) for x in (queries, keys, values))  # [B,T,1,width]
        summed = ops.linear_attention(q, k, v, chunk_size=self.chunk_size).output.squeeze(2)
        return summed * _reciprocal_of_pairs(summed)


def _checked(name: str, mask: Tensor, weight: Tensor) -> Tensor:
    """Return the mask of a matrix on its device, and refuse one of another kind or shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else shown(mask)
        raise ConfigError(f"{name}={given}: must be torch.bool {tuple(weight.shape)}")
    return mask.to(weight.device)


def _trained(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Let gradients reach the entries of a mask. Unlike a hook on the parameter, this survives a copy."""
    return weight if mask is None else torch.where(mask, weight, weight.detach())


def _reciprocal_of_pairs(x: Tensor) -> Tensor:
    """1 / (t - 1) for t = 1 ... T, zero at t = 1, [T, 1]; real, and as precise as x."""
    kind = x.real.dtype if x.is_complex() else x.dtype
    pairs = torch.arange(x.shape[1], dtype=kind, device=x.device)
    return torch.where(pairs > 0, 1 / pairs.clamp(min=1), 0.0).unsqueeze(-1)
