"""The tasks by name: those of von Oswald et al. (arXiv 2309.05858), and those on tokens."""

from dataclasses import replace

from mesaopt.config import (
    FewShotConfig,
    LinearSystemConfig,
    NonlinearSystemConfig,
    PartiallyObservedConfig,
    TaskConfig,
    TokenSlot,
    stacked,
)
from mesaopt.recipes.token_tasks import TOKEN_TASKS

_CONSTRUCTED = {
    "linear": LinearSystemConfig(),
    "contracting": LinearSystemConfig(transition="contracting", state_clip=2.0),
    "fixed": LinearSystemConfig(transition="fixed"),
}

SYSTEMS: dict[str, TaskConfig] = {
    "linear": LinearSystemConfig(token_slots=("current",)),
    "linear-constructed": _CONSTRUCTED["linear"],
    "linear-text": LinearSystemConfig(token_slots=("current",), start="normal"),
    "contracting-constructed": _CONSTRUCTED["contracting"],
    "fixed-constructed": _CONSTRUCTED["fixed"],
    "partial": PartiallyObservedConfig(),
    "partial-stacked": PartiallyObservedConfig(token_slots=stacked(16)),
    "partial-text": PartiallyObservedConfig(observation_std=0.5**0.5, start="normal"),
    "nonlinear": NonlinearSystemConfig(),
    "nonlinear-text": NonlinearSystemConfig(normalisation="none", start="normal"),
    "linear-long": LinearSystemConfig(token_slots=("current",), length=224),
    "few-shot": FewShotConfig(),
    "few-shot-separated": FewShotConfig(layout="triples"),
    "few-shot-prefixed": FewShotConfig(layout="triples", prefix_length=20),
    "few-shot-two-tasks": FewShotConfig(switch_after=20),
    "few-shot-text": FewShotConfig(inputs="normal"),
}
"""As in the authors' code; names that end in `-text` are as in the paper's text, where that differs."""

TASKS: dict[str, TaskConfig] = SYSTEMS | TOKEN_TASKS
"""All of them."""

ONE_LAYER: dict[str, LinearSystemConfig] = {
    name: replace(task, token_slots=("zero", "zero", "current", "previous"))
    for name, task in _CONSTRUCTED.items()
}
"""The systems on constructed tokens for models of one layer, which have no use for a second copy of the
current state: the authors zero it. With it, training escapes its initial plateau some 80 steps earlier than
published."""


def system_of(dim: int, token_slots: tuple[TokenSlot, ...]) -> LinearSystemConfig:
    """Configure the linear system of another dimension, with sequences four times as long as it."""
    return LinearSystemConfig(dim=dim, length=4 * dim, token_slots=token_slots, state_clip=1000.0)
