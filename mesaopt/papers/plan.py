"""What a reproduction is made of: runs to train, then parts that compute figures and claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Self, TypeVar, get_args

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.errors import ConfigError, suggest
from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.training import Run, run_name

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
    """One item at one scale; an item with settings of its own gives a subclass that holds them.

    Example:
        >>> Plan(what="core", scale="smoke").configs
        {}
    """

    what: str
    """Name of the item."""
    scale: Scale
    parts: tuple[str, ...] = ()
    """Names of the parts chosen, in the item's order; () is all of them."""
    trainings: tuple[Training, ...] = ()
    num_sequences: int = 0
    """Test sequences that the trained models are compared on."""

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


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a part comes to."""

    figures: list[FigureResult]
    claims: list[Claim]


Runs = dict[str, list[Run]]
"""Trained runs, one list of seeds per recipe."""

Report = Callable[[int, int], None]
"""Told how many of how many steps a part has done, in units of its own."""


@dataclass(frozen=True)
class Measured:
    """What the parts of an item start from.

    Where parts share measurements, an item gives a subclass with a :func:`functools.cached_property` for
    each: it is computed for the first part that asks, and never for parts that were not chosen.

    Example:
        >>> Measured(Plan(what="core", scale="smoke"), {}).plan.scale
        'smoke'
    """

    plan: Any
    """The :class:`Plan`, or the item's own kind of it."""
    runs: Runs

    def claim(
        self,
        name: str,
        figure: str,
        statement: str,
        *,
        value: float,
        low: float | None = None,
        high: float | None = None,
        basis: str,
    ) -> Claim:
        """Make a claim of the paper that the item is called after.

        Args:
            name: short, unique in the item.
            figure: where it stands.
            statement: what is claimed, in one sentence.
            value: what was measured.
            low: smallest value that passes; None for no lower limit.
            high: largest value that passes; None for no upper limit.
            basis: where the limits come from.

        Returns:
            The claim, at the plan's scale.
        """
        return Claim(
            id=f"{self.plan.what}/{name}",
            paper=self.plan.what,
            figure=figure,
            statement=statement,
            scale=self.plan.scale,
            value=value,
            low=low,
            high=high,
            basis=basis,
        )


M = TypeVar("M")


def _nothing(_: Plan) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Part(Generic[M]):
    """A piece of an item that can be asked for by itself, such as one figure of a paper.

    Example:
        >>> def compute(measured: Measured, report: Report) -> Results:
        ...     report(1, 1)
        ...     return Results(figures=[], claims=[])
        >>> Part(name="fig1", summary="a demonstration", compute=compute, seconds=lambda plan: 2.0).name
        'fig1'
    """

    name: str
    """Short name, unique in the item, such as "fig1"; a file is called after it."""
    summary: str
    """One line for `mesaopt list` and the headings of the report."""
    compute: Callable[[M, Report], Results]
    """Told what the item's `measure` gave, and whom to tell of its progress: a part that takes more than
    two seconds should. It draws in the house style without having to ask for it."""
    seconds: Callable[[Any], float]
    """Rough time to compute it, for a plan."""
    recipes: tuple[str, ...] | None = None
    """Recipes whose runs it reads; None: all of the plan's. What no chosen part reads is not trained."""
    memory: Callable[[Any], int] = _nothing
    """Rough memory it needs beyond that of the program, in bytes, for a plan."""


@dataclass(frozen=True, kw_only=True)
class Item(Generic[M]):
    """Something that `mesaopt reproduce` knows: its plans by scale, and the parts it consists of."""

    name: str
    title: str
    summary: str
    """One line for `mesaopt list`."""
    introduction: str
    """What the report says first."""
    plans: Mapping[Scale, Plan]
    measure: Callable[[Plan, Runs], M]
    """Makes what all parts share, such as :class:`Measured` itself; not called when no part needs it."""
    parts: tuple[Part[M], ...]
    """In the order of the report. An item with one part is always computed as a whole."""

    def plan(self, scale: str, *, seeds: int | None = None, parts: Sequence[str] = ()) -> Plan:
        """Give the plan of a scale.

        Args:
            scale: "smoke", "small" or "paper".
            seeds: training seeds of every recipe; the scale's own numbers if not given.
            parts: names of parts, in any order; all of them if empty.

        Returns:
            The plan.

        Raises:
            ConfigError: there is no such scale or part, seeds is less than 1, or there is no choice of
                seeds or parts.
        """
        if scale not in get_args(Scale):
            raise ConfigError(f"scale={scale!r}: {suggest(scale, get_args(Scale))}")
        plan = replace(self.plans[scale], parts=self._choose(parts))  # type: ignore[index]
        plan = replace(plan, trainings=self._needed(plan))
        if seeds is None:
            return plan
        if seeds < 1:
            raise ConfigError(f"seeds={seeds}: must be 1 or greater")
        return plan.with_seeds(seeds)

    def chosen(self, plan: Plan) -> list[Part[M]]:
        """Give the parts that a plan asks for, in the item's order."""
        return [part for part in self.parts if not plan.parts or part.name in plan.parts]

    def _needed(self, plan: Plan) -> tuple[Training, ...]:
        """Give the trainings that some chosen part reads."""
        chosen = self.chosen(plan)
        return tuple(
            training
            for training in plan.trainings
            if any(part.recipes is None or training.recipe in part.recipes for part in chosen)
        )

    def _choose(self, parts: Sequence[str]) -> tuple[str, ...]:
        names = [part.name for part in self.parts]
        for name in parts:
            if len(names) == 1:
                raise ConfigError(f"part={name!r}: {self.name} has no parts to choose")
            if name not in names:
                raise ConfigError(f"part={name!r}: {suggest(name, names)}")
        chosen = tuple(name for name in names if name in parts)
        return () if len(chosen) == len(names) else chosen
