"""Recipes of von Oswald et al. (arXiv 2309.05858).

Source: the authors' configuration files, which produced the published figures; where the paper's text
differs, the files are followed.
"""

from dataclasses import replace

from mesaopt.config import RunConfig, TrainConfig
from mesaopt.recipes.models import MODELS, WIDTHS
from mesaopt.recipes.recipe import Recipe
from mesaopt.recipes.tasks import ONE_LAYER, TASKS, system_of


def _of_width(architecture: str, width: int, steps: int) -> Recipe:
    """Configure a model on partial observations with another width: how many past tokens fit into it."""
    base = f"{architecture}-partial"
    return Recipe(
        summary=f"{base} with a stream of {width}",
        source="uncovering2023",
        architecture=architecture,
        task="partial",
        variant="width",
        config=RunConfig(
            recipe=f"{base}-width-{width}",
            task=TASKS["partial"],
            model=MODELS[f"{base}-width-{width}"],
            train=TrainConfig(steps=steps, learning_rate=4e-4, schedule="warmup_cosine"),
        ),
    )


def _of_dimension(dim: int, steps: int, learning_rate: float) -> Recipe:
    """Configure softmax layers on systems of another dimension, to be replaced by linear ones."""
    return Recipe(
        summary=f"seven softmax self-attention layers on systems of dimension {dim}",
        source="uncovering2023",
        architecture="tf-7",
        task="linear",
        variant="dimension",
        config=RunConfig(
            recipe=f"tf-7-dim-{dim}",
            task=system_of(dim, ("current",)),
            model=MODELS[f"tf-7-dim-{dim}"],
            train=TrainConfig(
                steps=steps,
                learning_rate=learning_rate,
                schedule="warmup_cosine",
                batch_size=64,
            ),
        ),
    )


