"""Every setting of a run, as frozen dataclasses that check themselves.

A configuration is plain Python: variants are made with :func:`dataclasses.replace`, stored as JSON
with :func:`to_dict`, and read back with :func:`from_dict`, which is strict: an unknown or misspelt
key is an error that suggests the right one.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from mesaopt.errors import ConfigError, suggest

SlotName = Literal["zero", "current", "previous"]
TokenSlot = SlotName | int
"""Part of a token: nothing, s_t, s_{t-1}, or s_{t-k} as an integer k of 2 or greater."""
MixerName = Literal["linear_attention", "softmax_attention", "mesa"]
StartName = Literal["full_one", "gaussian", "sparse", "rademacher", "uniform"]
Numbers = Literal["real", "complex"]

Config = TypeVar("Config")


def _require(condition: bool, config: object, name: str, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={getattr(config, name)!r}: must be {wanted}")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, config, name, "greater than 0")


def _require_not_negative(config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) >= 0, config, name, "0 or greater")


def _require_choices(config: object) -> None:
    """Check every ``Literal`` field, which Python itself leaves unchecked."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ConfigError(f"{name}={value!r}: {suggest(str(value), get_args(hint))}")


def _require_slots(config: "TaskConfig") -> None:
    _require(len(config.token_slots) > 0, config, "token_slots", "at least one slot")
    for slot in config.token_slots:
        if not (slot in get_args(SlotName) or (type(slot) is int and slot >= 2)):
            hint = suggest(str(slot), get_args(SlotName))
            raise ConfigError(f"token_slots: {slot!r}: {hint}, or 2, 3, ... for so many steps back")


def stacked(count: int, *, num_slots: int | None = None) -> tuple[TokenSlot, ...]:
    """Lay out tokens that show the last few states, newest first, and zeros behind them.

    Args:
        count: states in a token, 1 or more; 1 makes plain tokens.
        num_slots: slots in a token, at least `count`; that many if not given.

    Returns:
        (s_t, s_{t-1}, ..., s_{t-count+1}, 0, ..., 0) as slots; what lies before the first state is zero.

    Raises:
        ConfigError: count or num_slots is out of range.

    Source: the tokens of von Oswald et al. for partial observation.

    Example:
        >>> stacked(3, num_slots=4)
        ('current', 'previous', 2, 'zero')
    """
    if count < 1:
        raise ConfigError(f"count={count}: must be 1 or greater")
    if num_slots is not None and num_slots < count:
        raise ConfigError(f"num_slots={num_slots}: must be {count} or greater, the states shown")
    shown: tuple[TokenSlot, ...] = ("current", "previous", *range(2, count))
    return shown[:count] + ("zero",) * ((num_slots or count) - count)


class _Slotted:
    """A task whose tokens are states side by side."""

    @property
    def token_dim(self) -> int:
        """Width of a token: slots times `dim`."""
        config = typing.cast("TaskConfig", self)
        return len(config.token_slots) * config.dim


