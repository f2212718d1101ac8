"""Settings of the tasks."""

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from mesaopt.config.checks import (
    require,
    require_json,
    require_matrix,
    require_not_negative,
    require_positive,
    require_types,
)
from mesaopt.config.token_tasks import ContinuousMQARConfig, TokenTaskConfig
from mesaopt.errors import ConfigError, suggest

SlotName = Literal["zero", "current", "previous"]
"""Part of a token: nothing, s_t or s_{t-1}."""
TokenSlot = SlotName | int
"""Part of a token: nothing, s_t, s_{t-1}, or s_{t-k} as an integer k of 2 or greater."""
StartName = Literal["full_one", "gaussian", "sparse", "rademacher", "uniform"]
"""Distributions of the first state of an autoregressive process; see :mod:`mesaopt.tasks`."""
Numbers = Literal["real", "complex"]
"""The kind of numbers in states and weights."""
Split = Literal["train", "validation", "test"]
"""Sequences to train on, to tune on, and to measure on: never the same."""
Matrix = tuple[tuple[float, ...], ...]
"""A matrix in a configuration, row by row."""


def as_matrix(rows: Iterable[Iterable[float]]) -> Matrix:
    """Turn a matrix into the tuples that a configuration holds.

    Args:
        rows: nested lists, or an array or a tensor of two axes.

    Returns:
        A tuple of rows, tuples of floats.

    Example:
        >>> as_matrix([[0, -1], [1, 0]])
        ((0.0, -1.0), (1.0, 0.0))
    """
    return tuple(tuple(float(number) for number in row) for row in rows)


def check_slots(slots: Sequence[TokenSlot], name: str = "token_slots") -> None:
    """Refuse slots that a token cannot have.

    Args:
        slots: of a token, one or more.
        name: of the argument, for messages.

    Raises:
        ConfigError: there is none, or one is unknown.

    Example:
        >>> check_slots(("curent",))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: token_slots: 'curent': did you mean 'current'?, or 2, 3, ... for so \
many steps back
    """
    if not slots:
        raise ConfigError(f"{name}={slots!r}: must be at least one slot")
    for slot in slots:
        if not (slot in get_args(SlotName) or (type(slot) is int and slot >= 2)):
            hint = suggest(str(slot), get_args(SlotName))
            raise ConfigError(f"{name}: {slot!r}: {hint}, or 2, 3, ... for so many steps back")


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
    """Kind of numbers in a state."""

    kind: Literal["linear_system"] = "linear_system"
    """Names the task in config.json."""
    dim: int = 10
    """Dimension of a state."""
    length: int = 50
    """Tokens in a sequence; the generator makes one state more, the last target."""
    noise_std: float = 0.01
    """Standard deviation of the process noise, per coordinate and step."""
    state_clip: float = 10.0
    """Every coordinate of a state is clipped to [-state_clip, state_clip] after every step."""
    start: Literal["uniform", "normal"] = "uniform"
    """First state: uniform on [-1, 1] (the authors' code) or standard normal (the paper)."""
    transition: Literal["orthogonal", "contracting", "fixed"] = "orthogonal"
    """The matrix: orthogonal, new in every sequence; contracting, new in every sequence; or one
    matrix for all sequences, the negative control."""
    teacher_seed: int = 0
    """Seed of that one matrix, then orthogonal, independent of the seed of the sequences; used by fixed."""
    matrix: Matrix | None = None
    """That one matrix itself, dim rows of dim numbers (:func:`as_matrix`), in place of a drawn one; used by
    fixed, and refused elsewhere."""
    token_slots: tuple[TokenSlot, ...] = ("zero", "current", "current", "previous")
    """Contents of a token, slot by slot; each slot is `dim` wide."""

    start_range: ClassVar[float] = 1.0
    """Largest coordinate of a uniform first state."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "length", "state_clip")
        require_not_negative(self, "noise_std", "teacher_seed")
        check_slots(self.token_slots)
        if self.matrix is not None:
            is_fixed = self.transition == "fixed"
            require(is_fixed, self, "transition", "'fixed' where a matrix is given, or matrix=None")
            require_matrix(self, "matrix", rows=self.dim, columns=self.dim)


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
    """Kind of numbers in a state."""

    kind: Literal["ar_process"] = "ar_process"
    """Names the task in config.json."""
    dim: int = 5
    """Dimension of a state."""
    length: int = 100
    """States in a sequence, x_1 to x_T; the last is only a target, so there are T - 1 tokens."""
    start: StartName = "gaussian"
    """Name of the distribution of x_1; see :func:`mesaopt.tasks.initial_states`."""
    start_scale: float = 1.0
    """Scale of that distribution."""
    token_slots: tuple[TokenSlot, ...] = ("current", "previous")
    """Contents of a token: this in the authors' code, with a "zero" in front in the paper."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "start_scale")
        wanted = "3 or greater: two states make no context with a target"
        require(self.length >= 3, self, "length", wanted)
        check_slots(self.token_slots)


