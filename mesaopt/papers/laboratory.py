"""Laboratories: a study's runs, and everything that its figures measure on them, each thing once."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError
from mesaopt.progress import OnProgress, Progress
from mesaopt.training import Run, run_name

Scale = Literal["smoke", "small", "paper"]
"""How much work: seconds (for tests), minutes on a laptop, or as published."""

Runs = dict[str, list[Run]]
"""Trained runs, one list of seeds per recipe."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The paper that a study reproduces."""

    title: str
    authors: str
    url: str
    """Where it can be read; https."""


FIRST_PAPER = Source(
    title="Uncovering mesa-optimization algorithms in Transformers",
    authors="J. von Oswald, M. Schlegel, A. Meulemans and others, 2023",
    url="https://arxiv.org/abs/2309.05858",
)
"""The paper of several studies."""


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
    batch_size: int | None = None
    """Sequences in a step; that of the recipe if not given."""

    @property
    def configs(self) -> list[RunConfig]:
        """One configuration per seed."""
        configs = [recipes.get(self.recipe, seed=seed) for seed in range(self.seeds)]
        changes = {"steps": self.steps, "evaluation_sequences": self.evaluation_sequences}
        if self.batch_size is not None:
            changes["batch_size"] = self.batch_size
        return [replace(config, train=replace(config.train, **changes)) for config in configs]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trainings and amounts of one study at one scale; a study with more settings gives a subclass.

    Example:
        >>> Plan(what="core", scale="smoke").configs
        {}
    """

    what: str
    """Name of the study."""
    scale: Scale
    figures: tuple[str, ...] = ()
    """Names of the figures chosen, in the study's order; () is all of them."""
    trainings: tuple[Training, ...] = ()
    num_sequences: int = 0
    """Test sequences that the trained models are compared on."""
    runs: str | None = None
    """Name of the folder of runs that are measured; None: runs are trained as `trainings` says."""

    @property
    def configs(self) -> dict[str, RunConfig]:
        """All runs, by the name of their folder."""
        return {
            run_name(config): config for training in self.trainings for config in training.configs
        }

    def with_seeds(self, seeds: int) -> Self:
        """Give the same plan with another number of seeds; a subclass with its own seeds overrides it.

        Args:
            seeds: of every recipe, 1 or greater.

        Returns:
            The changed plan.

        Raises:
            ConfigError: nothing in the plan has seeds.

        Example:
            >>> plan = Plan(
            ...     what="core", scale="smoke", trainings=(Training(recipe="lsa-1", seeds=1, steps=9),)
            ... )
            >>> list(plan.with_seeds(2).configs)
            ['lsa-1-seed0', 'lsa-1-seed1']
        """
        if not self.trainings:
            raise ConfigError(f"seeds={seeds}: what was chosen of {self.what} has no seeds")
        return replace(self, trainings=tuple(replace(t, seeds=seeds) for t in self.trainings))


R = TypeVar("R")


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""


def ignore_runs(configs: Sequence[RunConfig]) -> None:
    """Leave the runs to those who need them."""


class Laboratory:
    """A study's runs, and the measurements on them.

    A measurement is a function of a laboratory that is decorated with :func:`measurement`: it is computed
    for the first figure that asks, and kept for the others.

    Example:
        >>> @measurement
        ... def double(lab: Laboratory, number: int) -> int:
        ...     print("computed")
        ...     return 2 * number
        >>> lab = Laboratory(Plan(what="core", scale="smoke"), {})
        >>> double(lab, 3), double(lab, 3)
        computed
        (6, 6)
    """

    plan: Any
    """The :class:`Plan`, or the study's own kind of it."""

    def __init__(self, plan: Plan, runs: Runs):
        self.plan, self.runs = plan, runs
        self.on_progress: OnProgress = ignore_progress
        """Called by measurements with their progress."""
        self.folder: Path | None = None
        """Folder for the runs of measurements that train models, which a later session resumes."""
        self.device = "auto"
        """Where these are trained: "auto", "cpu", "cuda" or "cuda:<number>"."""
        self.train_ahead: Callable[[Sequence[RunConfig]], object] = ignore_runs
        """Called with runs that a measurement is about to train: an engine trains them at once."""
        self._measured: dict[tuple[Hashable, ...], Any] = {}

    def once(self, key: tuple[Hashable, ...], compute: Callable[[], Any]) -> Any:
        """Compute something unless it was computed before under the same key."""
        if key not in self._measured:
            self._measured[key] = compute()
        return self._measured[key]

    def remember(self, measured: Callable[..., R], *args: Hashable, value: R) -> None:
        """Keep a value that was measured elsewhere as that of a measurement."""
        self._measured[inspect.unwrap(measured), *args] = value


L = TypeVar("L", bound=Laboratory)
P = ParamSpec("P")


def measurement(function: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Compute a function of a laboratory once for each laboratory and arguments.

    Args:
        function: of a laboratory and hashable arguments.

    Returns:
        The function that remembers.
    """

    @functools.wraps(function)
    def measured(lab: L, *args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs:
            raise TypeError(f"{function.__name__}: takes positional arguments only")
        return lab.once((function, *args), lambda: function(lab, *args, **kwargs))

    return measured
