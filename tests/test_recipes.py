from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import mesaopt
from mesaopt import recipes
from mesaopt.config import MixerName
from mesaopt.models import make_model
from mesaopt.recipes import TaskName, Variant
from mesaopt.training import Trainer

# The published settings: peak learning rate, schedule, weight decay, batch, steps.
PUBLISHED = {
    "lsa-1": (2e-4, "constant", 0.05, 256, 3500),
    "lsa-2-notebook": (3e-4, "warmup_cosine", 0.05, 256, 2500),
    "lsa-2": (1e-4, "constant", 0.1, 256, 5000),
    "lsa-4": (1e-4, "constant", 0.1, 256, 10_000),
    "lsa-6": (1e-4, "constant", 0.1, 256, 15_000),
    "lsa-6-key-40": (1e-4, "constant", 0.1, 512, 4500),
    "mesa-1": (4e-4, "constant", 0.1, 256, 4500),
    "tf-3": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "tf-7": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "tf-12": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "hybrid-mesa": (3e-4, "warmup_cosine", 0.05, 256, 20_000),
    "full-mesa-published": (3e-4, "warmup_cosine", 0.05, 256, 3500),
    "full-mesa": (3e-4, "warmup_cosine", 0.05, 256, 3500),
    "tf-7-partial": (4e-4, "warmup_cosine", 0.05, 256, 20_000),
    "hybrid-mesa-partial": (4e-4, "warmup_cosine", 0.05, 256, 12_000),
    "tf-7-nonlinear": (1e-3, "warmup_cosine", 0.05, 256, 40_000),
    "hybrid-mesa-nonlinear": (4e-4, "warmup_cosine", 0.05, 256, 40_000),
    "tf-7-few-shot": (8e-4, "warmup_cosine", 0.05, 128, 15_000),
    "hybrid-mesa-few-shot": (8e-4, "warmup_cosine", 0.05, 128, 15_000),
    "contracting-lsa-1": (1e-4, "constant", 0.1, 256, 5000),
    "contracting-lsa-2": (1e-4, "constant", 0.1, 256, 5000),
    "contracting-lsa-4": (1e-4, "constant", 0.1, 256, 10_000),
    "contracting-lsa-6": (1e-4, "constant", 0.1, 256, 5000),
    "contracting-mesa-1": (4e-4, "constant", 0.1, 256, 5000),
    "fixed-lsa-1": (1e-3, "constant", 0.1, 512, 10_000),
    "fixed-lsa-2": (1e-3, "constant", 0.1, 512, 10_000),
    "fixed-lsa-4": (1e-3, "constant", 0.1, 512, 5000),
    "fixed-lsa-6": (1e-3, "constant", 0.1, 512, 5000),
    "fixed-mesa-1": (4e-4, "constant", 0.1, 512, 5000),
}
PUBLISHED |= {
    f"{name}-width-{width}": PUBLISHED[name]
    for name in ("tf-7-partial", "hybrid-mesa-partial")
    for width in (10, 20, 30, 50)
}
PUBLISHED |= {
    f"tf-7-dim-{dim}": (rate, "warmup_cosine", 0.05, 64, steps)
    for dim, rate, steps in (
        (4, 4e-3, 5000),
        (6, 4e-3, 5000),
        (10, 4e-3, 5000),
        (20, 9e-3, 8000),
        (40, 7e-3, 3500),
        (60, 4e-3, 2500),
    )
}
PUBLISHED["softmax-2"] = (7e-4, "warmup_cosine", 0.05, 64, 10_000)
DECAY = {"lsa-2-notebook": 20_000, "tf-7-nonlinear": 50_000, "hybrid-mesa-nonlinear": 50_000}
CLIPS = {
    "lsa-1": 4.0,
    "lsa-2-notebook": 1.5,
    "lsa-6": 4.0,
    "mesa-1": 4.0,
    "tf-7": None,
    "hybrid-mesa": 1.0,
    "full-mesa": None,
    "full-mesa-published": None,
    "tf-7-partial": None,
    "hybrid-mesa-partial": 1.0,
    "tf-7-nonlinear": None,
    "hybrid-mesa-nonlinear": 15.0,
    "tf-7-few-shot": None,
    "hybrid-mesa-few-shot": 1.0,
    "contracting-lsa-6": 4.0,
    "fixed-mesa-1": 4.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_train_as_published(name: str) -> None:
    train = recipes.get(name).train
    found = (train.learning_rate, train.schedule, train.weight_decay, train.batch_size, train.steps)
    assert found == PUBLISHED[name]
    assert train.gradient_clip == 1.0
    decay = DECAY.get(name, 30_000)
    assert (train.warmup_steps, train.decay_steps, train.final_learning_rate) == (1000, decay, 1e-5)


def test_every_recipe_of_the_first_paper_is_held_to_its_publication() -> None:
    ours = {recipe.name for recipe in recipes.select(source="uncovering2023")}
    assert ours == set(PUBLISHED)


FAMILY = {
    "gated-linear-1": "gated_linear_attention",
    "delta-1": "delta_rule",
    "gated-delta-1": "gated_delta_rule",
    "longhorn-1": "longhorn",
    "softmax-1": "softmax_attention",
    "mesanet-1": "mesanet2025",
}


def test_the_family_differs_from_the_mesa_layer_in_its_mixer_alone() -> None:
    assert [recipe.name for recipe in recipes.select(source="family")] == list(FAMILY)
    mesa = recipes.get("mesa-1")
    for name, mixer in FAMILY.items():
        model = replace(mesa.model, mixers=(mixer,))
        assert recipes.get(name) == replace(mesa, recipe=name, model=model)
        assert recipes.RECIPES[name].architecture == name
    one_layer = {"linear_attention", "mesa", *FAMILY.values()}  # lsa-1 and mesa-1 are published
    assert one_layer == set(get_args(MixerName))


def test_recipes_are_found_under_their_names() -> None:
    assert all(recipe.name == name for name, recipe in recipes.RECIPES.items())
    assert recipes.select() == tuple(recipes.RECIPES.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_facts_of_a_recipe_are_those_of_its_configuration(name: str) -> None:
    recipe = recipes.RECIPES[name]
    task, model = recipe.config.task, recipe.config.model
    if task.kind == "linear_system":
        systems = {"orthogonal": "linear", "contracting": "contracting", "fixed": "fixed"}
        assert recipe.task == systems[task.transition]
    else:
        kinds = {"partial": "partially_observed", "nonlinear": "nonlinear_system"}
        assert task.kind == kinds[recipe.task]
    assert recipe.mixers == recipes.MODELS[recipe.architecture].mixers
    assert recipe.head_dim == model.head_dim
    standard = [r.name for r in recipes.select(architecture=recipe.architecture, task=recipe.task)]
    if recipe.variant == "width":
        assert recipe.width != recipes.RECIPES[standard[0]].width == 80
    if recipe.variant == "dimension":
        assert name == f"tf-7-dim-{recipe.dim}"
        assert recipe.width == 4 * recipe.dim


def test_one_recipe_is_the_standard_of_its_architecture_and_task() -> None:
    standards = [
        (r.architecture, r.task)
        for r in recipes.select(source="uncovering2023", variant="standard")
    ]
    assert len(set(standards)) == len(standards)
    for recipe in recipes.select(source="uncovering2023"):
        assert (recipe.architecture, recipe.task) in standards


@pytest.mark.parametrize("name", [*PUBLISHED, *FAMILY])
def test_every_recipe_takes_a_step(name: str) -> None:
    config = recipes.get(name)
    small = replace(config.train, batch_size=2, evaluation_sequences=2, warmup_steps=0)
    trainer = Trainer(replace(config, train=small), torch.device("cpu"))
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    assert trainer.step(0).isfinite().all()
    for before, after in zip(weights, trainer.model.parameters(), strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", CLIPS)
def test_activations_are_clipped_as_published(name: str) -> None:
    assert recipes.get(name).model.activation_clip == CLIPS[name]


def test_names_say_what_the_layers_are() -> None:
    mixers = {name: config.mixers for name, config in recipes.MODELS.items()}
    assert mixers["full-mesa"] == ("mesa", "mesa")
    assert mixers["full-mesa-published"] == ("linear_attention", "mesa")
    assert mixers["hybrid-mesa"] == ("softmax_attention", "mesa")
    for count in (3, 7, 12):
        assert mixers[f"tf-{count}"] == ("softmax_attention",) * count


def test_constructed_tokens_meet_constructed_models() -> None:
    for name, recipe in recipes.RECIPES.items():
        model = recipe.config.model
        if model.kind == "sequence":
            plain = recipe.config.task.token_slots == ("current",)
            assert plain == (model.positions == "first_layer") == (model.readout == "linear"), name


def test_one_layer_does_not_see_the_current_state_twice() -> None:
    for name, recipe in recipes.RECIPES.items():
        model, task = recipe.config.model, recipe.config.task
        if model.kind == "sequence" and model.readout == "first_slot":
            wanted = ("zero", "zero" if model.depth == 1 else "current", "current", "previous")
            assert task.token_slots == wanted, name


def test_the_page_on_models_names_them_all() -> None:
    page = (Path(mesaopt.__file__).parent.parent / "docs/models.md").read_text()
    for name in [*PUBLISHED, *FAMILY, *recipes.MODELS]:
        assert f"`{name}`" in page, name
    for name, mixer in FAMILY.items():
        count = sum(p.numel() for p in make_model(recipes.get(name).model).parameters())
        assert f"| `{name}` | `{mixer}` | {count:,} |" in page
    for fact in [*get_args(MixerName), *get_args(TaskName), *get_args(Variant)]:
        assert f"`{fact}`" in page, fact
