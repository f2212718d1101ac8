"""Amounts by scale of the first paper that are no part of a plan."""

from dataclasses import dataclass
from typing import Literal

TOKEN_NORM = (10 / 3) ** 0.5
"""Root mean square norm of a few-shot input, uniform on [-1, 1]^10."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How the prompts of figures 8 and 18 are learned."""

    steps: int
    batch_sizes: tuple[int, int]
    """Of EOS, of the prefix."""
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    separator_norm: float
    """Norm up to which a learned EOS counts as next to zero."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Amounts by scale that are no part of a plan."""

    map_sequences: int
    """Test sequences of attention maps."""
    probe_sequences: int
    """Sequences that probes are fitted on, and as many that they are scored on; 512 or more."""
    probe_sequences_while_training: int
    """The same at every checkpoint."""
    sensitivity_checkpoints: int
    """Checkpoints at which first layers are differentiated, at most."""
    sensitivity_sequences: int
    """Test sequences of a trained layer's derivatives."""
    sensitivity_sequences_while_training: int
    """Of these, those at every checkpoint."""
    distillation_steps: int
    """Optimiser steps of the linear layers of figures 5 and 19."""
    distillation_rate: float
    """Their learning rate at the start."""
    distillation_sequences: int
    """Test sequences of the models with these layers."""
    regression_dimensions: tuple[int, ...]
    """Of the systems of figures 5B and 20."""
    regression_sequences: int
    """Test sequences on each of these systems."""
    few_shot_sequences: int
    """Test sequences of figures 8 and 18."""
    prompts: PromptSettings


SETTINGS: dict[str, Settings] = {
    "smoke": Settings(
        map_sequences=64,
        probe_sequences=512,
        probe_sequences_while_training=256,
        sensitivity_checkpoints=2,
        sensitivity_sequences=4,
        sensitivity_sequences_while_training=2,
        distillation_steps=2,
        distillation_rate=3e-2,
        distillation_sequences=256,
        regression_dimensions=(4, 10),
        regression_sequences=256,
        few_shot_sequences=512,
        prompts=PromptSettings(
            steps=2,
            batch_sizes=(2, 2),
            learning_rate=0.1,
            schedule="cosine",
            separator_norm=TOKEN_NORM / 4,
        ),
    ),
    "small": Settings(
        map_sequences=2048,
        probe_sequences=2048,
        probe_sequences_while_training=512,
        sensitivity_checkpoints=13,
        sensitivity_sequences=64,
        sensitivity_sequences_while_training=16,
        distillation_steps=1000,
        distillation_rate=5e-3,
        distillation_sequences=2560,
        regression_dimensions=(4, 6, 10, 20, 40),
        regression_sequences=256,
        few_shot_sequences=2560,
        prompts=PromptSettings(
            steps=150,
            batch_sizes=(16, 16),
            learning_rate=0.1,
            schedule="cosine",
            separator_norm=TOKEN_NORM / 4,
        ),
    ),
    "paper": Settings(
        map_sequences=2048,
        probe_sequences=5120,
        probe_sequences_while_training=512,
        sensitivity_checkpoints=16,
        sensitivity_sequences=64,
        sensitivity_sequences_while_training=64,
        distillation_steps=2000,
        distillation_rate=5e-3,
        distillation_sequences=10_240,
        regression_dimensions=(4, 6, 10, 20, 40, 60),
        regression_sequences=1024,
        few_shot_sequences=5120,
        prompts=PromptSettings(
            steps=5000,
            batch_sizes=(64, 128),
            learning_rate=1e-3,
            schedule="constant",
            separator_norm=0.05,
        ),
    ),
}
