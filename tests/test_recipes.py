import pytest

from mesaopt import recipes
from mesaopt.config import LinearSystemConfig

# The published settings: peak learning rate, schedule, weight decay, batch, steps.
PUBLISHED = {
    "lsa-1": (2e-4, "constant", 0.05, 256, 3500),
    "lsa-2-notebook": (3e-4, "warmup_cosine", 0.05, 256, 2500),
    "lsa-2": (1e-4, "constant", 0.1, 256, 5000),
    "lsa-4": (1e-4, "constant", 0.1, 256, 10_000),
    "lsa-6": (1e-4, "constant", 0.1, 256, 15_000),
    "mesa-1": (4e-4, "constant", 0.1, 256, 4500),
    "tf-3": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "tf-7": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "tf-12": (8e-4, "warmup_cosine", 0.05, 256, 10_000),
    "hybrid-mesa": (3e-4, "warmup_cosine", 0.05, 256, 20_000),
    "full-mesa-published": (3e-4, "warmup_cosine", 0.05, 256, 3500),
    "full-mesa": (3e-4, "warmup_cosine", 0.05, 256, 3500),
}
CLIPS = {
    "lsa-1": 4.0,
    "lsa-2-notebook": 1.5,
    "lsa-6": 4.0,
    "mesa-1": 4.0,
    "tf-7": None,
    "hybrid-mesa": 1.0,
    "full-mesa": None,
    "full-mesa-published": None,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_train_as_published(name: str) -> None:
    train = recipes.get(name).train
    found = (train.learning_rate, train.schedule, train.weight_decay, train.batch_size, train.steps)
    assert found == PUBLISHED[name]
    assert train.gradient_clip == 1.0
    decay = 20_000 if name == "lsa-2-notebook" else 30_000
    assert (train.warmup_steps, train.decay_steps, train.final_learning_rate) == (1000, decay, 1e-5)


def test_every_recipe_of_the_linear_system_is_held_to_its_publication() -> None:
    named = {n for n, r in recipes.RECIPES.items() if isinstance(r.config.task, LinearSystemConfig)}
    assert named == set(PUBLISHED)


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
