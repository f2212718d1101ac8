"""A language model: mixers and networks on a residual stream, from tokens to the logits of the next one.

:mod:`mesaopt.models.generation` continues texts with it.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu

from mesaopt.config import LanguageModelConfig, require_config, require_count
from mesaopt.errors import wrong_type
from mesaopt.layers import CausalConvolution, LayerState, SelfAttention
from mesaopt.layers.checks import check_indices, check_mask, check_sequences
from mesaopt.layers.frame import sinusoids
from mesaopt.models.language_state import LanguageState
from mesaopt.models.mixers import make_language_mixer
from mesaopt.models.random import draw_normal, keep_global_random


class LanguageModel(nn.Module):
    """A stack of blocks between embeddings of tokens and logits of the next token.

    x_0 = s E[token] (+ positions), y_l = x_l + mixer_l(norm(x_l)), x_{l+1} = y_l + network_l(norm(y_l)),
    z = W norm(x_L), logits = cap tanh(z / cap), with W = E where the embeddings are tied, and s = 1 or,
    with `scale_embeddings`, the root of the width.

    Args:
        config: vocabulary, widths, the mixer of every block, and what is around them.
        seed: of the initial weights, 0 or greater; they are the same on every device.

    Source: von Oswald et al., arXiv 2309.05858, section on language models and table 4; von Oswald et al.,
    arXiv 2506.05233, for the backbone of MesaNet.

    Example:
        >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
        >>> tokens = torch.randint(16, (3, 10))
        >>> model(tokens).shape, model(tokens, at=torch.tensor([[4], [9], [0]])).shape
        (torch.Size([3, 10, 16]), torch.Size([3, 1, 16]))
    """

    _settings: type[LanguageModelConfig] = LanguageModelConfig

    @keep_global_random()
    def __init__(self, config: LanguageModelConfig, *, seed: int = 0):
        super().__init__()
        require_config(config, self._settings, part="model")
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = _norm(config)
        self.head = None if config.tied else _linear(config.width, config.vocabulary)
        self.reset_parameters(seed)

    @keep_global_random()
    def reset_parameters(self, seed: int = 0) -> None:
        """Draw every matrix from a normal distribution, and set all else to its first value.

        The standard deviation is `initial_std`, and `initial_std / sqrt(2 depth)` for the matrices before a
        residual sum, of which there are two in a block. A model built on the meta device gets its first
        values in this way, after `to_empty`.

        Args:
            seed: 0 or greater; the weights are a pure function of it.
        """
        require_count("seed", seed, smallest=0)
        if self.embedding.weight.is_meta:
            return
        random = torch.Generator().manual_seed(seed)
        for module in self._own_modules():
            module.reset_parameters()  # ridges, norms and biases
        before_sums = {id(module) for block in self._blocks for module in block.before_sums}
        tied = self.embedding.weight  # in a subclass also that of a head
        for _, part in sorted(self.named_modules()):
            if isinstance(part, nn.Linear) and part.weight is tied:
                continue
            if isinstance(part, nn.Linear | nn.Embedding):
                scale = (2 * self.config.depth) ** -0.5 if id(part) in before_sums else 1.0
                draw_normal(part.weight, random, std=scale * self.config.initial_std)
            elif isinstance(part, CausalConvolution):
                part.reset_parameters(generator=random)

    @property
    def mixers(self) -> list[SelfAttention]:
        """The mixer of each block, first to last."""
        return [block.mixer for block in self._blocks]

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        at: Int[Tensor, "batch scored"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch scored vocabulary"]:
        """Compute the logits of the token after each position.

        Args:
            tokens: [batch, time], from 0 to vocabulary - 1.
            at: positions to compute logits for, of each sequence, counted from 0; None: all.
            mask: true where a token is and false where padding is; see :meth:`extend`.

        Returns:
            Logits [batch, time, vocabulary], or [batch, scored, vocabulary] with `at`.

        Raises:
            ValueError: an argument has the wrong shape or type, a token is not in the vocabulary, or a
                position not in the sequence.
        """
        tokens, at = self._checked(tokens, mask, at)
        return self._logits(_at(self._read(tokens, mask), at))

    def read(
        self, tokens: Int[Tensor, "batch time"], *, mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        """Compute the residual stream behind the last block.

        Args:
            tokens: [batch, time], from 0 to vocabulary - 1.
            mask: true where a token is and false where padding is; see :meth:`extend`.

        Returns:
            The stream [batch, time, width].

        Raises:
            ValueError: an argument has the wrong shape or type, or a token is not in the vocabulary.
        """
        return self._read(self._checked(tokens, mask)[0], mask)

    def extend(
        self,
        tokens: Int[Tensor, "batch time"],
        state: LanguageState | None = None,
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
        at: Int[Tensor, "batch scored"] | None = None,
    ) -> tuple[Float[Tensor, "batch scored vocabulary"], LanguageState]:
        """Read a chunk of tokens and return the updated state.

        Where a text is cut into chunks changes rounding only.

        Args:
            tokens: [batch, time], 1 or more.
            state: returned by an earlier call; None at the beginning.
            mask: [batch, time], true where a token is and false where padding is, wherever that is. No
                state and no position counts padding, and its logits mean nothing.
            at: positions of this chunk to compute logits for, of each sequence, counted from 0; None: all.

        Returns:
            Logits [batch, time, vocabulary], or [batch, scored, vocabulary] with `at`, and the state after
            the last token.

        Raises:
            TypeError: the state is something else.
            ValueError: an argument has the wrong shape or type, a token is not in the vocabulary, a
                position not in this chunk, or the state has another number of sequences or layers.

        Example:
            >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
            >>> tokens = torch.randint(16, (3, 10))
            >>> _, state = model.extend(tokens[:, :6])
            >>> logits, state = model.extend(tokens[:, 6:], state)
            >>> torch.allclose(logits, model(tokens)[:, 6:], atol=1e-5)
            True
        """
        tokens, at = self._checked(tokens, mask, at)
        seen, past = tokens.new_zeros(len(tokens)), (None,) * self.config.depth
        if state is not None:
            seen, past = state.seen, self._layers_of(state, len(tokens))
        counts = _counts(tokens, mask)
        x = self._embed(tokens, seen.unsqueeze(1) + counts.cumsum(1) - 1)
        layers = []
        for block, layer in zip(self._blocks, past, strict=True):
            x, after = block.extend(x, layer, mask)
            layers.append(after._replace(seen=0))  # counted once for all layers
        return self._logits(_at(x, at)), LanguageState(tuple(layers), seen + counts.sum(1))

    def step(
        self, tokens: Int[Tensor, " batch"], state: LanguageState
    ) -> tuple[Float[Tensor, "batch vocabulary"], LanguageState]:
        """Read one token of each sequence and return the updated state.

        Args:
            tokens: [batch].
            state: of :meth:`extend`, :meth:`init_state` or an earlier step; it is left as it is.

        Returns:
            Logits [batch, vocabulary], and the new state.

        Raises:
            TypeError: the state is something else.
            ValueError: an argument has the wrong shape or type, a token is not in the vocabulary, or the
                state has another number of sequences or layers.
        """
        tokens = check_indices("tokens", tokens, ("batch",), limit=self.config.vocabulary)
        past = self._layers_of(state, len(tokens))
        x = self._embed(tokens, state.seen)
        layers = []
        for block, layer in zip(self._blocks, past, strict=True):
            x, after = block.step(x, layer)
            layers.append(after._replace(seen=0))  # counted once for all layers
        return self._logits(x), LanguageState(tuple(layers), state.seen + 1)

    def init_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> LanguageState:
        """Return the state before the first token.

        Args:
            batch_size: number of sequences.
            dtype: as for :meth:`mesaopt.layers.SelfAttention.init_state`.

        Returns:
            The state, on the device of the weights.

        Raises:
            ConfigError: the number of sequences is no whole number of 1 or more.
        """
        layers = tuple(mixer.init_state(batch_size, dtype=dtype) for mixer in self.mixers)
        seen = torch.zeros(batch_size, dtype=torch.int64, device=self.embedding.weight.device)
        return LanguageState(layers, seen)

    def _run_block(self, block: "Block", x: Tensor, mask: Tensor | None) -> Tensor:
        """Apply one block to whole sequences; a subclass may compute it again for the gradients."""
        return block(x, mask)

    def _read(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "batch time width"]:
        """Compute the residual stream for arguments that were checked."""
        x = self._embed(tokens, _counts(tokens, mask).cumsum(1) - 1)
        for block in self._blocks:
            x = self._run_block(block, x, mask)
        return x

    def _checked(
        self, tokens: Any, mask: Any = None, at: Any = None
    ) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch scored"] | None]:
        """Return tokens and positions in int64, and refuse what does not fit."""
        tokens = check_indices("tokens", tokens, ("batch", "time"), limit=self.config.vocabulary)
        if mask is not None:
            check_mask(mask, tokens, "tokens")
        if at is not None:
            at = check_indices("at", at, (len(tokens), "scored"), limit=tokens.shape[1])
        return tokens, at

    def _layers_of(self, state: LanguageState, sequences: int) -> tuple[LayerState, ...]:
        """Return the states of the layers, with positions where they read some, or refuse other states."""
        check_sequences(state, LanguageState, sequences)
        if len(state.layers) != self.config.depth:
            given = f"state has {len(state.layers)} layers"
            raise ValueError(f"{given}: must have {self.config.depth}")
        return tuple(
            layer._replace(seen=state.seen if mixer.frame.rotary else 0)
            for layer, mixer in zip(state.layers, self.mixers, strict=True)
        )

    def _embed(self, tokens: Tensor, times: Tensor) -> Float[Tensor, "*position width"]:
        x = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = self.config.width**0.5 * x
        if self.config.positions == "sinusoidal":
            x = x + sinusoids(times, self.config.width, like=x)
        return x

    def _logits(self, x: Float[Tensor, "*position width"]) -> Float[Tensor, "*position vocabulary"]:
        head = self.embedding if self.head is None else self.head
        logits = linear(self.norm(x), head.weight)
        cap = self.config.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    @property
    def _blocks(self) -> list["Block"]:
        return [cast(Block, block) for block in self.blocks]

    def _own_modules(self) -> list[Any]:
        """List the modules that know their first values: mixers and norms."""
        norms = [m for m in self.modules() if isinstance(m, nn.RMSNorm | nn.LayerNorm)]
        return [*self.mixers, *norms]


class Block(nn.Module):
    """One layer of the residual stream: y = x + mixer(norm(x)), then y + network(norm(y)).

    Args:
        config: settings of the model.
        layer: index of the block, from 0.

    Example:
        >>> Block(LanguageModelConfig(width=8, num_heads=2), 0)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, config: LanguageModelConfig, layer: int):
        super().__init__()
        self.mixer_norm = _norm(config)
        self.mixer = make_language_mixer(config, layer)
        self.network = None if config.mlp == "none" else Network(config)
        self.network_norm = None if config.mlp == "none" else _norm(config)

    def forward(
        self, x: Float[Tensor, "batch time width"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        """Apply the block to whole sequences.

        Args:
            x: the stream [batch, time, width].
            mask: true where a token is.

        Returns:
            The stream after this block.
        """
        return self._finish(x + self.mixer(self.mixer_norm(x), mask=mask))

    def extend(
        self,
        x: Float[Tensor, "batch time width"],
        state: Any = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time width"], Any]:
        """Apply the block to a chunk of tokens.

        Args:
            x: the stream [batch, time, width].
            state: of the mixer; None at the beginning.
            mask: true where a token is.

        Returns:
            The stream after this block, and the state of the mixer.
        """
        mixed, state = self.mixer.extend(self.mixer_norm(x), state, mask=mask)
        return self._finish(x + mixed), state

    def step(
        self, x: Float[Tensor, "batch width"], state: Any
    ) -> tuple[Float[Tensor, "batch width"], Any]:
        """Apply the block to one token.

        Args:
            x: the stream [batch, width].
            state: of the mixer.

        Returns:
            The stream after this block, and the state of the mixer.
        """
        mixed, state = self.mixer.step(self.mixer_norm(x), state)
        return self._finish(x + mixed), state

    @property
    def before_sums(self) -> list[nn.Module]:
        """The matrices whose outputs are added to the stream."""
        return (
            [self.mixer.output] if self.network is None else [self.mixer.output, self.network.down]
        )

    def _finish(self, y: Float[Tensor, "*position width"]) -> Float[Tensor, "*position width"]:
        if self.network is None or self.network_norm is None:
            return y
        return y + self.network(self.network_norm(y))


class Network(nn.Module):
    """The network at every position: W_2 f(W_1 x), or with a gate W_2 (silu(W_3 x) * W_1 x).

    Args:
        config: settings of the model; its `mlp` chooses relu, the tanh approximation of gelu, or the gate.

    Example:
        >>> Network(LanguageModelConfig(width=6, num_heads=2, mlp="gelu")).up.weight.shape
        torch.Size([24, 6])
    """

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.kind = config.mlp
        self.gate = _linear(config.width, config.mlp_width) if config.mlp == "swiglu" else None
        self.up = _linear(config.width, config.mlp_width)
        self.down = _linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "*position width"]) -> Float[Tensor, "*position width"]:
        """Apply the network.

        Args:
            x: [..., width].

        Returns:
            Its output, in the same shape.
        """
        hidden = self.up(x)
        if self.gate is not None:
            return self.down(silu(self.gate(x)) * hidden)
        return self.down(relu(hidden) if self.kind == "relu" else gelu(hidden, approximate="tanh"))


def require_language_model(model: Any) -> None:
    """Refuse what is no language model that continues texts, such as an auto-encoder.

    Args:
        model: what was given.

    Raises:
        TypeError: it is something else.

    Example:
        >>> require_language_model(nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        TypeError: model is a Linear: must be a LanguageModel
    """
    if not _continues(model):
        hint = ", such as its .model" if _continues(getattr(model, "model", None)) else ""
        raise wrong_type("model", model, f"a LanguageModel{hint}")


def _continues(model: Any) -> bool:
    # By its settings, since a compiled model is of another class.
    return type(getattr(model, "config", None)) is LanguageModelConfig


def _counts(tokens: Tensor, mask: Tensor | None) -> Int[Tensor, "batch time"]:
    """Return 1 where a token is and 0 where padding is."""
    return torch.ones_like(tokens) if mask is None else mask.to(tokens)


def _at(x: Tensor, at: Tensor | None) -> Float[Tensor, "batch scored width"]:
    """Take the positions that logits are wanted for."""
    return x if at is None else x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _norm(config: LanguageModelConfig) -> nn.RMSNorm | nn.LayerNorm:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.width, eps=1e-6)
