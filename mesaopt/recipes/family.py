"""Recipes of our own: one layer of every mixer that the papers did not train on the linear system.

Each is a counterpart of `mesa-1` of von Oswald et al.: tokens, heads, width and training are the same, only
the mixer differs.
"""

from mesaopt.config import MixerName, ModelConfig, RunConfig, TrainConfig
from mesaopt.recipes.recipe import Recipe
from mesaopt.recipes.tasks import ONE_LAYER


def _one_layer(name: str, mixer: MixerName, summary: str) -> Recipe:
    return Recipe(
        summary=summary,
        source="family",
        architecture=name,
        task="linear",
        config=RunConfig(
            recipe=name,
            task=ONE_LAYER["linear"],
            model=ModelConfig(mixers=(mixer,)),
            train=TrainConfig(steps=4500, learning_rate=4e-4, weight_decay=0.1),
        ),
    )


RECIPES = (
    _one_layer(
        "gated-linear-1",
        mixer="gated_linear_attention",
        summary="one gated linear self-attention layer: one gradient step on discounted pairs",
    ),
    _one_layer(
        "delta-1",
        mixer="delta_rule",
        summary="one delta-rule layer: online gradient descent",
    ),
    _one_layer(
        "gated-delta-1",
        mixer="gated_delta_rule",
        summary="one gated delta-rule layer: online gradient descent that forgets",
    ),
    _one_layer(
        "longhorn-1",
        mixer="longhorn",
        summary="one Longhorn layer: online learning by implicit gradient steps",
    ),
    _one_layer(
        "softmax-1",
        mixer="softmax_attention",
        summary="one softmax self-attention layer on constructed tokens: kernel regression",
    ),
    _one_layer(
        "mesanet-1",
        mixer="mesanet2025",
        summary="one mesa layer of MesaNet, with convolutions, gates and norms",
    ),
)
"""In the order of `mesaopt list`."""
