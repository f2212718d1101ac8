"""Settings of a training, and of a whole run: its task, model, training and seed."""

from dataclasses import dataclass, field
from typing import Literal

from mesaopt.config.checks import (
    require,
    require_not_negative,
    require_positive,
    require_positive_if_given,
    require_types,
)
from mesaopt.config.language import AutoEncoderConfig, LanguageModelConfig
from mesaopt.config.models import MergedAttentionConfig, ModelConfig, OwnModelConfig
from mesaopt.config.tasks import LinearSystemConfig, OwnTaskConfig, TaskConfig
from mesaopt.config.token_tasks import TokenTaskConfig
from mesaopt.errors import ConfigError

NetworkConfig = (
    ModelConfig | MergedAttentionConfig | OwnModelConfig | LanguageModelConfig | AutoEncoderConfig
)
"""The settings of any model; in JSON, `kind` names it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimiser, learning rate, batches and evaluations: by default AdamW on fresh sequences at every step.

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
    """Last step of the cosine, warm-up included; used by warmup_cosine."""
    final_learning_rate: float = 1e-5
    """Learning rate after the cosine; used by warmup_cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on every parameter; used by adamw."""
    gradient_clip: float | None = 1.0
    """Every element of every gradient is clipped to [-gradient_clip, gradient_clip], real and imaginary
    part alike; None: not clipped."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of large matrix products. With bfloat16, autocast rounds what goes into these; weights, their
    gradients, the optimiser, states and losses stay float32."""
    evaluate_every: int = 100
    """Steps between two evaluations; a checkpoint is written at each."""
    evaluation_sequences: int = 2560
    """Test sequences, the same at every evaluation; a little more where a task is tested with several
    settings, of which each has equally many."""

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "steps", "batch_size", "evaluate_every", "evaluation_sequences")
        require_positive(self, "learning_rate")
        require_positive_if_given(self, "gradient_clip")
        require_not_negative(self, "weight_decay", "warmup_steps", "final_learning_rate")
        if self.schedule == "warmup_cosine":
            later = self.decay_steps > self.warmup_steps
            require(later, self, "decay_steps", f"greater than warmup_steps={self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run, which determine the trained model: task, model, training and seed.

    Example:
        >>> RunConfig(recipe="mine", seed=-1)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: seed=-1: must be 0 or greater
    """

    recipe: str
    """Name of the recipe that the settings began with."""
    seed: int = 0
    """Seed of the initial weights and of the training sequences."""
    task: TaskConfig = field(default_factory=LinearSystemConfig)
    """The sequences."""
    model: NetworkConfig = field(default_factory=ModelConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.seed >= 0, self, "seed", "0 or greater")
        plain = self.recipe.isprintable() and not self.recipe.startswith(".")
        plain = plain and not set("/\\") & set(self.recipe) and 0 < len(self.recipe.encode()) <= 200
        require(
            plain, self, "recipe", "a name of 1 to 200 bytes that fits in a folder's, without /"
        )
        if isinstance(self.task, OwnTaskConfig) and isinstance(self.model, MergedAttentionConfig):
            wanted = "must be 'sequence' or a module of your own, for a task of your own"
            raise ConfigError(f"model.kind='merged_attention': {wanted}")
        self._check_kinds()
        for ours, theirs in self.model.must_match_task.items():
            have, want = getattr(self.model, ours), getattr(self.task, theirs)
            if have != want:
                raise ConfigError(f"model.{ours}={have!r}: must be {want!r}, the task's {theirs}")

    def _check_kinds(self) -> None:
        """Refuse a task of tokens without a model of tokens, and the other way round."""
        reads_tokens = isinstance(self.model, LanguageModelConfig)
        if not isinstance(self.task, TokenTaskConfig):
            if reads_tokens:
                wanted = "a task on tokens, such as 'copying', for a model of kind 'language'"
                raise ConfigError(f"task.kind={self.task.kind!r}: must be {wanted}")
        elif reads_tokens:
            wanted = "auto_encoder" if self.task.gives_back else "language"
            targets = "the tokens themselves" if self.task.gives_back else "others than the tokens"
            if self.model.kind != wanted:
                problem = f"must be {wanted!r}, for a task whose targets are {targets}"
                raise ConfigError(f"model.kind={self.model.kind!r}: {problem}")
        elif not isinstance(self.model, OwnModelConfig):
            wanted = f"must be 'language' or a module of your own, for {self.task.kind!r}"
            raise ConfigError(f"model.kind={self.model.kind!r}: {wanted}, a task on tokens")

    @property
    def sequence_model(self) -> ModelConfig:
        """The network, where it is a stack of sequence mixers.

        Raises:
            ConfigError: it is a network of another kind.
        """
        if not isinstance(self.model, ModelConfig):
            raise ConfigError(f"model.kind={self.model.kind!r}: must be 'sequence'")
        return self.model