@dataclass(frozen=True, kw_only=True)
class LinearSystemConfig(_Slotted):
    """Sequences of a fully observed linear system: rotating, contracting, or with one fixed matrix.

    Example:
        >>> LinearSystemConfig(dim=0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: dim=0: must be greater than 0
    """

    numbers: ClassVar[Numbers] = "real"
    """What a state is made of."""

    kind: Literal["linear_system"] = "linear_system"
    """Says in config.json which task it is."""
    dim: int = 10
    """Dimension of a state."""
    length: int = 50
    """Tokens in a sequence; the generator makes one state more, the last target."""
    noise_std: float = 0.01
    """Standard deviation of the process noise, per coordinate and step."""
    state_clip: float = 10.0
    """Every coordinate of a state is clipped to [-state_clip, state_clip] after every step."""
    start: Literal["uniform", "normal"] = "uniform"
    """Law of the first state: uniform on [-1, 1] (the authors' code) or standard normal (the paper)."""
    transition: Literal["orthogonal", "contracting", "fixed"] = "orthogonal"
    """Law of the matrix: orthogonal, new in every sequence; contracting, new in every sequence; or one
    orthogonal matrix for all sequences, the negative control."""
    teacher_seed: int = 0
    """What that one matrix is drawn from, whatever the seed of the sequences; used by fixed."""
    token_slots: tuple[TokenSlot, ...] = ("zero", "current", "current", "previous")
    """What a token is made of, slot by slot; each slot is `dim` wide."""

    start_range: ClassVar[float] = 1.0
    """Largest coordinate of a uniform first state."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "length", "state_clip")
        _require_not_negative(self, "noise_std", "teacher_seed")
        _require_slots(self)


@dataclass(frozen=True, kw_only=True)
class ARProcessConfig(_Slotted):
    """Complex states that a diagonal unitary matrix turns, a new one in every sequence.

    Example:
        >>> ARProcessConfig(length=2)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: length=2: must be 3 or greater: two states make no context with a target
    """

    numbers: ClassVar[Numbers] = "complex"
    """What a state is made of."""

    kind: Literal["ar_process"] = "ar_process"
    """Says in config.json which task it is."""
    dim: int = 5
    """Dimension of a state."""
    length: int = 100
    """States in a sequence, x_1 to x_T; the last is only a target, so there are T - 1 tokens."""
    start: StartName = "gaussian"
    """Law of x_1; see :func:`mesaopt.tasks.start_law`."""
    start_scale: float = 1.0
    """Scale of that law."""
    token_slots: tuple[TokenSlot, ...] = ("current", "previous")
    """What a token is made of: this in the authors' code, with a "zero" in front in the paper."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "start_scale")
        wanted = "3 or greater: two states make no context with a target"
        _require(self.length >= 3, self, "length", wanted)
        _require_slots(self)


