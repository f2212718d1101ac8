"""Named configurations: the trainings of the published experiments, ready to run or to vary.

`RECIPES` has them by name. Each is written down once, in the module of its source:
:mod:`mesaopt.recipes.uncovering2023`, :mod:`mesaopt.recipes.emergence2024`, and
:mod:`mesaopt.recipes.family` for the layers that neither paper trained; :mod:`mesaopt.recipes.language`
has language models.
"""

from dataclasses import replace

from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, suggest
from mesaopt.recipes import emergence2024, family, language, uncovering2023
from mesaopt.recipes.models import MODELS
from mesaopt.recipes.recipe import Recipe, Source, TaskName, Variant
from mesaopt.recipes.tasks import TASKS

__all__ = [
    "MODELS",
    "RECIPES",
    "TASKS",
    "Recipe",
    "Source",
    "TaskName",
    "Variant",
    "get",
    "select",
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *uncovering2023.RECIPES,
        *emergence2024.RECIPES,
        *family.RECIPES,
        *language.RECIPES,
    )
}
"""Every recipe by name, in the order of `mesaopt list`."""


def get(name: str, *, seed: int = 0) -> RunConfig:
    """Look up the configuration of a recipe.

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


def select(
    *,
    source: Source | None = None,
    architecture: str | None = None,
    task: TaskName | None = None,
    variant: Variant | None = None,
) -> tuple[Recipe, ...]:
    """Select recipes by their facts; None selects all.

    Args:
        source: the paper that they follow.
        architecture: the name of their layers.
        task: the kind of sequences.
        variant: the difference from the standard recipe of their architecture and task.

    Returns:
        The recipes, in the order of `RECIPES`.

    Example:
        >>> [recipe.name for recipe in select(task="partial", variant="standard")]
        ['tf-7-partial', 'hybrid-mesa-partial']
        >>> [recipe.width for recipe in select(architecture="tf-7", variant="width")]
        [10, 20, 30, 50]
    """
    wanted = {"source": source, "architecture": architecture, "task": task, "variant": variant}
    facts = {fact: value for fact, value in wanted.items() if value is not None}
    return tuple(
        recipe
        for recipe in RECIPES.values()
        if all(getattr(recipe, fact) == value for fact, value in facts.items())
    )
