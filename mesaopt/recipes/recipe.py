"""The recipe: a configuration of a run, with the facts by which one looks for it."""

from dataclasses import dataclass
from typing import Literal

from mesaopt.config import (
    LanguageModelConfig,
    MergedAttentionConfig,
    MixerName,
    ModelConfig,
    RunConfig,
)

Source = Literal["uncovering2023", "emergence2024", "family", "language"]
"""Where a recipe is from: see :attr:`Recipe.source`."""
TaskName = Literal["linear", "contracting", "fixed", "partial", "nonlinear", "ar_process", "text"]
"""Kinds of sequences: see :attr:`Recipe.task`."""
Variant = Literal["standard", "notebook", "width", "dimension", "few_shot"]
"""Differences from a standard recipe: see :attr:`Recipe.variant`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run configuration with a name, a summary, and facts to select it by.

    Example:
        >>> from mesaopt.recipes import RECIPES
        >>> recipe = RECIPES["hybrid-mesa-partial-width-10"]
        >>> recipe.architecture, recipe.task, recipe.variant, recipe.width
        ('hybrid-mesa', 'partial', 'width', 10)
        >>> recipe.mixers
        ('softmax_attention', 'mesa')
    """

    summary: str
    """The sentence that `mesaopt list` shows next to the name."""
    source: Source
    """The paper that the recipe follows; "family" and "language": ours, to compare the layers of this
    library, the latter in language models."""
    architecture: str
    """Name of the layers, whatever the task and the width: "lsa-2", "tf-7", "hybrid-mesa", ..."""
    task: TaskName
    """The kind of sequences. "linear", "contracting" and "fixed" are linear systems that differ in the
    transition matrix; "partial" is a linear system seen through a matrix."""
    variant: Variant = "standard"
    """How the recipe differs from the standard one of its architecture and task: the authors' notebook,
    another width of the stream, another dimension of the states, or long sequences for few-shot tests."""
    config: RunConfig
    """All settings of the run, with seed 0."""

    @property
    def name(self) -> str:
        """The name that `mesaopt train` takes."""
        return self.config.recipe

    @property
    def dim(self) -> int:
        """Dimension of a state or observation, and of a prediction; of tokens, the vocabulary."""
        return self.config.task.dim

    @property
    def width(self) -> int:
        """Width of the residual stream; of a token in models without one."""
        if isinstance(self.config.model, MergedAttentionConfig):
            return self.config.model.token_dim
        if isinstance(self.config.model, LanguageModelConfig):
            return self.config.model.width
        return self.config.sequence_model.width

    @property
    def head_dim(self) -> int | None:
        """Width of a query and key of one head; None in models without heads."""
        model = self.config.model
        return model.key_width if isinstance(model, ModelConfig | LanguageModelConfig) else None

    @property
    def mixers(self) -> tuple[MixerName, ...]:
        """The mixer of each layer, first to last; empty for the one-layer model of the second paper."""
        model = self.config.model
        return model.mixers if isinstance(model, ModelConfig | LanguageModelConfig) else ()