@dataclass(frozen=True, kw_only=True)
class PartiallyObservedConfig(_Slotted):
    """Sequences of a rotating linear system, seen through a matrix that is smaller than its state.

    Example:
        >>> PartiallyObservedConfig(token_slots=stacked(16)).token_dim
        80
    """

    numbers: ClassVar[Numbers] = "real"
    """What an observation is made of."""

    kind: Literal["partially_observed"] = "partially_observed"
    """Says in config.json which task it is."""
    dim: int = 5
    """Dimension of an observation, and of a prediction."""
    hidden_dim: int = 15
    """Dimension of a hidden state."""
    length: int = 50
    """Tokens in a sequence; the generator makes one observation more, the last target."""
    noise_std: float = 0.01
    """Standard deviation of the process noise, per coordinate and step."""
    observation_noise_std: float = 0.01
    """Standard deviation of the noise of an observation, per coordinate."""
    observation_std: float = 0.5
    """Standard deviation of the entries of the observation matrix, as in the authors' code; the root of 0.5
    where the paper's N(0, 0.5) is read as a variance."""
    state_clip: float = 10.0
    """Every coordinate of a hidden state is clipped to [-state_clip, state_clip] after every step."""
    start: Literal["uniform", "normal"] = "uniform"
    """Law of the first hidden state: uniform on [-1, 1] (authors' code) or standard normal (paper)."""
    token_slots: tuple[TokenSlot, ...] = ("current",)
    """What a token is made of: one observation, or several of them by :func:`stacked`."""

    start_range: ClassVar[float] = 1.0
    """Largest coordinate of a uniform first hidden state."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "hidden_dim", "length", "state_clip", "observation_std")
        _require_not_negative(self, "noise_std", "observation_noise_std")
        _require_slots(self)


@dataclass(frozen=True, kw_only=True)
class NonlinearSystemConfig(_Slotted):
    """Sequences of a nonlinear system: a fixed network, then a rotation that is new in every sequence.

    Example:
        >>> NonlinearSystemConfig(normalisation="l1")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: normalisation='l1': allowed: l2, none
    """

    numbers: ClassVar[Numbers] = "real"
    """What a state is made of."""

    kind: Literal["nonlinear_system"] = "nonlinear_system"
    """Says in config.json which task it is."""
    dim: int = 10
    """Dimension of a state."""
    length: int = 50
    """Tokens in a sequence; the generator makes one state more, the last target."""
    hidden_dim: int = 40
    """Width of the hidden layer of the teacher, the fixed network."""
    teacher_std: float = 1.1
    """Standard deviation of the teacher's weights."""
    teacher_seed: int = 0
    """What the teacher's weights are drawn from, whatever the seed of the sequences."""
    normalisation: Literal["l2", "none"] = "l2"
    """What is done to the teacher's output: divided by its norm (the authors' code) or nothing (the paper's
    text, where states then grow some sixteenfold with every step)."""
    noise_std: float = 0.01
    """Standard deviation of the process noise, per coordinate and step."""
    start: Literal["uniform", "normal"] = "uniform"
    """Law of the first state: uniform on [-0.25, 0.25] (authors' code) or standard normal (paper)."""
    token_slots: tuple[TokenSlot, ...] = ("current",)
    """What a token is made of, slot by slot; each slot is `dim` wide."""

    start_range: ClassVar[float] = 0.25
    """Largest coordinate of a uniform first state."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "length", "hidden_dim", "teacher_std")
        _require_not_negative(self, "noise_std", "teacher_seed")
        _require_slots(self)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(_Slotted):
    """Few-shot linear regression in one sequence: inputs and answers take turns, a new matrix each.

    Example:
        >>> FewShotConfig(layout="triples", prefix_length=20).num_pairs
        68
    """

    numbers: ClassVar[Numbers] = "real"
    """What an input is made of."""

    kind: Literal["few_shot"] = "few_shot"
    """Says in config.json which task it is."""
    dim: int = 10
    """Dimension of an input and of an answer."""
    length: int = 224
    """Tokens in a sequence, the prefix included: 112 pairs, 75 triples, or 68 triples behind 20 vectors."""
    layout: Literal["pairs", "triples"] = "pairs"
    """x_1, y_1, x_2, y_2, ...; or x_1, y_1, EOS, x_2, y_2, EOS, ..., with room for a separator vector."""
    prefix_length: int = 0
    """Places in front with room for vectors of one's own."""
    switch_after: int | None = None
    """Pairs after which another matrix takes over; None: one matrix throughout."""
    noise_std: float = 0.01
    """Standard deviation of the noise of an answer, per coordinate."""
    inputs: Literal["uniform", "normal"] = "uniform"
    """Law of x_i: uniform on [-1, 1] (the authors' code) or standard normal (the paper)."""

    token_slots: ClassVar[tuple[TokenSlot, ...]] = ("current",)
    """Tokens are plain."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "length")
        _require_not_negative(self, "noise_std", "prefix_length")
        room = self.prefix_length < self.length
        _require(room, self, "prefix_length", f"less than length={self.length}")
        if self.switch_after is not None:
            inside = 1 <= self.switch_after < self.num_pairs
            wanted = f"between 1 and {self.num_pairs - 1}, one less than the pairs"
            _require(inside, self, "switch_after", wanted)

    @property
    def period(self) -> int:
        """Places from one input to the next."""
        return 2 if self.layout == "pairs" else 3

    @property
    def num_pairs(self) -> int:
        """Inputs in a sequence, each with an answer to predict."""
        return -(-(self.length - self.prefix_length) // self.period)


TaskConfig = (
    LinearSystemConfig
    | ARProcessConfig
    | PartiallyObservedConfig
    | NonlinearSystemConfig
    | FewShotConfig
)
"""The settings of any task; `kind` says in JSON which."""


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
    """What its weights are made of."""
    fits: ClassVar[dict[str, str]] = {
        "numbers": "numbers",
        "token_dim": "token_dim",
        "output_dim": "dim",
    }
    """What has to be equal to what of the task."""

    kind: Literal["sequence"] = "sequence"
    """Says in config.json which model it is."""
    mixers: tuple[MixerName, ...] = ("linear_attention",)
    """The mixer of each layer, first to last."""
    token_dim: int = 40
    """Width of an input token."""
    output_dim: int = 10
    """Width of a prediction."""
    embed_dim: int | None = None
    """Width of the residual stream behind a linear input layer; None: tokens enter as they are."""
    readout: Literal["first_slot", "linear"] = "first_slot"
    """Prediction: the first `output_dim` coordinates of the stream, or a linear output layer."""
    num_heads: int = 4
    """Heads of each mixer."""
    head_dim: int | None = 20
    """Width of a query, key and value of one head; None: the width divided by the heads."""
    positions: Literal["none", "first_layer"] = "none"
    """Whether queries and keys of the first layer also read where they stand, as sines and cosines laid
    beside the stream, which makes them twice as wide. Values never do."""
    unit_queries_keys: Literal["none", "after_first"] = "none"
    """Whether queries and keys of the layers after the first are divided by their Euclidean norms."""
    mlp_dim: int | None = None
    """Hidden width of the two-layer network behind every mixer; None: there is none."""
    initial_std: float = 2e-4
    """Standard deviation of the normal law that every weight starts from."""
    activation_clip: float | None = 4.0
    """The residual stream is clipped to [-activation_clip, activation_clip] after every layer."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(len(self.mixers) > 0, self, "mixers", "at least one mixer")
        for mixer in self.mixers:
            if mixer not in get_args(MixerName):
                raise ConfigError(f"mixers: {mixer!r}: {suggest(mixer, get_args(MixerName))}")
        _require_positive(self, "token_dim", "output_dim", "num_heads", "initial_std")
        for name in ("embed_dim", "head_dim", "mlp_dim", "activation_clip"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        divides = self.head_dim is not None or self.width % self.num_heads == 0
        wanted = f"a divisor of the width {self.width}, or head_dim must be given"
        _require(divides, self, "num_heads", wanted)
        fits = self.readout == "linear" or self.output_dim <= self.width
        _require(fits, self, "output_dim", f"at most {self.width}, the width it is read from")
        pairs = self.positions == "none" or self.width % 2 == 0
        wanted = f"'none', since a width of {self.width} does not hold pairs of a sine and a cosine"
        _require(pairs, self, "positions", wanted)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.mixers)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.token_dim if self.embed_dim is None else self.embed_dim


