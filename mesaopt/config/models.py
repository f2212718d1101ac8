"""Settings of the models: :mod:`mesaopt.models` builds them."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from mesaopt.config.checks import (
    require,
    require_json,
    require_positive,
    require_positive_if_given,
    require_types,
)
from mesaopt.config.tasks import Numbers, TokenSlot
from mesaopt.errors import ConfigError, suggest

MixerName = Literal[
    "linear_attention",
    "softmax_attention",
    "mesa",
    "mesanet2025",
    "gated_linear_attention",
    "delta_rule",
    "gated_delta_rule",
    "longhorn",
]
"""The layers that can mix a sequence: see `mesaopt.models.mixers`. "mesa" is the layer of von Oswald et al.
2023, "mesanet2025" that of 2025."""
FORGETTING_MIXERS: frozenset[MixerName] = frozenset(
    {"gated_linear_attention", "gated_delta_rule", "mesanet2025"}
)
"""Mixers with a forget gate."""


def check_mixers(config: Any) -> None:
    """Refuse unknown mixers, and a cap on forgetting where none of them forgets."""
    require(len(config.mixers) > 0, config, "mixers", "at least one mixer")
    for mixer in config.mixers:
        if mixer not in get_args(MixerName):
            raise ConfigError(f"mixers: {mixer!r}: {suggest(str(mixer), get_args(MixerName))}")
    if config.forget_cap is not None:
        require(0 < config.forget_cap <= 1, config, "forget_cap", "above 0 and at most 1")
        check_forgets(config, "forget_cap", "None")


def check_forgets(config: Any, name: str, without: str) -> None:
    """Refuse a setting of forget gates where no mixer has one."""
    forgets = not FORGETTING_MIXERS.isdisjoint(config.mixers)
    wanted = f"{without}: a forget gate is in {', '.join(sorted(FORGETTING_MIXERS))} only"
    require(forgets, config, name, wanted)


def check_widths(config: Any) -> None:
    """Refuse heads that do not fit the width, and positions where it does not hold pairs."""
    require_positive(config, "width", "num_heads")
    require_positive_if_given(config, "head_dim")
    divides = config.head_dim is not None or config.width % config.num_heads == 0
    wanted = f"a divisor of the width {config.width}, or head_dim must be given"
    require(divides, config, "num_heads", wanted)
    pairs = config.positions in ("none", "rotary") or config.width % 2 == 0
    wanted = f"'none', since a width of {config.width} does not hold pairs of a sine and a cosine"
    require(pairs, config, "positions", wanted)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of sequence mixers over continuous tokens, with a residual stream.

    Example:
        >>> ModelConfig(mixers=("softmax_attention", "mesa"), positions="first_layer").depth
        2
        >>> ModelConfig(mixers=("softmax_atention",))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: mixers: 'softmax_atention': did you mean 'softmax_attention'?
    """

    numbers: ClassVar[Numbers] = "real"
    """The kind of numbers in its weights."""
    must_match_task: ClassVar[dict[str, str]] = {
        "numbers": "numbers",
        "token_dim": "token_dim",
        "output_dim": "dim",
    }
    """Settings that must equal a setting of the task: its name here, and there."""

    kind: Literal["sequence"] = "sequence"
    """The kind of model, in config.json."""
    mixers: tuple[MixerName, ...] = ("linear_attention",)
    """The mixer of each layer, first to last."""
    token_dim: int = 40
    """Width of an input token."""
    output_dim: int = 10
    """Width of a prediction."""
    embed_dim: int | None = None
    """Width of the residual stream after a linear input layer; None: tokens enter as they are."""
    readout: Literal["first_slot", "linear"] = "first_slot"
    """Prediction: the first `output_dim` coordinates of the stream, or a linear output layer."""
    num_heads: int = 4
    """Heads of each mixer."""
    head_dim: int | None = 20
    """Width of a query, key and value of one head; None: the width divided by the heads."""
    positions: Literal["none", "first_layer"] = "none"
    """Whether queries and keys of the first layer also read sinusoidal positions, concatenated with the
    stream, which makes their input twice as wide. Values never do."""
    unit_queries_keys: Literal["none", "after_first"] = "none"
    """Whether queries and keys of the layers after the first are divided by their Euclidean norms. Those of
    delta_rule, gated_delta_rule and mesanet2025 always are."""
    unit_queries_values: Literal["none", "after_first"] = "none"
    """Whether queries and values of the layers after the first are divided by their Euclidean norms: in the
    authors' mesa layer these are what `unit_queries_keys` divides elsewhere. With both, all three are."""
    forget_cap: float | None = None
    """Largest share of the past that a token of full write strength keeps, above 0, at most 1; None: no
    cap. Only for mixers with a forget gate: gated_linear_attention, gated_delta_rule, mesanet2025."""
    mlp_dim: int | None = None
    """Hidden width of the two-layer network after every mixer; None: there is none."""
    initial_std: float = 2e-4
    """Standard deviation of the normal distribution of initial weights."""
    activation_clip: float | None = 4.0
    """The residual stream is clipped to [-activation_clip, activation_clip] after every layer."""

    def __post_init__(self) -> None:
        require_types(self)
        check_mixers(self)
        require_positive(self, "token_dim", "output_dim", "initial_std")
        require_positive_if_given(self, "embed_dim", "mlp_dim", "activation_clip")
        check_widths(self)
        wide_enough = self.readout == "linear" or self.output_dim <= self.width
        require(wide_enough, self, "output_dim", f"at most {self.width}, the width it is read from")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.mixers)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.token_dim if self.embed_dim is None else self.embed_dim

    @property
    def key_width(self) -> int:
        """Width of a query, key and value of one head."""
        return self.width // self.num_heads if self.head_dim is None else self.head_dim


