"""A study without training, made of three trivial figures, with a plan of its own."""

import time
from dataclasses import dataclass, field, replace

from matplotlib.axes import Axes

from mesaopt.looks import PALETTE
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import Laboratory, Plan, Scale, measurement
from mesaopt.papers.plan import Study
from mesaopt.papers.rows import PanelData
from mesaopt.progress import Progress

FIGURES = ("fig1", "fig2", "fig3")
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")


@dataclass(frozen=True, kw_only=True)
class ToyPlan(Plan):
    draws: int

    def with_seeds(self, seeds: int) -> "ToyPlan":
        return replace(self, draws=seeds)


@dataclass
class Toy:
    """The study, a log of what is computed, and a figure to break."""

    log: list[str] = field(default_factory=list)
    broken: str = ""

    def __post_init__(self) -> None:
        self.numbers = measurement(self._numbers)

    def _numbers(self, lab: Laboratory, until: int) -> list[int]:
        self.log.append("numbers")
        return list(range(until))

    @property
    def study(self) -> Study:
        return Study(
            name="toy",
            paper="toy",
            title="A toy",
            summary="three figures",
            introduction="Nothing is trained.",
            plans={s: ToyPlan(what="toy", scale=s, draws=n + 2) for n, s in enumerate(SCALES)},
            laboratory=Laboratory,
            figures=tuple(self._figure(name, n) for n, name in enumerate(FIGURES, start=1)),
            memory=lambda plan: 2**30,
        )

    def _figure(self, name: str, seconds: int) -> Figure:
        def measure(lab: Laboratory) -> PanelData:
            self.log.append(name)
            if name == self.broken:
                raise RuntimeError(f"{name} is broken")
            lab.on_progress(Progress(1, 2))
            time.sleep(0.02)  # a time that is not rounded to none
            return PanelData(rows=[{"number": n} for n in self.numbers(lab, lab.plan.draws)])

        def draw(axes: Axes, data: PanelData) -> None:
            axes.plot([row["number"] for row in data.rows], color=PALETTE[0])

        return Figure(
            name=name,
            title=f'{name}: "a" < b & c',
            summary=f"what {name} shows",
            caption="A caption. " * 60,
            panels=(Panel(name="numbers", measure=measure, draw=draw),),
            layout=grid(width=3, height=2),
            settings=lambda lab: {"draws": lab.plan.draws},
            claims=lambda lab: claims(name),
            seconds={"smoke": seconds, "small": 2 * seconds, "paper": 3 * seconds},
        )


def claims(name: str) -> list[Claim]:
    """Two claims of a figure, one of which fails, and one that is not measured; fig2 claims nothing."""
    limits = {"low": (1.0, 2.0), "lower": (1.0, 0.5), "lost": (None, 1.0)}
    return [
        Claim(
            name=f"{name}-{word}",
            figure=name,
            statement=f"{name} is {word}",
            measured=value,
            high=high,
            basis="made up",
        )
        for word, (value, high) in limits.items()
        if name != "fig2"
    ]


STUDY = Toy().study
"""Replaced by tests that look into theirs."""