@dataclass(frozen=True, kw_only=True)
class MergedAttentionConfig:
    """One layer of complex linear attention with merged weights, and nothing around it.

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
    """What its weights are made of."""
    fits: ClassVar[dict[str, str]] = {
        "numbers": "numbers",
        "dim": "dim",
        "token_slots": "token_slots",
    }
    """What has to be equal to what of the task."""

    kind: Literal["merged_attention"] = "merged_attention"
    """Says in config.json which model it is."""
    dim: int = 5
    """Dimension of a state and of a prediction."""
    token_slots: tuple[TokenSlot, ...] = ("current", "previous")
    """Of the tokens it reads: as in the authors' code, or ("zero", "current", "previous"), the paper's."""
    initial: Literal["diagonal", "normal"] = "diagonal"
    """Start from multiples of the identity in K and V and zero elsewhere, or from normal entries."""
    initial_key_query: float = 0.1
    """K starts as this multiple of the identity, a_0 in the paper; used by diagonal."""
    initial_value: float = 0.1
    """V starts as this multiple of the identity, b_0 in the paper; used by diagonal."""
    initial_std: float = 0.01
    """Standard deviation of the entries, which are real; used by normal."""
    blocks: Literal["all", "core"] = "all"
    """Train every block that can reach the prediction, or K and V only, with zero elsewhere."""
    off_diagonal: Literal["trained", "masked"] = "trained"
    """Train K and V whole, or their diagonals only."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "dim", "initial_std")
        layouts = (("current", "previous"), ("zero", "current", "previous"))
        wanted = " or ".join(map(str, layouts))
        _require(self.token_slots in layouts, self, "token_slots", wanted)

    @property
    def token_dim(self) -> int:
        """Width of a token: slots times `dim`."""
        return len(self.token_slots) * self.dim


