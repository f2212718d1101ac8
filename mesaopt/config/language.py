"""Settings of language models: :class:`mesaopt.models.LanguageModel` is built from them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mesaopt.config.checks import (
    require,
    require_positive,
    require_positive_if_given,
    require_types,
)
from mesaopt.config.models import MixerName, check_forgets, check_mixers, check_widths


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A stack of blocks over discrete tokens, each with a mixer and a network at every position.

    The defaults are those of MesaNet in small; `recipes` has the models of both papers.

    Example:
        >>> LanguageModelConfig(vocabulary=256, mixers=("softmax_attention", "mesa")).depth
        2
        >>> LanguageModelConfig(mixers=("mesanet",))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: mixers: 'mesanet': did you mean 'mesanet2025'?
    """

    must_match_task: ClassVar[dict[str, str]] = {"vocabulary": "vocabulary"}
    """Settings that must equal a setting of the task: its name here, and there."""

    kind: Literal["language"] = "language"
    """The kind of model, in config.json."""
    vocabulary: int = 256
    """Number of different tokens; 256 for bytes."""
    width: int = 128
    """Width of the residual stream."""
    mixers: tuple[MixerName, ...] = ("mesanet2025", "mesanet2025")
    """The mixer of each block, first to last."""
    num_heads: int = 4
    """Heads of each mixer."""
    head_dim: int | None = None
    """Width of a query, key and value of one head; None: the width divided by the heads."""
    window: int | None = None
    """Tokens that softmax attention sees, the current one included; None: all."""
    convolution: int | None = None
    """Length of the short convolution of queries, keys and values in every mixer; None: as the mixer has
    it, 4 in mesanet2025 and none elsewhere."""
    convolve_values: bool = True
    """Whether values are convolved, too; otherwise queries and keys alone, as in the public kernel."""
    head_norm: bool = False
    """Whether the output of every head is divided by its root mean square, as in mesanet2025 always."""
    unit_queries_keys: bool = False
    """Whether queries and keys of all mixers but softmax attention are divided by their Euclidean norms.
    Those of delta_rule, gated_delta_rule and mesanet2025 always are."""
    feature_map: Literal["none", "dpfp1", "dpfp2", "dpfp3"] = "none"
    """Map of queries and keys, for all mixers but softmax attention: DPFP, with its number of shifts. Keys
    become 2, 4 or 6 times as wide."""
    key_shift: bool = False
    """Whether keys are those of the token before: then one layer sees pairs of neighbours."""
    forget_cap: float | None = None
    """Largest share of the past that a token of full write strength keeps, above 0, at most 1; None: no
    cap. Only for mixers with a forget gate."""
    signed_decay: bool = False
    """Whether forget gates are between -1 and 1: then a state can keep a parity. Only for mixers with a
    forget gate."""
    positions: Literal["none", "sinusoidal", "rotary"] = "none"
    """How the model knows positions: not at all, by sinusoids that are added to the embeddings, or in
    softmax attention alone, whose queries and keys are turned by their positions."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by the root of the width where they are read, as in Vaswani et al.,
    section 3.4: next to sinusoids of size 1 a training sees tokens that start at 0.02 late."""
    mlp: Literal["none", "relu", "gelu", "swiglu"] = "swiglu"
    """The network after every mixer: none, W_2 f(W_1 x), or the gated W_2 (silu(W_3 x) * W_1 x)."""
    mlp_dim: int | None = None
    """Hidden width of that network; None: four times the width, or 8/3 of it where it is gated, which are
    as many weights."""
    norm: Literal["rms", "layer"] = "rms"
    """The norm before every mixer, every network and the output."""
    tied: bool = True
    """Whether the output matrix is that of the embeddings."""
    logit_cap: float | None = 30.0
    """Logits z become logit_cap tanh(z / logit_cap); None: they stay."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights; of those before a residual sum, divided by
    sqrt(2 * depth)."""

    def __post_init__(self) -> None:
        require_types(self)
        check_mixers(self)
        require_positive(self, "vocabulary", "initial_std")
        require_positive_if_given(self, "window", "convolution", "mlp_dim", "logit_cap")
        check_widths(self)
        if self.window is not None:
            wanted = "None: there is no softmax_attention in mixers"
            require("softmax_attention" in self.mixers, self, "window", wanted)
        if self.positions == "rotary":
            wanted = "'none' or 'sinusoidal': there is no softmax_attention in mixers"
            require("softmax_attention" in self.mixers, self, "positions", wanted)
            wanted = f"'none' or 'sinusoidal': heads of {self.key_width} do not hold pairs"
            require(self.key_width % 2 == 0, self, "positions", wanted)
        if self.signed_decay:
            check_forgets(self, "signed_decay", "False")
        convolves = self.convolution is not None or "mesanet2025" in self.mixers
        wanted = "False with a convolution, which can learn it"
        require(not (self.key_shift and convolves), self, "key_shift", wanted)
        wanted = "True without a convolution"
        require(self.convolve_values or convolves, self, "convolve_values", wanted)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.mixers)

    @property
    def key_width(self) -> int:
        """Width of a query, key and value of one head."""
        return self.width // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of the network after every mixer."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return 8 * self.width // 3 if self.mlp == "swiglu" else 4 * self.width


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig(LanguageModelConfig):
    """The blocks of a language model, whose last position gives all tokens back: for compression of MAD.

    Example:
        >>> AutoEncoderConfig(vocabulary=16, width=9, num_heads=3)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: width=9: must be even, for pairs of a sine and a cosine
    """

    kind: Literal["auto_encoder"] = "auto_encoder"  # type: ignore[assignment]
    """The kind of model, in config.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        even = self.width % 2 == 0
        require(even, self, "width", "even, for pairs of a sine and a cosine")
