"""What a reproduction is made of: runs to train, then figures and claims computed from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, suggest
from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.training import Run

Scale = Literal["smoke", "small", "paper"]
"""How much work: seconds (for tests), minutes on a laptop, or as published."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The runs of one recipe: how many seeds, how long.

    Example:
        >>> [run.seed for run in Training(recipe="lsa-1", seeds=2, steps=10).configs]
        [0, 1]
    """

    recipe: str
    seeds: int
    steps: int
    evaluation_sequences: int = 2560
    """Test sequences of the learning curve."""

    @property
    def configs(self) -> list[RunConfig]:
        """One configuration per seed."""
        configs = [recipes.get(self.recipe, seed=seed) for seed in range(self.seeds)]
        changes = {"steps": self.steps, "evaluation_sequences": self.evaluation_sequences}
        return [replace(config, train=replace(config.train, **changes)) for config in configs]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One item at one scale.

    Example:
        >>> Plan(what="core", scale="smoke", trainings=(), num_sequences=256).configs
        {}
    """

    what: str
    scale: Scale
    trainings: tuple[Training, ...]
    num_sequences: int
    """Test sequences that the trained models are compared on."""

    @property
    def configs(self) -> dict[str, RunConfig]:
        """All runs, by the name of their folder."""
        return {
            f"{config.recipe}-seed{config.seed}": config
            for training in self.trainings
            for config in training.configs
        }


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an item comes to."""

    figures: list[FigureResult]
    claims: list[Claim]


Runs = dict[str, list[Run]]
"""Trained runs, one list of seeds per recipe."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that `mesaopt reproduce` knows: its plans by scale, and how results are computed."""

    name: str
    title: str
    summary: str
    """One line for `mesaopt list`."""
    introduction: str
    """What the report says first."""
    plans: dict[Scale, Plan]
    compute: Callable[[Plan, Runs, Callable[[int], None] | None], Results]
    """Told the plan, the trained runs, and whom to tell the batches of test sequences done."""

    def plan(self, scale: str, *, seeds: int | None = None) -> Plan:
        """Give the plan of a scale.

        Args:
            scale: "smoke", "small" or "paper".
            seeds: training seeds of every recipe; the scale's own numbers if not given.

        Returns:
            The plan.

        Raises:
            ConfigError: there is no such scale, or seeds is less than 1.
        """
        if scale not in get_args(Scale):
            raise ConfigError(f"scale={scale!r}: {suggest(scale, get_args(Scale))}")
        plan = self.plans[scale]  # type: ignore[index]
        if seeds is None:
            return plan
        if seeds < 1:
            raise ConfigError(f"seeds={seeds}: must be 1 or greater")
        return replace(plan, trainings=tuple(replace(t, seeds=seeds) for t in plan.trainings))