NetworkConfig = ModelConfig | MergedAttentionConfig
"""The settings of any model; `kind` says in JSON which."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which optimiser minimises what: by default AdamW, the mean loss of fresh sequences at every step.

    Example:
        >>> TrainConfig(schedule="linear")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: schedule='linear': allowed: constant, warmup_cosine
    """

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 256
    """Sequences in a step."""
    data: Literal["fresh", "fixed"] = "fresh"
    """New sequences at every step, or the same ones: full-batch training on `batch_size` sequences."""
    positions: Literal["mean", "sum"] = "mean"
    """The loss of a sequence, in training and in tests: mean or sum over the scored positions."""
    optimizer: Literal["adamw", "gradient_descent"] = "adamw"
    """AdamW, or plain gradient descent: no momentum, no weight decay."""
    learning_rate: float = 2e-4
    """The constant, or the peak, learning rate."""
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    """Constant, or linear warm-up to the peak and cosine decay to `final_learning_rate`."""
    warmup_steps: int = 1000
    """Steps from 0 to the peak; used by warmup_cosine."""
    decay_steps: int = 30_000
    """Step at which the cosine has come down, warm-up included; used by warmup_cosine."""
    final_learning_rate: float = 1e-5
    """Where the cosine ends; used by warmup_cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on every parameter; used by adamw."""
    gradient_clip: float | None = 1.0
    """Every element of every gradient is clipped to [-gradient_clip, gradient_clip], real and imaginary
    part alike; None: as it is."""
    evaluate_every: int = 100
    """Steps between two test losses; a checkpoint is written at each."""
    evaluation_sequences: int = 2560
    """Test sequences, the same at every evaluation."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(
            self,
            *("steps", "batch_size", "learning_rate"),
            *("evaluate_every", "evaluation_sequences"),
        )
        if self.gradient_clip is not None:
            _require_positive(self, "gradient_clip")
        _require_not_negative(self, "weight_decay", "warmup_steps", "final_learning_rate")
        if self.schedule == "warmup_cosine":
            later = self.decay_steps > self.warmup_steps
            _require(later, self, "decay_steps", f"greater than warmup_steps={self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that determines a trained model: recipe name, task, model, training and seed.

    Example:
        >>> RunConfig(recipe="mine", seed=-1)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: seed=-1: must be 0 or greater
    """

    recipe: str
    """Name of the recipe it came from."""
    seed: int = 0
    """Seed of the initial weights and of the training sequences."""
    task: TaskConfig = field(default_factory=LinearSystemConfig)
    """The sequences."""
    model: NetworkConfig = field(default_factory=ModelConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, self, "seed", "0 or greater")
        for ours, theirs in self.model.fits.items():
            have, want = getattr(self.model, ours), getattr(self.task, theirs)
            if have != want:
                raise ConfigError(f"model.{ours}={have!r}: must be {want!r}, the task's {theirs}")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain JSON values.

    Args:
        config: any dataclass of this module.

    Returns:
        Nested dictionaries, with lists in place of tuples.

    Example:
        >>> to_dict(LinearSystemConfig())["token_slots"]
        ['zero', 'current', 'current', 'previous']
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[Config], data: Any, *, where: str = "config") -> Config:
    """Build a configuration from JSON values, refusing whatever is not exactly one.

    Args:
        cls: the dataclass wanted.
        data: what :func:`to_dict` gave, usually read from `config.json`.
        where: how an error message calls the place of `data`.

    Returns:
        The configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.

    Example:
        >>> from_dict(TrainConfig, {"learning_rat": 1e-3})
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: config: unknown key 'learning_rat'; did you mean 'learning_rate'?
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {data!r}: must be an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {name!r}; {suggest(name, fields)}")
    for name, f in fields.items():
        has_default = not (f.default is f.default_factory is dataclasses.MISSING)
        if name not in data and not has_default:
            raise ConfigError(f"{where}: key {name!r} is missing")
    values = {name: _convert(hints[name], data[name], f"{where}.{name}") for name in data}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Read one JSON value as the type `hint`, one of those that this module uses."""
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is types.UnionType and types.NoneType in arguments:  # only `X | None` occurs
        return None if value is None else _convert(arguments[0], value, where)
    if origin is types.UnionType:
        return from_dict(_member(arguments, value, where), value, where=where)
    if hint == TokenSlot:
        return value  # the task itself says what is a slot
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    if origin is Literal:
        raise ConfigError(f"{where}={value!r}: {suggest(str(value), arguments)}")
    raise ConfigError(f"{where}={value!r}: must be of type {getattr(hint, '__name__', hint)}")


