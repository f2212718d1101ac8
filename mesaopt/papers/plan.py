"""Studies: what `mesaopt reproduce` knows, as plans by scale and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, get_args

from mesaopt.errors import ConfigError, suggest
from mesaopt.papers.figure import Figure
from mesaopt.papers.laboratory import Laboratory, Plan, Runs, Scale, Source, Training

L = TypeVar("L", bound=Laboratory)


def _no_memory(_: Plan) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number at the head of the report: that of a claim, and what it says."""

    claim: str
    """Name of the claim that measures it."""
    text: str
    """The meaning of the number, as the end of a sentence that begins with it."""


@dataclass(frozen=True, kw_only=True)
class Study(Generic[L]):
    """Something that `mesaopt reproduce` knows: its plans by scale, and its figures."""

    name: str
    title: str
    summary: str
    """One line for `mesaopt list`."""
    introduction: str
    """The first paragraph of the report."""
    paper: str
    """Name of the paper's package."""
    plans: Mapping[Scale, Plan]
    laboratory: Callable[[Plan, Runs], L]
    """Makes the laboratory that all figures share; not called when every figure is finished."""
    figures: tuple[Figure[L], ...]
    """In the order of the report."""
    needs_all_runs: bool = False
    """Whether a figure needs runs of all its recipes; otherwise it leaves out what has no runs."""
    memory: Callable[[Plan], int] = _no_memory
    """Rough memory that measuring needs beyond that of the program, in bytes."""
    source: Source | None = None
    headlines: tuple[Headline, ...] = ()
    """Numbers for the head of the report; the first three that were measured are shown."""

    def plan(self, scale: str, *, seeds: int | None = None, figures: Sequence[str] = ()) -> Plan:
        """Give the plan of a scale.

        Args:
            scale: "smoke", "small" or "paper".
            seeds: training seeds of every recipe; the scale's own numbers if not given.
            figures: names in any order; all of them if empty. "fig2" also names "fig2a" and "fig2b",
                and "fig25" also "fig25-training".

        Returns:
            The plan.

        Raises:
            ConfigError: there is no such scale or figure, seeds is less than 1, or there is no choice of
                seeds.
        """
        if scale not in get_args(Scale):
            raise ConfigError(f"scale={scale!r}: {suggest(scale, get_args(Scale))}")
        plan = replace(self.plans[scale], figures=self._choose(figures))  # type: ignore[index]
        plan = replace(plan, trainings=self._needed(plan))
        if seeds is None:
            return plan
        if seeds < 1:
            raise ConfigError(f"seeds={seeds}: must be 1 or greater")
        return plan.with_seeds(seeds)

    def chosen(self, plan: Plan) -> list[Figure[L]]:
        """Give the figures that a plan asks for, in the study's order."""
        return [
            figure for figure in self.figures if not plan.figures or figure.name in plan.figures
        ]

    def _needed(self, plan: Plan) -> tuple[Training, ...]:
        """Give the trainings that some chosen figure reads."""
        read = {recipe for figure in self.chosen(plan) for recipe in figure.recipes}
        return tuple(training for training in plan.trainings if training.recipe in read)

    def _choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        names = [figure.name for figure in self.figures]
        asked: set[str] = set()
        for name in wanted:
            parts = {n for n in names if n == name or n.startswith(f"{name}-")}
            parts = parts or {n for n in names if n.rstrip("abcdefgh") == name}
            if not parts:
                raise ConfigError(f"figure={name!r}: {suggest(name, names)}")
            asked |= parts
        chosen = tuple(name for name in names if name in asked)
        return () if len(chosen) == len(names) else chosen
