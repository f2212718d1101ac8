"""Settings of the tasks on tokens: whole numbers below a vocabulary, one or more of them to predict."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from mesaopt.config.checks import (
    require,
    require_not_negative,
    require_positive,
    require_positive_if_given,
    require_types,
)
from mesaopt.errors import ConfigError

Setting = tuple[int, ...]
"""A difficulty of a recall task: tokens, pairs, and for training the number of sequences."""
MADName = Literal[
    "in_context_recall",
    "noisy_recall",
    "fuzzy_recall",
    "memorization",
    "compression",
    "selective_copying",
]
LARGEST_VOCABULARY = 2**16
"""Tokens of a text are stored as 16-bit numbers."""


class OnTokens:
    """Base of the settings of a task on tokens; each has a `vocabulary` and a `length` besides."""

    token_slots: ClassVar[tuple[()]] = ()
    """None: tokens are what the task makes them."""

    @property
    def dim(self) -> int:
        """Numbers in a prediction: one logit for each token."""
        return cast(Any, self).vocabulary

    @property
    def gives_back(self) -> bool:
        """Whether the targets are the tokens themselves, which takes an auto-encoder."""
        return False


@dataclass(frozen=True, kw_only=True)
class TextConfig(OnTokens):
    """Text of a corpus in stretches of one length; the target of each token is the next one.

    Example:
        >>> TextConfig(vocabulary=100_000)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: vocabulary=100000: must be between 2 and 65536
    """

    kind: Literal["text"] = "text"
    """Names the task in config.json."""
    corpus: str = "stdlib"
    """The sources of Python's standard library; or a file, a folder, "hf:NAME", or a folder that
    `mesaopt data prepare` wrote."""
    tokenizer: str = "bytes"
    """Bytes, or a file tokenizer.json; a prepared folder has its own."""
    vocabulary: int = 256
    """Number of different tokens, those of the tokenizer or more."""
    length: int = 512
    """Tokens in a stretch; the corpus gives one more, the last target."""
    checksum: str = ""
    """Of the tokens, as `mesaopt data prepare` prints it: another corpus is then refused. Empty: any."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.corpus != "", self, "corpus", "a file, a folder, 'stdlib' or 'hf:NAME'")
        require_positive(self, "length")
        fits = 2 <= self.vocabulary <= LARGEST_VOCABULARY
        require(fits, self, "vocabulary", f"between 2 and {LARGEST_VOCABULARY}")