def _member(members: tuple[type, ...], value: Any, where: str) -> type:
    """Pick the dataclass that `kind` names; the first one where there is none, as in old run folders."""
    by_kind = {member.kind: member for member in members}  # type: ignore[attr-defined]
    kind = value["kind"] if isinstance(value, dict) and "kind" in value else next(iter(by_kind))
    if kind not in by_kind:
        raise ConfigError(f"{where}.kind={kind!r}: {suggest(str(kind), by_kind)}")
    return by_kind[kind]


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Change settings given as text.

    Args:
        config: a configuration.
        assignments: "train.steps=500" or "model.mixers=['mesa']"; values are JSON or plain words. Another
            `kind` begins with the defaults of that kind, whatever is assigned to it beside.

    Returns:
        The changed configuration, checked.

    Raises:
        ConfigError: a name or a value is wrong.

    Example:
        >>> override(TrainConfig(), ["steps=500", "schedule=warmup_cosine"]).steps
        500
        >>> override(TrainConfig(), ["step=500"])
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: config: unknown key 'step'; did you mean 'steps'?
    """
    data = to_dict(config)
    for assignment in sorted(assignments, key=lambda text: ".kind=" not in text):  # kinds first
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"set={assignment!r}: must look like train.steps=500")
        *parents, last = name.split(".")
        place = data
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                raise ConfigError(f"set={assignment!r}: {suggest(parent, place)}")
            place = place[parent]
        if last == "kind" and place.get(last) != text:
            place.clear()
        try:
            place[last] = json.loads(text.replace("'", '"'))
        except json.JSONDecodeError:
            place[last] = text
    return from_dict(type(config), data)


def differences(ours: Any, theirs: Any, *, where: str = "") -> list[str]:
    """List the settings in which two configurations of one class differ; of two kinds, the kinds.

    Args:
        ours: a configuration.
        theirs: another one.
        where: prefix of the names.

    Returns:
        One line a setting, "train.steps: 100, not 200", in the order of the fields.

    Example:
        >>> differences(TrainConfig(steps=100), TrainConfig(steps=200))
        ['steps: 100, not 200']
    """
    lines = []
    if type(ours) is not type(theirs):
        return [f"{where}kind: {ours.kind!r}, not {theirs.kind!r}"]
    for f in dataclasses.fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        if dataclasses.is_dataclass(a):
            lines += differences(a, b, where=f"{where}{f.name}.")
        elif a != b:
            lines.append(f"{where}{f.name}: {a!r}, not {b!r}")
    return lines
