"""Generation with language models of every mixer: time of a token and size of the state."""

import statistics
from dataclasses import dataclass, replace

import torch

from mesaopt.bench.timing import time_in_turn
from mesaopt.config import LanguageModelConfig
from mesaopt.models import LanguageModel, LanguageState, prefill
from mesaopt.models.mixers import MIXERS
from mesaopt.workers import num_threads

EARLY, LATE, QUICK_LATE = 10, 10_000, 300
"""Positions at which a token is timed."""
WINDOW = 64
"""Tokens that softmax attention sees in the row with a window."""
_WARM_UP, _ROUNDS, _STEPS = 2, 9, 16  # the first round of all is a warm-up, too
BASE = LanguageModelConfig(
    width=128, mixers=("mesanet2025",) * 4, convolution=4, head_norm=True, unit_queries_keys=True
)
"""The model but for its mixer: bytes, four blocks of width 128 and four heads."""


@dataclass(frozen=True, kw_only=True)
class GenerationSpeed:
    """How fast a model adds tokens to one text.

    Example:
        >>> speed = GenerationSpeed(
        ...     mixer="mesa", early_seconds=0.002, late_seconds=0.0021, early_bytes=4, late_bytes=4
        ... )
        >>> round(speed.slowdown, 2), round(speed.tokens_per_second)
        (1.05, 476)
    """

    mixer: str
    """Name of the mixer."""
    early_seconds: float
    """Median time of a token at an early position."""
    late_seconds: float
    """Median time of a token at a late position."""
    early_bytes: int
    """Size of the state there."""
    late_bytes: int
    """Size of the state there."""

    @property
    def slowdown(self) -> float:
        """Time of a late token in times of an early one."""
        return self.late_seconds / self.early_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second at the late position."""
        return 1 / self.late_seconds

    def describe(self) -> dict[str, str]:
        """Return the row of a table."""
        return {
            "mixer": self.mixer,
            "tokens/s": f"{self.tokens_per_second:,.0f}",
            "ms, early": f"{1e3 * self.early_seconds:.2f}",
            "ms, late": f"{1e3 * self.late_seconds:.2f}",
            "late / early": f"{self.slowdown:.2f}",
            "state, early": f"{self.early_bytes / 1024:,.0f} KiB",
            "state, late": f"{self.late_bytes / 1024:,.0f} KiB",
        }


@torch.no_grad()
def measure_generation(*, late: int = LATE) -> list[GenerationSpeed]:
    """Time single tokens early and late in a text, with one thread.

    Args:
        late: the late position, more than 10.

    Returns:
        A row for each mixer, and one for softmax attention in a window of 64 tokens.
    """
    configs = {name: replace(BASE, mixers=(name,) * BASE.depth) for name in MIXERS}
    softmax = configs["softmax_attention"]
    configs |= {f"softmax_attention, window {WINDOW}": replace(softmax, window=WINDOW)}
    with num_threads(1):
        return [_measure(name, LanguageModel(config), late) for name, config in configs.items()]


def _measure(name: str, model: LanguageModel, late: int) -> GenerationSpeed:
    tokens = torch.randint(256, (1, late), generator=torch.Generator().manual_seed(0))
    _, early_state = prefill(model, tokens[:, :EARLY])
    _, late_state = prefill(model, tokens[:, EARLY:], early_state)
    works = {
        "early": lambda: _add_tokens(model, early_state),
        "late": lambda: _add_tokens(model, late_state),
    }
    times = time_in_turn(works, _WARM_UP + _ROUNDS)
    return GenerationSpeed(
        mixer=name,
        early_seconds=statistics.median(times["early"][_WARM_UP:]) / _STEPS,
        late_seconds=statistics.median(times["late"][_WARM_UP:]) / _STEPS,
        early_bytes=early_state.num_bytes,
        late_bytes=late_state.num_bytes,
    )


def _add_tokens(model: LanguageModel, state: LanguageState) -> None:
    """Go on by some tokens from a state, which stays as it is."""
    token = torch.zeros(1, dtype=torch.int64)
    for _ in range(_STEPS):
        logits, state = model.step(token, state)
        token = logits.argmax(-1)