@dataclass(frozen=True, kw_only=True)
class MQARConfig(OnTokens):
    """Multi-query associative recall: keys and values, then queries that ask for the values.

    Example:
        >>> MQARConfig(length=16, pairs=5)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: pairs=5: must be 4 or less, with as many tokens for the queries as for \
the pairs in length=16
    """

    kind: Literal["mqar"] = "mqar"
    """Names the task in config.json."""
    vocabulary: int = 8192
    """Number of tokens: 0 is nothing, keys come from the first half, values from the second."""
    length: int = 64
    """Tokens in a sequence, even."""
    pairs: int = 4
    """Keys with a value, each asked for once."""
    updates: int = 0
    """Keys that are given another value behind all pairs: the overwriting task."""
    fill: Literal["zero", "random"] = "zero"
    """Tokens between the queries: zeros (ICLR 2024), or random ones (Based)."""
    power: float = 0.01
    """A query stands in slot i with probability proportional to i^(power - 1)."""
    examples: int | None = 100_000
    """Different training sequences, shown in another order in every epoch; None: new ones at every step."""
    train_also: tuple[Setting, ...] = ()
    """Further (length, pairs, examples) to train on; a batch holds sequences of one setting."""
    test_on: tuple[Setting, ...] = ()
    """The (length, pairs) of tests, batch by batch in turn; those of training if empty."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "length", "pairs", "power")
        require_not_negative(self, "updates")
        require_positive_if_given(self, "examples")
        require(self.vocabulary >= 4, self, "vocabulary", "4 or greater")
        self._check_fits("pairs", self.length, self.pairs)
        check_settings(self, "train_also", ("length", "pairs", "examples"))
        check_settings(self, "test_on", ("length", "pairs"))
        for name in ("train_also", "test_on"):
            for length, pairs, *_ in getattr(self, name):
                self._check_fits(name, length, pairs)

    def _check_fits(self, name: str, length: int, pairs: int) -> None:
        """Refuse more pairs than fit into a sequence or than there are keys, and fewer than updates."""
        at = "" if name == "pairs" else f"{name}: "
        if length % 2:
            raise ConfigError(f"{at}length={length}: must be even")
        if self.updates > pairs:
            raise ConfigError(f"{at}updates={self.updates}: must be at most pairs={pairs}")
        most = (length // 2 - self.updates) // 2
        if pairs > most:
            raise ConfigError(
                f"{at}pairs={pairs}: must be {most} or less, with as many tokens for the queries as for "
                f"the pairs in length={length}"
            )
        if pairs > self.vocabulary // 2 - 1:
            wanted = f"less than half of vocabulary={self.vocabulary}"
            raise ConfigError(f"{at}pairs={pairs}: must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class ContinuousMQARConfig:
    """Associative recall on vectors: tokens [key, value], then [key, 0], with fixed codes on the sphere.

    Example:
        >>> config = ContinuousMQARConfig(dim=64, pairs=16)
        >>> config.token_dim, config.length
        (128, 32)
    """

    numbers: ClassVar[Literal["real"]] = "real"
    """Kind of numbers in a token."""
    token_slots: ClassVar[tuple[()]] = ()
    """None: tokens are keys and values."""

    kind: Literal["continuous_mqar"] = "continuous_mqar"
    """Names the task in config.json."""
    dim: int = 64
    """Width of a key and of a value."""
    pairs: int = 16
    """Keys with a value, each asked for once."""
    passes: int = 1
    """Times that all pairs are shown, each time in another order."""
    examples: int | None = None
    """Different training sequences, shown in another order in every epoch; None: new ones at every step."""
    train_also: tuple[Setting, ...] = ()
    """Further (pairs, examples) to train on; a batch holds sequences of one setting."""
    test_on: tuple[int, ...] = ()
    """The numbers of pairs of tests, batch by batch in turn; that of training if empty."""
    codes: int = 8192
    """Number of codes: half of them are keys, half values."""
    codes_seed: int = 0
    """Seed of the codes, independent of the seed of the sequences."""
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """Cross-entropy over the values, with the scalar products as logits; or half the squared error."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "dim", "pairs", "passes")
        require_not_negative(self, "codes_seed")
        require_positive_if_given(self, "examples")
        check_settings(self, "train_also", ("pairs", "examples"))
        check_settings(self, "test_on", ("pairs",))
        most = max(self.pairs, *self.test_on, *(pairs for pairs, _ in self.train_also), 1)
        require(self.codes >= 2 * most, self, "codes", f"{2 * most} or greater, two for each pair")

    @property
    def token_dim(self) -> int:
        """Width of a token: a key and a value."""
        return 2 * self.dim

    @property
    def length(self) -> int:
        """Tokens in a sequence: all pairs, as often as they are shown, and all queries."""
        return (self.passes + 1) * self.pairs


