"""The points of a sweep: their names, what came of them, and which settings are the best."""

import functools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.config import RunConfig, flat, to_dict
from mesaopt.display import Curve, Drawn, Row

_SHOWN_CURVES = 6


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    path: Path
    """Its run folder."""
    config: RunConfig
    settings: Mapping[str, Any]
    """Those that are not the same for all points, without the seed, by name."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of its `metrics.jsonl`."""
    is_done: bool = False
    problem: str | None = None
    """Why it has not come to its end, as far as it was tried."""

    @property
    def state(self) -> str:
        """One of "done", "failed" and "waiting"."""
        return "done" if self.is_done else "failed" if self.problem else "waiting"

    @property
    def test_loss(self) -> float | None:
        """The test loss after the last step; None before."""
        return self.metrics[-1]["test_loss"] if self.is_done and self.metrics else None


@dataclass(frozen=True)
class Group:
    """Points that differ in their seeds alone."""

    settings: Mapping[str, Any]
    points: Sequence[Point]

    @property
    def title(self) -> str:
        """The settings in words."""
        return ", ".join(f"{name} {_word(value)}" for name, value in self.settings.items())

    @property
    def losses(self) -> list[float]:
        """Test losses after the last step, of the points that came to it."""
        return [point.test_loss for point in self.points if point.test_loss is not None]

    @property
    def mean(self) -> float:
        """The mean of the losses; infinite where there are none."""
        return statistics.fmean(self.losses) if self.losses else math.inf

    @property
    def has_failed(self) -> bool:
        """Whether a point was tried and did not come to its end."""
        return any(point.state == "failed" for point in self.points)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the losses over seeds; None of fewer than two."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else None


@dataclass(frozen=True, repr=False)
class Sweep(Drawn):
    """The points of a sweep, as :func:`sweep` and :func:`load_sweep` return them.

    It prints its best settings. `plot()` draws the learning curves of the best, and `to_dataframe()` has a
    row for every point.
    """

    path: Path
    """The folder of the sweep."""
    points: list[Point]
    """In the order of the settings."""

    _axes = {"xlabel": "step", "ylabel": "test loss", "yscale": "log"}

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The points by their settings, those with the lowest mean loss first.

        Settings with a failed point come behind those without one, whatever the others lost: a rate at
        which some seeds diverge is not the best. Settings of which no point has ended come last.
        """
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            groups.setdefault(json.dumps(to_dict(dict(point.settings))), []).append(point)
        found = [Group(points[0].settings, points) for points in groups.values()]
        return sorted(found, key=lambda group: (not group.losses, group.has_failed, group.mean))

    @property
    def best(self) -> Point | None:
        """The point with the lowest loss among those of the best settings; None where none has ended."""
        ended = [point for point in self.groups[0].points if point.test_loss is not None]
        return min(ended, key=lambda point: point.test_loss or 0.0, default=None)

    @property
    def failed(self) -> list[Point]:
        """The points that were tried and did not come to their end."""
        return [point for point in self.points if point.state == "failed"]

    def table(self) -> list[Row]:
        """Give a row for each combination of settings, the best first."""
        return [
            dict(group.settings)
            | {
                "done": f"{len(group.losses)} of {len(group.points)}",
                "mean loss": group.mean if group.losses else None,
                "spread": group.spread,
                "lowest": min(group.losses, default=None),
            }
            for group in self.groups
        ]

    def rows(self) -> list[Row]:
        """Give a row for each point: its settings, its state and its newest losses."""
        columns = ("step", "train_loss", "test_loss")
        return [
            {"point": point.path.name, **point.settings, "seed": point.config.seed}
            | {"state": point.state, "problem": point.problem}
            | {name: point.metrics[-1][name] if point.metrics else None for name in columns}
            for point in self.points
        ]

    def _headline(self) -> str:
        count = sum(point.is_done for point in self.points)
        lines = [f"Sweep {self.path}: {count} of {len(self.points)} points are done"]
        if self.best is not None:
            best = self.groups[0]
            spread = "" if best.spread is None else f" (spread {best.spread:.2g})"
            settings = f" with {best.title}" if best.title else ""
            lines.append(f"Best mean test loss: {best.mean:.4g}{spread}{settings}")
        lines += [f"{point.path.name} failed: {point.problem}" for point in self.failed[:3]]
        if len(self.failed) > 3:
            lines.append(f"{len(self.failed) - 3} more have failed")
        return "\n".join(lines)

    def _table(self) -> list[Row]:
        return self.table()[:5]

    def _rows(self) -> list[Row]:
        return self.rows()

    def _curves(self) -> list[Curve]:
        """Draw the mean over seeds, with the error of the mean as a band, as far as all have come."""
        curves = []
        for group in self.groups[:_SHOWN_CURVES]:
            # Of every evaluation, the lines of all seeds.
            lines = list(zip(*(point.metrics for point in group.points), strict=False))
            losses = [[one["test_loss"] for one in seeds] for seeds in lines]
            if len(lines) > 1:
                error = [statistics.stdev(x) / len(x) ** 0.5 if len(x) > 1 else 0.0 for x in losses]
                means = [statistics.fmean(x) for x in losses]
                steps = [seeds[0]["step"] for seeds in lines]
                curves.append(Curve(group.title or "test loss", steps, means, error))
        return curves


def points_of(configs: Mapping[str, RunConfig], out: Path) -> list[Point]:
    """Give the points of some settings by their name, without what is in their folders."""
    given = varied(list(configs.values()))
    return [
        Point(path=files.inside(out, name), config=config, settings=settings)
        for (name, config), settings in zip(configs.items(), given, strict=True)
    ]


def varied(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Give each point the settings that vary, without the seed: the recipe, and what varies within one."""
    settings = [flat(to_dict(config)) for config in configs]
    names = list(dict.fromkeys(name for one in settings for name in one if name != "seed"))
    first: dict[str, dict[str, Any]] = {}
    for one in settings:
        first.setdefault(one["recipe"], one)
    chosen = [
        name
        for name in names
        if any(one.get(name) != first[one["recipe"]].get(name) for one in settings)
    ]
    chosen = (["recipe"] if len(first) > 1 else []) + chosen
    last = [name.rpartition(".")[2] for name in chosen]
    short = [one if last.count(one) == 1 else name for one, name in zip(last, chosen, strict=True)]
    return [
        {name: one.get(full) for name, full in zip(short, chosen, strict=True)} for one in settings
    ]


def names_of(configs: Sequence[RunConfig]) -> list[str]:
    """Name the folder of each point by its settings; with a number where that is too long or not enough."""
    names = []
    for config, settings in zip(configs, varied(configs), strict=True):
        parts = [f"{name}={_word(x)}" for name, x in settings.items() if name != "recipe"]
        text = "-".join([config.recipe, *parts, f"seed{config.seed}"])
        names.append(re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)[:150])
    if len(set(names)) < len(names):
        return [f"{i:04d}-{name}" for i, name in enumerate(names)]
    return names


def _word(value: Any) -> str:
    """Write the value of a setting."""
    return value if isinstance(value, str) else json.dumps(to_dict(value)).replace('"', "")