@dataclass(frozen=True, kw_only=True)
class PartiallyObservedConfig(_Slotted):
    """Sequences of a rotating linear system, seen through a matrix that is smaller than its state.

    Example:
        >>> PartiallyObservedConfig(token_slots=stacked(16)).token_dim
        80
    """

    numbers: ClassVar[Numbers] = "real"
    """Kind of numbers in an observation."""

    kind: Literal["partially_observed"] = "partially_observed"
    """Names the task in config.json."""
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
    """First hidden state: uniform on [-1, 1] (authors' code) or standard normal (paper)."""
    token_slots: tuple[TokenSlot, ...] = ("current",)
    """Contents of a token: one observation, or several of them by :func:`stacked`."""

    start_range: ClassVar[float] = 1.0
    """Largest coordinate of a uniform first hidden state."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "hidden_dim", "length", "state_clip", "observation_std")
        require_not_negative(self, "noise_std", "observation_noise_std")
        check_slots(self.token_slots)


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
    """Kind of numbers in a state."""

    kind: Literal["nonlinear_system"] = "nonlinear_system"
    """Names the task in config.json."""
    dim: int = 10
    """Dimension of a state."""
    length: int = 50
    """Tokens in a sequence; the generator makes one state more, the last target."""
    hidden_dim: int = 40
    """Width of the hidden layer of the teacher, the fixed network."""
    teacher_std: float = 1.1
    """Standard deviation of the teacher's weights."""
    teacher_seed: int = 0
    """Seed of the teacher's weights, independent of the seed of the sequences."""
    teacher_hidden: Matrix | None = None
    """The teacher's first weights A themselves, hidden_dim rows of dim numbers (:func:`as_matrix`), not
    drawn ones; given together with teacher_output."""
    teacher_output: Matrix | None = None
    """The teacher's second weights B, dim rows of hidden_dim numbers."""
    normalisation: Literal["l2", "none"] = "l2"
    """The teacher's output is divided by its norm (l2, the authors' code) or left as it is (none, the
    paper's text: states then grow about sixteenfold with every step)."""
    noise_std: float = 0.01
    """Standard deviation of the process noise, per coordinate and step."""
    start: Literal["uniform", "normal"] = "uniform"
    """First state: uniform on [-0.25, 0.25] (authors' code) or standard normal (paper)."""
    token_slots: tuple[TokenSlot, ...] = ("current",)
    """Contents of a token, slot by slot; each slot is `dim` wide."""

    start_range: ClassVar[float] = 0.25
    """Largest coordinate of a uniform first state."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "length", "hidden_dim", "teacher_std")
        require_not_negative(self, "noise_std", "teacher_seed")
        check_slots(self.token_slots)
        missing = {self.teacher_hidden is None, self.teacher_output is None}
        if len(missing) == 2:
            raise ConfigError("teacher_hidden: must be given with teacher_output, or neither")
        if missing == {False}:
            require_matrix(self, "teacher_hidden", rows=self.hidden_dim, columns=self.dim)
            require_matrix(self, "teacher_output", rows=self.dim, columns=self.hidden_dim)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(_Slotted):
    """Few-shot linear regression in one sequence: inputs and answers take turns, a new matrix each.

    Example:
        >>> FewShotConfig(layout="triples", prefix_length=20).num_pairs
        68
    """

    numbers: ClassVar[Numbers] = "real"
    """Kind of numbers in an input."""

    kind: Literal["few_shot"] = "few_shot"
    """Names the task in config.json."""
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
    """Distribution of x_i: uniform on [-1, 1] (the authors' code) or standard normal (the paper)."""

    token_slots: ClassVar[tuple[TokenSlot, ...]] = ("current",)
    """Tokens are plain."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "length")
        require_not_negative(self, "noise_std", "prefix_length")
        room = self.prefix_length < self.length
        require(room, self, "prefix_length", f"less than length={self.length}")
        if self.switch_after is not None:
            inside = 1 <= self.switch_after < self.num_pairs
            wanted = f"between 1 and {self.num_pairs - 1}, one less than the pairs"
            require(inside, self, "switch_after", wanted)

    @property
    def period(self) -> int:
        """Places from one input to the next."""
        return 2 if self.layout == "pairs" else 3

    @property
    def num_pairs(self) -> int:
        """Inputs in a sequence, each with an answer to predict."""
        return -(-(self.length - self.prefix_length) // self.period)


@dataclass(frozen=True, kw_only=True)
class OwnTaskConfig:
    """A task of your own: how it is recognised, and the object itself, which is not saved.

    :func:`mesaopt.tasks.own_task` makes one from an object.

    Example:
        >>> sizes = {"token_dim": 3, "dim": 1, "length": 8}
        >>> OwnTaskConfig(name="my_tasks:Sparse", keywords={"dim": 2}, **sizes, first_batch=()).numbers
        'real'
    """

    kind: Literal["own"] = "own"
    """Names the task in config.json."""
    name: str
    """"module:Class", or the class alone where the object was made in Python."""
    keywords: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the class, where it has been named."""
    numbers: Numbers = "real"
    """Kind of numbers in a token."""
    token_dim: int
    """Width of a token."""
    dim: int
    """Width of a target."""
    length: int
    """Tokens in a sequence."""
    first_batch: tuple[float, ...] = field(metadata={"measured": True})
    """Numbers computed from the first sequences, by which the task is recognised."""
    task: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})
    """The object; None in settings that were read from a file."""

    token_slots: ClassVar[tuple[TokenSlot, ...]] = ()
    """None: tokens are what the task makes them."""

    def __post_init__(self) -> None:
        require_types(self)
        require_json(self, "keywords")
        require_positive(self, "token_dim", "dim", "length")


GeneratedTaskConfig = (
    LinearSystemConfig
    | ARProcessConfig
    | PartiallyObservedConfig
    | NonlinearSystemConfig
    | FewShotConfig
)
"""The settings of a task of the library."""
TaskConfig = (
    LinearSystemConfig
    | ARProcessConfig
    | PartiallyObservedConfig
    | NonlinearSystemConfig
    | FewShotConfig
    | OwnTaskConfig
    | ContinuousMQARConfig
    | TokenTaskConfig
)
"""The settings of any task; `kind` says in JSON which."""