@dataclass(frozen=True, kw_only=True)
class MADConfig(OnTokens):
    """A task of the mechanistic architecture design benchmark.

    Example:
        >>> MADConfig(task="selective_copying", length=32)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: copied=16: must be less than 15.5, half of what a separator leaves of \
length=32
    """

    kind: Literal["mad"] = "mad"
    """Names the task in config.json."""
    task: MADName = "in_context_recall"
    """Which of the six."""
    vocabulary: int = 16
    """Number of tokens, special ones and noise included."""
    length: int = 128
    """Published length; in in-context and noisy recall the last token is only a target."""
    examples: int | None = 12_800
    """Different training sequences, shown in another order in every epoch; None: new ones at every step."""
    noise_vocabulary: int = 0
    """Noise tokens, the last of the vocabulary; used by noisy_recall."""
    noise_fraction: float = 0.0
    """Probability of noise in place of a pair; used by noisy_recall."""
    key_motif: int = 3
    """Tokens in the longest key; used by fuzzy_recall."""
    value_motif: int = 3
    """Tokens in the longest value; used by fuzzy_recall."""
    copied: int = 16
    """Tokens to remember; used by selective_copying."""
    map_seed: int = 0
    """Seed of the pairs to learn by heart, independent of that of the sequences; used by memorization."""
    train_on: Literal["all", "answers"] = "all"
    """Targets in training, in the three recall tasks: all next tokens (authors' code), or the values of
    keys that came before, as in tests."""
    train_keys: Literal["all", "longest"] = "all"
    """Keys in training, in fuzzy recall: of all sizes (authors' code), or of the largest, as in tests."""
    answerable: bool = False
    """Whether the last key of fuzzy recall surely came before; in the authors' code it did not in about one
    sequence of fifty."""
    blanks_behind: bool = False
    """Whether blanks of selective copying may stand behind the last token to remember; never in the
    authors' code."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "key_motif", "value_motif", "copied")
        require_not_negative(self, "noise_vocabulary", "map_seed")
        require_positive_if_given(self, "examples")
        require(self.length >= 4, self, "length", "4 or greater")
        require(
            0 <= self.noise_fraction < 1, self, "noise_fraction", "0 or greater, and less than 1"
        )
        noisy = self.noise_fraction == 0 or self.noise_vocabulary > 0
        require(noisy, self, "noise_vocabulary", "greater than 0 where there is noise")
        enough = self.vocabulary - self.noise_vocabulary >= 4
        require(enough, self, "vocabulary", f"{self.noise_vocabulary + 4} or greater")
        quiet = self.noise_vocabulary == 0 or self.task == "noisy_recall"
        require(quiet, self, "noise_vocabulary", "0, but for task='noisy_recall'")
        getattr(self, f"_check_{self.task}", lambda: None)()

    @property
    def gives_back(self) -> bool:
        """Whether the targets are the tokens themselves."""
        return self.task == "compression"

    def _check_in_context_recall(self) -> None:
        require(self.length % 2 == 0, self, "length", "even")

    _check_noisy_recall = _check_in_context_recall

    def _check_fuzzy_recall(self) -> None:
        half = (self.vocabulary - 1) // 2
        for name in ("key_motif", "value_motif"):
            wanted = f"at most {half}, the tokens of half of the vocabulary"
            require(getattr(self, name) <= half, self, name, wanted)
        shortest = 4 * (self.key_motif + self.value_motif)
        require(self.length >= shortest, self, "length", f"{shortest} or greater")

    def _check_selective_copying(self) -> None:
        most = (self.length - 1) / 2
        wanted = f"less than {most:g}, half of what a separator leaves of length={self.length}"
        require(self.copied < most, self, "copied", wanted)


@dataclass(frozen=True, kw_only=True)
class RegBenchConfig(OnTokens):
    """RegBench: strings of a random finite automaton, to be learned in context.

    Example:
        >>> RegBenchConfig().vocabulary, RegBenchConfig(length=256, examples=1000).length
        (20, 256)
    """

    kind: Literal["regbench"] = "regbench"
    """Names the task in config.json."""
    alphabet: int = 18
    """Number of letters."""
    fewest_states: int = 4
    """States of the smallest automaton before it is reduced, and letters of the smallest alphabet."""
    most_states: int = 12
    """States of the largest one."""
    strings: tuple[int, ...] = (10, 19)
    """Fewest and most strings in a sequence."""
    letters: tuple[int, ...] = (1, 49)
    """Fewest and most letters in a string."""
    length: int = 948
    """Tokens in a sequence, padding included; longer ones are cut. 948 cuts none."""
    examples: int | None = 5000
    """Different training sequences, each of an automaton of its own; None: new ones at every step."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "length")
        require_positive_if_given(self, "examples")
        states = 4 <= self.fewest_states <= self.most_states
        require(states, self, "fewest_states", f"between 4 and most_states={self.most_states}")
        fits = self.fewest_states <= self.alphabet <= 30
        require(fits, self, "alphabet", f"between fewest_states={self.fewest_states} and 30")
        for name in ("strings", "letters"):
            value = getattr(self, name)
            whole = len(value) == 2 and all(type(number) is int for number in value)
            ordered = whole and 1 <= value[0] <= value[1]
            require(ordered, self, name, "two whole numbers, fewest and most")
        several = self.letters[0] > 1 or (self.strings[0] > 1 and self.length > 1)
        wanted = (
            "from 2 on, or strings from 2 on with length=2 or more: one letter predicts nothing"
        )
        require(several, self, "letters", wanted)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens: padding, the letters, and a separator."""
        return self.alphabet + 2


@dataclass(frozen=True, kw_only=True)
class ParityConfig(OnTokens):
    """Parity of a string of bits: learned on short ones, tested on longer ones.

    Example:
        >>> ParityConfig().length
        39
    """

    vocabulary: ClassVar[int] = 3
    """Number of different tokens: padding, 0 and 1."""

    kind: Literal["parity"] = "parity"
    """Names the task in config.json."""
    shortest: int = 3
    """Tokens of the shortest string in training, its answer included, as in the literature."""
    longest: int = 40
    """Tokens of the longest."""
    test_shortest: int = 40
    """Tokens of the shortest string in tests."""
    test_longest: int = 256
    """Tokens of the longest."""
    scored: Literal["last", "every"] = "last"
    """Where the parity so far is a target: at the last bit, or at every one."""

    def __post_init__(self) -> None:
        require_types(self)
        check_range(self, "shortest", "longest", smallest=2)
        check_range(self, "test_shortest", "test_longest", smallest=2)

    @property
    def length(self) -> int:
        """Tokens in a training sequence, which does not hold its answer."""
        return self.longest - 1


@dataclass(frozen=True, kw_only=True)
class CopyingConfig(OnTokens):
    """Copying: a random string, a separator, and the same string again, which is to be predicted.

    Example:
        >>> CopyingConfig(alphabet=26, shortest=5, longest=20).vocabulary
        30
        >>> CopyingConfig(shortest=8, longest=4)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: shortest=8: must be between 1 and longest=4
    """

    kind: Literal["copying"] = "copying"
    """Names the task in config.json."""
    alphabet: int = 26
    """Number of letters."""
    shortest: int = 5
    """Letters in the shortest string of training."""
    longest: int = 20
    """Letters in the longest string; every length in between is as likely."""
    test_shortest: int = 20
    """Letters in the shortest string of tests."""
    test_longest: int = 20
    """Letters in the longest."""
    context: int | None = None
    """Tokens of training sequences, which then hold several strings, one after the other; 220 in the
    authors' code. None: one string each, as in tests."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "alphabet")
        check_range(self, "shortest", "longest", smallest=1)
        check_range(self, "test_shortest", "test_longest", smallest=1)
        if self.context is not None:
            fits = self.context >= 2 * self.longest + 3
            wanted = f"{2 * self.longest + 3} or greater, for the longest string twice"
            require(fits, self, "context", wanted)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens: the letters, begin, separator, end and padding."""
        return self.alphabet + 4

    @property
    def length(self) -> int:
        """Tokens in a training sequence, padding included."""
        return 2 * self.longest + 2 if self.context is None else self.context - 1


TokenTaskConfig = (
    TextConfig | MQARConfig | MADConfig | RegBenchConfig | ParityConfig | CopyingConfig
)
"""The settings of a task on tokens of the library: each has a `vocabulary` and a `length`."""


def check_range(config: object, shortest: str, longest: str, *, smallest: int) -> None:
    """Check that two settings are the ends of a range."""
    last = getattr(config, longest)
    require(last >= smallest, config, longest, f"{smallest} or greater")
    fits = smallest <= getattr(config, shortest) <= last
    require(fits, config, shortest, f"between {smallest} and {longest}={last}")


def check_settings(config: object, name: str, parts: tuple[str, ...]) -> None:
    """Check a list of settings, each of some whole numbers greater than 0."""
    for setting in getattr(config, name):
        numbers = setting if isinstance(setting, tuple) else (setting,)
        if len(numbers) != len(parts) or any(type(n) is not int or n < 1 for n in numbers):
            wanted = f"({', '.join(parts)})" if len(parts) > 1 else parts[0]
            raise ConfigError(f"{name}: {setting!r}: must be {wanted}, greater than 0")
