"""Recipes of Zheng et al. (arXiv 2405.16845): one complex layer, by full-batch gradient descent.

Source: the authors' code; the step sizes are those of their plots.
"""

from mesaopt.config import ARProcessConfig, MergedAttentionConfig, RunConfig, TrainConfig
from mesaopt.recipes.recipe import Recipe


def _descent(learning_rate: float) -> TrainConfig:
    return TrainConfig(
        steps=200,
        batch_size=10_000,
        data="fixed",
        positions="sum",
        optimizer="gradient_descent",
        learning_rate=learning_rate,
        gradient_clip=None,
        evaluate_every=10,
    )


RECIPES = (
    Recipe(
        summary="one complex layer on Gaussian starts: one gradient step, which does not recover the "
        "sequence",
        source="emergence2024",
        architecture="merged-1",
        task="ar_process",
        config=RunConfig(
            recipe="ar-gaussian",
            task=ARProcessConfig(start="gaussian"),
            model=MergedAttentionConfig(),
            train=_descent(learning_rate=1e-4),
        ),
    ),
    Recipe(
        summary="one complex layer on sparse starts: one gradient step, which recovers the sequence",
        source="emergence2024",
        architecture="merged-1",
        task="ar_process",
        config=RunConfig(
            recipe="ar-sparse",
            task=ARProcessConfig(start="sparse"),
            model=MergedAttentionConfig(),
            train=_descent(learning_rate=1e-3),
        ),
    ),
    Recipe(
        summary="one complex layer on starts of ones: a preconditioned gradient step",
        source="emergence2024",
        architecture="merged-1",
        task="ar_process",
        config=RunConfig(
            recipe="ar-full-one",
            task=ARProcessConfig(start="full_one"),
            model=MergedAttentionConfig(),
            train=_descent(learning_rate=5e-4),
        ),
    ),
)
"""In the order of `mesaopt list`."""
