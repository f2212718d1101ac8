"""Short convolutions of queries, keys and values over the tokens so far."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.config import require_count
from mesaopt.layers.frame import settings_in_words


class CausalConvolution(nn.Module):
    """Short convolution of every channel over the last L tokens: y_t = sum_j w_{L-1-j} x_{t-j}, j < L.

    Args:
        channels: number of channels, 1 or more.
        length: number of tokens in a sum, the current one included, 1 or more.

    Raises:
        ConfigError: a size is no whole number of 1 or more.

    Example:
        >>> convolution = CausalConvolution(channels=3, length=4)
        >>> y, recent = convolution(torch.randn(2, 5, 3))
        >>> y.shape, recent.shape
        (torch.Size([2, 5, 3]), torch.Size([2, 3, 3]))
    """

    def __init__(self, channels: int, length: int):
        super().__init__()
        require_count("channels", channels, smallest=1)
        require_count("length", length, smallest=1)
        self.weight = nn.Parameter(torch.empty(channels, length))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights uniformly, as :class:`torch.nn.Conv1d` does.

        Args:
            generator: source of randomness; numbers are drawn on its device, wherever the weights are.
                PyTorch's global one if None.
        """
        bound = 1 / math.sqrt(self.weight.shape[1])
        if generator is None:
            nn.init.uniform_(self.weight, -bound, bound)
            return
        drawn = torch.empty(self.weight.shape, device=generator.device, dtype=torch.float32)
        self.weight.copy_(drawn.uniform_(-bound, bound, generator=generator))

    @property
    def kernel(self) -> Float[Tensor, "channel length"]:
        """The weights of every channel, in the order of the input."""
        return self.weight

    def extra_repr(self) -> str:
        """Name the sizes."""
        channels, length = self.weight.shape
        return settings_in_words(channels=channels, length=length)

    def forward(
        self,
        x: Float[Tensor, "batch time channel"],
        recent: Float[Tensor, "batch before channel"] | None = None,
    ) -> tuple[Float[Tensor, "batch time channel"], Float[Tensor, "batch before channel"]]:
        """Convolve a chunk of tokens.

        Args:
            x: [batch, time, channel].
            recent: the length - 1 tokens before x; zeros if None.

        Returns:
            The result, in the shape of x, and the last length - 1 tokens, for the next call.

        Raises:
            ValueError: `x` has the wrong shape, or `recent` the wrong shape or type.
        """
        channels, length = self.weight.shape
        if x.dim() != 3 or x.shape[2] != channels:
            raise ValueError(f"x has shape {tuple(x.shape)}: must be [batch, time, {channels}]")
        time = x.shape[1]
        recent = self._check_recent(x, recent, len(x))
        padded = torch.cat([recent, x], dim=1)
        weight = self.kernel.to(x.dtype)  # autocast leaves products of elements alone
        # Shifted products cost what a grouped convolution costs, and are the same sums for one token.
        terms = [padded[:, j : j + time] * weight[:, j] for j in range(length)]
        # A copy, or a state would keep the whole sequence in memory.
        return sum(terms[1:], start=terms[0]), padded[:, time:].clone()

    def convolve_packed(
        self,
        x: Float[Tensor, "1 time channel"],
        recent: Float[Tensor, "sequence before channel"] | None,
        lengths: tuple[int, ...],
    ) -> tuple[Float[Tensor, "1 time channel"], Float[Tensor, "sequence before channel"]]:
        """Convolve sequences that are packed along time, each by itself.

        Args:
            x: [1, time, channel].
            recent: the length - 1 tokens before every sequence; zeros if None.
            lengths: tokens of every sequence.

        Returns:
            The result, in the shape of x, and the last length - 1 tokens of every sequence.

        Raises:
            ValueError: `recent` has the wrong shape or type.
        """
        before, count = self.weight.shape[1] - 1, len(lengths)
        recent = self._check_recent(x, recent, count)
        # Every sequence with the tokens before it: [r_1, x_1, r_2, x_2, ...].
        each, number = torch.tensor(lengths), torch.arange(count)
        ends = each.cumsum(0) + before * (number + 1)
        tokens = torch.arange(sum(lengths)) + (before * (number + 1)).repeat_interleave(each)
        earlier, last = (
            (first.unsqueeze(1) + torch.arange(before)).flatten()
            for first in (ends - each - before, ends - before)
        )
        order = torch.cat([earlier, tokens]).argsort().to(x.device)
        joined = torch.cat([recent.flatten(0, 1), x.squeeze(0)]).index_select(0, order)
        out, _ = self(joined.unsqueeze(0))
        return (
            out.index_select(1, tokens.to(x.device)),
            joined.index_select(0, last.to(x.device)).unflatten(0, (count, before)),
        )

    def _check_recent(self, x: Tensor, recent: Tensor | None, sequences: int) -> Tensor:
        """Return the tokens before a call, zeros if there are none."""
        shape = (sequences, self.weight.shape[1] - 1, x.shape[2])
        if recent is None:
            return x.new_zeros(shape)
        if tuple(recent.shape) != shape:
            raise ValueError(f"state.recent has shape {tuple(recent.shape)}: must be {shape}")
        if recent.dtype != x.dtype:
            raise ValueError(f"state.recent has type {recent.dtype}: must be {x.dtype}")
        return recent


class KeyShift(CausalConvolution):
    """The convolution that takes keys from the token before, and all else as it is; nothing is learned.

    Args:
        before: channels before the keys.
        keys: channels of the keys.
        after: channels behind them.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
        >>> KeyShift(1, 1, 1)(x)[0]
        tensor([[[1., 0., 3.],
                 [4., 2., 6.]]])
    """

    def __init__(self, before: int, keys: int, after: int):
        nn.Module.__init__(self)
        self._keys = slice(before, before + keys)
        weight = torch.empty(before + keys + after, 2)
        self.register_buffer("weight", weight, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set the weights to zeros and ones; `generator` is not used."""
        self.weight.zero_()
        self.weight[:, 1] = 1.0
        self.weight[self._keys] = self.weight[self._keys].flip(1)