RECIPES = (
    Recipe(
        summary="one linear self-attention layer, which becomes one step of gradient descent",
        source="uncovering2023",
        architecture="lsa-1",
        task="linear",
        config=RunConfig(
            recipe="lsa-1",
            task=ONE_LAYER["linear"],
            model=MODELS["lsa-1"],
            train=TrainConfig(steps=3500, learning_rate=2e-4),
        ),
    ),
    Recipe(
        summary="two linear self-attention layers, as in the authors' notebook",
        source="uncovering2023",
        architecture="lsa-2",
        task="linear",
        variant="notebook",
        config=RunConfig(
            recipe="lsa-2-notebook",
            task=TASKS["linear-constructed"],
            model=replace(MODELS["lsa-2"], activation_clip=1.5),
            train=TrainConfig(
                steps=2500, learning_rate=3e-4, schedule="warmup_cosine", decay_steps=20_000
            ),
        ),
    ),
    Recipe(
        summary="two linear self-attention layers",
        source="uncovering2023",
        architecture="lsa-2",
        task="linear",
        config=RunConfig(
            recipe="lsa-2",
            task=TASKS["linear-constructed"],
            model=MODELS["lsa-2"],
            train=TrainConfig(steps=5000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="four linear self-attention layers",
        source="uncovering2023",
        architecture="lsa-4",
        task="linear",
        config=RunConfig(
            recipe="lsa-4",
            task=TASKS["linear-constructed"],
            model=MODELS["lsa-4"],
            train=TrainConfig(steps=10_000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="six linear self-attention layers, which precondition the gradient step",
        source="uncovering2023",
        architecture="lsa-6",
        task="linear",
        config=RunConfig(
            recipe="lsa-6",
            task=TASKS["linear-constructed"],
            model=MODELS["lsa-6"],
            train=TrainConfig(steps=15_000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="six linear self-attention layers with heads wide enough for any product of their weights",
        source="uncovering2023",
        architecture="lsa-6-key-40",
        task="linear",
        config=RunConfig(
            recipe="lsa-6-key-40",
            task=TASKS["linear-constructed"],
            model=MODELS["lsa-6-key-40"],
            train=TrainConfig(steps=4500, learning_rate=1e-4, weight_decay=0.1, batch_size=512),
        ),
    ),
    Recipe(
        summary="one mesa layer, which solves a ridge regression of its own exactly",
        source="uncovering2023",
        architecture="mesa-1",
        task="linear",
        config=RunConfig(
            recipe="mesa-1",
            task=ONE_LAYER["linear"],
            model=MODELS["mesa-1"],
            train=TrainConfig(steps=4500, learning_rate=4e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="three softmax self-attention layers",
        source="uncovering2023",
        architecture="tf-3",
        task="linear",
        config=RunConfig(
            recipe="tf-3",
            task=TASKS["linear"],
            model=MODELS["tf-3"],
            train=TrainConfig(steps=10_000, learning_rate=8e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="seven softmax self-attention layers: the first copies, the others learn in context",
        source="uncovering2023",
        architecture="tf-7",
        task="linear",
        config=RunConfig(
            recipe="tf-7",
            task=TASKS["linear"],
            model=MODELS["tf-7"],
            train=TrainConfig(steps=10_000, learning_rate=8e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="twelve softmax self-attention layers",
        source="uncovering2023",
        architecture="tf-12",
        task="linear",
        config=RunConfig(
            recipe="tf-12",
            task=TASKS["linear"],
            model=MODELS["tf-12"],
            train=TrainConfig(steps=10_000, learning_rate=8e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="a softmax self-attention layer, which copies, and a mesa layer, which solves",
        source="uncovering2023",
        architecture="hybrid-mesa",
        task="linear",
        config=RunConfig(
            recipe="hybrid-mesa",
            task=TASKS["linear"],
            model=MODELS["hybrid-mesa"],
            train=TrainConfig(steps=20_000, learning_rate=3e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="a linear self-attention layer and a mesa layer: what was published as full-mesa",
        source="uncovering2023",
        architecture="full-mesa-published",
        task="linear",
        config=RunConfig(
            recipe="full-mesa-published",
            task=TASKS["linear"],
            model=MODELS["full-mesa-published"],
            train=TrainConfig(steps=3500, learning_rate=3e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="two mesa layers",
        source="uncovering2023",
        architecture="full-mesa",
        task="linear",
        config=RunConfig(
            recipe="full-mesa",
            task=TASKS["linear"],
            model=MODELS["full-mesa"],
            train=TrainConfig(steps=3500, learning_rate=3e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="seven softmax self-attention layers on partial observations",
        source="uncovering2023",
        architecture="tf-7",
        task="partial",
        config=RunConfig(
            recipe="tf-7-partial",
            task=TASKS["partial"],
            model=MODELS["tf-7-partial"],
            train=TrainConfig(steps=20_000, learning_rate=4e-4, schedule="warmup_cosine"),
        ),
    ),
    Recipe(
        summary="a softmax self-attention layer and a mesa layer on partial observations",
        source="uncovering2023",
        architecture="hybrid-mesa",
        task="partial",
        config=RunConfig(
            recipe="hybrid-mesa-partial",
            task=TASKS["partial"],
            model=MODELS["hybrid-mesa-partial"],
            train=TrainConfig(steps=12_000, learning_rate=4e-4, schedule="warmup_cosine"),
        ),
    ),
    *(_of_width("tf-7", width, steps=20_000) for width in WIDTHS),
    *(_of_width("hybrid-mesa", width, steps=12_000) for width in WIDTHS),
    Recipe(
        summary="seven softmax self-attention layers with MLPs on a nonlinear system",
        source="uncovering2023",
        architecture="tf-7",
        task="nonlinear",
        config=RunConfig(
            recipe="tf-7-nonlinear",
            task=TASKS["nonlinear"],
            model=MODELS["tf-7-nonlinear"],
            train=TrainConfig(
                steps=40_000, learning_rate=1e-3, schedule="warmup_cosine", decay_steps=50_000
            ),
        ),
    ),
    Recipe(
        summary="a softmax self-attention layer and a mesa layer with MLPs on a nonlinear system",
        source="uncovering2023",
        architecture="hybrid-mesa",
        task="nonlinear",
        config=RunConfig(
            recipe="hybrid-mesa-nonlinear",
            task=TASKS["nonlinear"],
            model=MODELS["hybrid-mesa-nonlinear"],
            train=TrainConfig(
                steps=40_000, learning_rate=4e-4, schedule="warmup_cosine", decay_steps=50_000
            ),
        ),
    ),
    Recipe(
        summary="seven softmax self-attention layers on long sequences, to be used few-shot",
        source="uncovering2023",
        architecture="tf-7",
        task="linear",
        variant="few_shot",
        config=RunConfig(
            recipe="tf-7-few-shot",
            task=TASKS["linear-long"],
            model=MODELS["tf-7"],
            train=TrainConfig(
                steps=15_000, learning_rate=8e-4, schedule="warmup_cosine", batch_size=128
            ),
        ),
    ),
    Recipe(
        summary="a softmax self-attention layer and a mesa layer on long sequences, to be used few-shot",
        source="uncovering2023",
        architecture="hybrid-mesa",
        task="linear",
        variant="few_shot",
        config=RunConfig(
            recipe="hybrid-mesa-few-shot",
            task=TASKS["linear-long"],
            model=MODELS["hybrid-mesa"],
            train=TrainConfig(
                steps=15_000, learning_rate=8e-4, schedule="warmup_cosine", batch_size=128
            ),
        ),
    ),
    _of_dimension(4, steps=5000, learning_rate=4e-3),
    _of_dimension(6, steps=5000, learning_rate=4e-3),
    _of_dimension(10, steps=5000, learning_rate=4e-3),
    _of_dimension(20, steps=8000, learning_rate=9e-3),
    _of_dimension(40, steps=3500, learning_rate=7e-3),
    _of_dimension(60, steps=2500, learning_rate=4e-3),
    Recipe(
        summary="two softmax self-attention layers of one head on constructed tokens",
        source="uncovering2023",
        architecture="softmax-2",
        task="linear",
        config=RunConfig(
            recipe="softmax-2",
            task=system_of(20, ("zero", "current", "current", "previous")),
            model=MODELS["softmax-2"],
            train=TrainConfig(
                steps=10_000, learning_rate=7e-4, schedule="warmup_cosine", batch_size=64
            ),
        ),
    ),
    Recipe(
        summary="1 linear self-attention layer on a contracting system",
        source="uncovering2023",
        architecture="lsa-1",
        task="contracting",
        config=RunConfig(
            recipe="contracting-lsa-1",
            task=ONE_LAYER["contracting"],
            model=MODELS["lsa-1"],
            train=TrainConfig(steps=5000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="2 linear self-attention layers on a contracting system",
        source="uncovering2023",
        architecture="lsa-2",
        task="contracting",
        config=RunConfig(
            recipe="contracting-lsa-2",
            task=TASKS["contracting-constructed"],
            model=MODELS["lsa-2"],
            train=TrainConfig(steps=5000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="4 linear self-attention layers on a contracting system",
        source="uncovering2023",
        architecture="lsa-4",
        task="contracting",
        config=RunConfig(
            recipe="contracting-lsa-4",
            task=TASKS["contracting-constructed"],
            model=MODELS["lsa-4"],
            train=TrainConfig(steps=10_000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="6 linear self-attention layers on a contracting system",
        source="uncovering2023",
        architecture="lsa-6",
        task="contracting",
        config=RunConfig(
            recipe="contracting-lsa-6",
            task=TASKS["contracting-constructed"],
            model=MODELS["lsa-6"],
            train=TrainConfig(steps=5000, learning_rate=1e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="one mesa layer on a contracting system",
        source="uncovering2023",
        architecture="mesa-1",
        task="contracting",
        config=RunConfig(
            recipe="contracting-mesa-1",
            task=ONE_LAYER["contracting"],
            model=MODELS["mesa-1"],
            train=TrainConfig(steps=5000, learning_rate=4e-4, weight_decay=0.1),
        ),
    ),
    Recipe(
        summary="1 linear self-attention layer on one fixed matrix, the negative control",
        source="uncovering2023",
        architecture="lsa-1",
        task="fixed",
        config=RunConfig(
            recipe="fixed-lsa-1",
            task=ONE_LAYER["fixed"],
            model=MODELS["lsa-1"],
            train=TrainConfig(steps=10_000, learning_rate=1e-3, weight_decay=0.1, batch_size=512),
        ),
    ),
    Recipe(
        summary="2 linear self-attention layers on one fixed matrix, the negative control",
        source="uncovering2023",
        architecture="lsa-2",
        task="fixed",
        config=RunConfig(
            recipe="fixed-lsa-2",
            task=TASKS["fixed-constructed"],
            model=MODELS["lsa-2"],
            train=TrainConfig(steps=10_000, learning_rate=1e-3, weight_decay=0.1, batch_size=512),
        ),
    ),
    Recipe(
        summary="4 linear self-attention layers on one fixed matrix, the negative control",
        source="uncovering2023",
        architecture="lsa-4",
        task="fixed",
        config=RunConfig(
            recipe="fixed-lsa-4",
            task=TASKS["fixed-constructed"],
            model=MODELS["lsa-4"],
            train=TrainConfig(steps=5000, learning_rate=1e-3, weight_decay=0.1, batch_size=512),
        ),
    ),
    Recipe(
        summary="6 linear self-attention layers on one fixed matrix, the negative control",
        source="uncovering2023",
        architecture="lsa-6",
        task="fixed",
        config=RunConfig(
            recipe="fixed-lsa-6",
            task=TASKS["fixed-constructed"],
            model=MODELS["lsa-6"],
            train=TrainConfig(steps=5000, learning_rate=1e-3, weight_decay=0.1, batch_size=512),
        ),
    ),
    Recipe(
        summary="one mesa layer on one fixed matrix, the negative control",
        source="uncovering2023",
        architecture="mesa-1",
        task="fixed",
        config=RunConfig(
            recipe="fixed-mesa-1",
            task=ONE_LAYER["fixed"],
            model=MODELS["mesa-1"],
            train=TrainConfig(steps=5000, learning_rate=4e-4, weight_decay=0.1, batch_size=512),
        ),
    ),
)
"""In the order of `mesaopt list`."""
