"""An item without training, made of three trivial parts, with a plan of its own."""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

from matplotlib.figure import Figure

from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Item, Measured, Part, Plan, Report, Results, Scale

PARTS = ("fig1", "fig2", "fig3")
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")


@dataclass(frozen=True, kw_only=True)
class ToyPlan(Plan):
    draws: int

    def with_seeds(self, seeds: int) -> "ToyPlan":
        return replace(self, draws=seeds)


@dataclass
class Toy:
    """The item, what it was asked for, and a part to break."""

    log: list[str] = field(default_factory=list)
    broken: str = ""

    @property
    def item(self) -> Item:
        toy = self

        class Numbers(Measured):
            @cached_property
            def numbers(self) -> list[int]:
                toy.log.append("numbers")
                return list(range(self.plan.draws))

        return Item(
            name="toy",
            title="A toy",
            summary="three parts",
            introduction="Nothing is trained.",
            plans={s: ToyPlan(what="toy", scale=s, draws=n + 2) for n, s in enumerate(SCALES)},
            measure=Numbers,
            parts=tuple(self._part(name, seconds) for seconds, name in enumerate(PARTS, start=1)),
        )

    def _part(self, name: str, seconds: int) -> Part:
        def compute(measured, report: Report) -> Results:
            self.log.append(name)
            if name == self.broken:
                raise RuntimeError(f"{name} is broken")
            report(1, 2)
            time.sleep(0.02)  # a time that is not rounded to none
            return results(name, measured.numbers, measured.plan.scale)

        return Part(
            name=name,
            summary=f"what {name} shows",
            compute=compute,
            seconds=lambda plan: seconds * plan.draws,
            memory=lambda plan: 2**30,
        )


def results(name: str, numbers: list[int], scale: str) -> Results:
    """A figure and two claims, one of which fails; the second part claims nothing."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(numbers, color=PALETTE[0])
    drawn = FigureResult(
        id=f"toy-{name}",
        title=f'{name}: "a" < b & c',
        caption="A caption. " * 60,
        settings={"draws": len(numbers)},
        rows=[{"number": number} for number in numbers],
        figure=figure,
    )
    claims = [
        Claim(
            id=f"toy/{name}-{word}",
            paper="toy",
            figure=name,
            statement=f"{name} is {word}",
            scale=scale,
            value=1.0,
            high=high,
            basis="made up",
        )
        for word, high in (("low", 2.0), ("lower", 0.5))
        if name != "fig2"
    ]
    return Results(figures=[drawn], claims=claims)
