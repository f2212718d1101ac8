"""Settings of the tasks on tokens: whole numbers below a vocabulary, one or more of them to predict."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from mesaopt.config.checks import require, require_positive, require_types


class OnTokens:
    """Base of the settings of a task on tokens; each has a `vocabulary` and a `length` besides."""

    token_slots: ClassVar[tuple[()]] = ()
    """None: tokens are what the task makes them."""

    @property
    def dim(self) -> int:
        """Numbers in a prediction: one logit for each token."""
        return cast(Any, self).vocabulary


@dataclass(frozen=True, kw_only=True)
class CopyingConfig(OnTokens):
    """Copying: a random string, a separator, and the same string again, which is to be predicted.

    Example:
        >>> CopyingConfig(alphabet=26, shortest=5, longest=20).length
        40
        >>> CopyingConfig(shortest=8, longest=4)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: shortest=8: must be between 1 and longest=4
    """

    kind: Literal["copying"] = "copying"
    """Names the task in config.json."""
    alphabet: int = 26
    """Number of different symbols in a string."""
    shortest: int = 5
    """Symbols in the shortest string."""
    longest: int = 20
    """Symbols in the longest string; every length in between is as likely."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "alphabet", "longest")
        fits = 1 <= self.shortest <= self.longest
        require(fits, self, "shortest", f"between 1 and longest={self.longest}")

    @property
    def vocabulary(self) -> int:
        """Number of different tokens: the alphabet, a separator and padding."""
        return self.alphabet + 2

    @property
    def length(self) -> int:
        """Tokens in a sequence, padding included."""
        return 2 * self.longest


TokenTaskConfig = CopyingConfig
"""The settings of a task on tokens of the library: each has a `vocabulary` and a `length`."""
