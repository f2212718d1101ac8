"""Named configurations: what the published experiments trained, ready to run or to vary.

Sources: the authors' configuration files of von Oswald et al. (arXiv 2309.05858), which produced the
published figures, and the code of Zheng et al. (arXiv 2405.16845); where the papers' text differs, the
code is followed.
"""

from dataclasses import dataclass, replace

from mesaopt.config import (
    ARProcessConfig,
    FewShotConfig,
    LinearSystemConfig,
    MergedAttentionConfig,
    ModelConfig,
    NonlinearSystemConfig,
    PartiallyObservedConfig,
    RunConfig,
    StartName,
    TaskConfig,
    TrainConfig,
    stacked,
)
from mesaopt.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A configuration with the sentence that `mesaopt list` shows beside its name."""

    summary: str
    config: RunConfig


TASKS: dict[str, TaskConfig] = {
    "linear": LinearSystemConfig(token_slots=("current",)),
    "linear-constructed": LinearSystemConfig(),
    "linear-text": LinearSystemConfig(token_slots=("current",), start="normal"),
    "contracting-constructed": LinearSystemConfig(transition="contracting", state_clip=2.0),
    "fixed-constructed": LinearSystemConfig(transition="fixed"),
    "partial": PartiallyObservedConfig(),
    "partial-stacked": PartiallyObservedConfig(token_slots=stacked(16)),
    "partial-text": PartiallyObservedConfig(observation_std=0.5**0.5, start="normal"),
    "nonlinear": NonlinearSystemConfig(),
    "nonlinear-text": NonlinearSystemConfig(normalisation="none", start="normal"),
    "few-shot": FewShotConfig(),
    "few-shot-separated": FewShotConfig(layout="triples"),
    "few-shot-prefixed": FewShotConfig(layout="triples", prefix_length=20),
    "few-shot-two-tasks": FewShotConfig(switch_after=20),
    "few-shot-text": FewShotConfig(inputs="normal"),
}
"""The tasks of von Oswald et al. by name, as in their code, or as in their text where that differs."""


# One layer has no use for a second copy of the current state: the authors zero it for their one-layer
# models. With it, training escapes its initial plateau some 80 steps earlier than they published.
_ONE_LAYER_TASK = LinearSystemConfig(token_slots=("zero", "zero", "current", "previous"))


def _linear_attention_1() -> Recipe:
    return Recipe(
        summary="one linear self-attention layer, which becomes one step of gradient descent",
        config=RunConfig(
            recipe="lsa-1",
            task=_ONE_LAYER_TASK,
            model=ModelConfig(mixers=("linear_attention",), num_heads=2),
            train=TrainConfig(steps=3500, learning_rate=2e-4),
        ),
    )


def _linear_attention_2() -> Recipe:
    return Recipe(
        summary="two linear self-attention layers, as in the authors' notebook",
        config=RunConfig(
            recipe="lsa-2-notebook",
            model=ModelConfig(mixers=("linear_attention",) * 2, activation_clip=1.5),
            train=TrainConfig(
                steps=2500, learning_rate=3e-4, schedule="warmup_cosine", decay_steps=20_000
            ),
        ),
    )


def _mesa_1() -> Recipe:
    return Recipe(
        summary="one mesa layer, which solves the in-context least-squares problem exactly",
        config=RunConfig(
            recipe="mesa-1",
            task=_ONE_LAYER_TASK,
            model=ModelConfig(mixers=("mesa",)),
            train=TrainConfig(steps=4500, learning_rate=4e-4, weight_decay=0.1),
        ),
    )


def _ar_process(name: str, start: StartName, learning_rate: float, summary: str) -> Recipe:
    """Full-batch gradient descent on one complex layer; the step sizes are those of the authors' plots."""
    return Recipe(
        summary=summary,
        config=RunConfig(
            recipe=name,
            task=ARProcessConfig(start=start),
            model=MergedAttentionConfig(),
            train=TrainConfig(
                steps=200,
                batch_size=10_000,
                data="fixed",
                positions="sum",
                optimizer="gradient_descent",
                learning_rate=learning_rate,
                gradient_clip=None,
                evaluate_every=10,
            ),
        ),
    )


RECIPES: dict[str, Recipe] = {
    recipe.config.recipe: recipe
    for recipe in (
        _linear_attention_1(),
        _linear_attention_2(),
        _mesa_1(),
        _ar_process(
            *("ar-gaussian", "gaussian", 1e-4),
            "one complex layer on Gaussian starts: one gradient step, which does not recover the sequence",
        ),
        _ar_process(
            *("ar-sparse", "sparse", 1e-3),
            "one complex layer on sparse starts: one gradient step, which recovers the sequence",
        ),
        _ar_process(
            *("ar-full-one", "full_one", 5e-4),
            "one complex layer on starts of ones: a preconditioned gradient step",
        ),
    )
}


def get(name: str, *, seed: int = 0) -> RunConfig:
    """Look a recipe up by name.

    Args:
        name: one of `RECIPES`; `mesaopt list` shows them.
        seed: seed of the initial weights and of the training sequences, 0 or greater.

    Returns:
        The published configuration, with the seed given.

    Raises:
        ConfigError: there is no such recipe.

    Example:
        >>> get("lsa-1", seed=3).train.learning_rate
        0.0002
        >>> get("lsa1")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: recipe='lsa1': did you mean 'lsa-1'?
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe={name!r}: {suggest(name, RECIPES)}")
    return replace(RECIPES[name].config, seed=seed)