@dataclass(frozen=True, kw_only=True)
class MergedAttentionConfig:
    """One layer of complex linear attention with merged weights, whose output is the prediction.

    K is the block of the key-query matrix between a previous state as key and a current one as query, V
    the block of the output-value matrix on the current state. Their product makes the gradient step.

    Example:
        >>> MergedAttentionConfig(token_slots=("previous", "current"))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: token_slots=('previous', 'current'): must be \
('current', 'previous') or ('zero', 'current', 'previous')
    """

    numbers: ClassVar[Numbers] = "complex"
    """The kind of numbers in its weights."""
    must_match_task: ClassVar[dict[str, str]] = {
        "numbers": "numbers",
        "dim": "dim",
        "token_slots": "token_slots",
    }
    """Settings that must equal a setting of the task: its name here, and there."""

    kind: Literal["merged_attention"] = "merged_attention"
    """The kind of model, in config.json."""
    dim: int = 5
    """Dimension of a state and of a prediction."""
    token_slots: tuple[TokenSlot, ...] = ("current", "previous")
    """Parts of a token: as in the authors' code, or ("zero", "current", "previous") as in the paper."""
    initial: Literal["diagonal", "normal"] = "diagonal"
    """Initial weights: multiples of the identity in K and V and zero elsewhere, or normal numbers."""
    initial_key_query: float = 0.1
    """K starts as this multiple of the identity, a_0 in the paper; only for "diagonal"."""
    initial_value: float = 0.1
    """V starts as this multiple of the identity, b_0 in the paper; only for "diagonal"."""
    initial_std: float = 0.01
    """Standard deviation of the initial numbers, which are real; only for "normal"."""
    blocks: Literal["all", "core"] = "all"
    """Train every block that can reach the prediction, or K and V only, with zero elsewhere."""
    off_diagonal: Literal["trained", "masked"] = "trained"
    """Train K and V whole, or their diagonals only."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "initial_std")
        layouts = (("current", "previous"), ("zero", "current", "previous"))
        wanted = " or ".join(map(str, layouts))
        require(self.token_slots in layouts, self, "token_slots", wanted)

    @property
    def token_dim(self) -> int:
        """Width of a token: slots times `dim`."""
        return len(self.token_slots) * self.dim


def small_transformer(*, token_dim: int, output_dim: int, depth: int = 3) -> ModelConfig:
    """Give the settings of a small softmax transformer, for tokens of any task.

    A stream of width 64, four heads of width 20, hidden layers of width 64, sinusoidal positions in the
    first layer. It trains in minutes on two cores.

    Args:
        token_dim: width of a token.
        output_dim: width of a prediction.
        depth: number of layers, 1 or more.

    Returns:
        The settings.

    Example:
        >>> small_transformer(token_dim=9, output_dim=1).depth
        3
    """
    return ModelConfig(
        mixers=("softmax_attention",) * depth,
        token_dim=token_dim,
        output_dim=output_dim,
        embed_dim=64,
        readout="linear",
        positions="first_layer",
        mlp_dim=64,
        initial_std=0.1,
        activation_clip=None,
    )


@dataclass(frozen=True, kw_only=True)
class OwnModelConfig:
    """A module of your own: how it is recognised, and the object itself, which is not saved.

    :func:`mesaopt.models.own_model` makes one from a module.

    Example:
        >>> OwnModelConfig(name="my_models:Net", weights={"out.weight": "float32 [1, 3]"}).kind
        'own'
    """

    must_match_task: ClassVar[dict[str, str]] = {}
    """Settings that must equal a setting of the task: none, since the module itself is tried out."""

    kind: Literal["own"] = "own"
    """The kind of model, in config.json."""
    name: str
    """"module:Class", or the class alone where the object was made in Python."""
    keywords: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the class, where it has been named."""
    weights: dict[str, str] = field(hash=False)
    """Type and shape of every tensor of the `state_dict`, by name."""
    model: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})
    """The module, or a function that makes it; None in settings that were read from a file."""

    def __post_init__(self) -> None:
        require_types(self)
        require_json(self, "keywords")
