"""Figures: measured first, then drawn from what was saved, with the claims that rest on them.

A :class:`Figure` is a declaration. :func:`save_figure` measures its panels and writes their numbers;
:func:`draw_figure` draws it from these files alone, so that it can be drawn again without runs or models.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure

from mesaopt import files, json_files
from mesaopt.errors import RunError
from mesaopt.papers.claims import Claim
from mesaopt.papers.laboratory import Laboratory, Runs, Scale
from mesaopt.papers.plots import style
from mesaopt.papers.rows import PanelData, read_table, table

L = TypeVar("L", bound=Laboratory)

FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Endings of the files of a drawing, and metadata that would differ every time and are left out."""


@dataclass(frozen=True, kw_only=True)
class Panel(Generic[L]):
    """One panel of a figure: how its numbers are measured, and how they are drawn."""

    name: str
    """Unique in the figure."""
    measure: Callable[[L], PanelData | None]
    """Gives the numbers; None leaves the panel out, for want of runs."""
    draw: Callable[[Any, PanelData], None]
    """Draws them into what the figure's layout gives: an `Axes` or a `SubFigure`."""


Places = tuple[Drawing, Sequence[Axes | SubFigure]]
Layout = Callable[[Sequence[PanelData]], Places]
"""Makes an empty drawing with a place for each panel, given their numbers."""


def grid(
    columns: int = 1,
    *,
    height: float,
    rows: int | None = None,
    width: float = 7.6,
    sharey: bool | Literal["row"] = False,
) -> Layout:
    """Lay panels out in rows of equal axes.

    Args:
        columns: panels in a row, at most.
        height: of the whole drawing, in inches.
        rows: number of rows, in place of `columns`.
        width: of the whole drawing, in inches; the report is made for 7.6.
        sharey: see `matplotlib.figure.Figure.subplots`.

    Returns:
        The layout.
    """

    def layout(panels: Sequence[PanelData]) -> Places:
        drawing = Drawing(figsize=(width, height))
        across = min(columns, len(panels)) if rows is None else -(-len(panels) // rows)
        down = -(-len(panels) // across)
        axes = drawing.subplots(down, across, squeeze=False, sharey=sharey).flatten()
        for unused in axes[len(panels) :]:
            unused.remove()
        return drawing, axes[: len(panels)].tolist()

    return layout


def stack(height: Callable[[PanelData], float], *, width: float = 7.6) -> Layout:
    """Lay panels out below one another, each in a sub-figure of its own.

    Args:
        height: gives the height of a panel in inches, from its numbers.
        width: of the drawing, in inches.

    Returns:
        The layout.
    """

    def layout(panels: Sequence[PanelData]) -> Places:
        heights = [height(panel) for panel in panels]
        drawing = Drawing(figsize=(width, sum(heights)))
        parts = drawing.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)
        return drawing, parts[:, 0].tolist()

    return layout


def _nothing(_: Any) -> Any:
    return {}


@dataclass(frozen=True, kw_only=True)
class Figure(Generic[L]):
    """A figure of a paper, with the claims that rest on it.

    Example:
        >>> def measure(lab: Laboratory) -> PanelData:
        ...     return PanelData(rows=[{"x": x, "y": x * x} for x in range(3)])
        >>> def draw(axes: Axes, data: PanelData) -> None:
        ...     axes.plot([row["x"] for row in data.rows], [row["y"] for row in data.rows])
        >>> figure = Figure(
        ...     name="fig1", title="Squares", summary="a demonstration", caption="x and x squared.",
        ...     panels=(Panel(name="squares", measure=measure, draw=draw),), layout=grid(height=3),
        ... )
        >>> figure.name
        'fig1'
    """

    name: str
    """Short name, unique in the study, such as "fig1"; its files are called after it."""
    title: str
    summary: str
    """One line for `mesaopt list` and the headings of the report."""
    caption: str | Callable[[L], str]
    """The text below it: the drawing explained, and, after an empty line, how it was made and how the
    paper's differs."""
    message: str = ""
    """One sentence above it: what there is to see."""
    recipes: tuple[str, ...] = ()
    """Recipes whose runs it reads."""
    needs_runs: bool = True
    """Whether it is left out without any of their runs."""
    trains: bool = False
    """Whether measuring it trains models of its own."""
    panels: tuple[Panel[L], ...] = ()
    layout: Layout
    finish: Callable[[Drawing], None] = _nothing
    """Adds what the panels share, such as a legend."""
    settings: Callable[[L], dict[str, Any]] = _nothing
    """Further settings for the line under the figure, besides scale, steps and seeds."""
    claims: Callable[[L], Iterable[Claim]] = _nothing
    widget: str = ""
    """Shown by the report in its place where scripts run: "layer", of the panel with that name."""
    seconds: Mapping[Scale, float] = field(
        default_factory=lambda: {"smoke": 1.0, "small": 3.0, "paper": 10.0}
    )
    """Rough time to measure and draw it, by scale."""


def is_possible(figure: Figure[Any], runs: Runs) -> bool:
    """Say whether there are the runs that a figure needs."""
    needed = figure.recipes if figure.needs_runs else ()
    return not needed or any(runs.get(recipe) for recipe in needed)


def measure(figure: Figure[L], lab: L) -> dict[str, PanelData]:
    """Measure the panels of a figure, by name; none if it is not possible."""
    if not is_possible(figure, lab.runs):
        return {}
    measured = {panel.name: panel.measure(lab) for panel in figure.panels}
    return {name: data for name, data in measured.items() if data is not None}


def judge(figure: Figure[L], lab: L, *, waiting: bool = False) -> list[Claim]:
    """Judge the claims of a figure, and list those that wait for models, without a number, if asked."""
    return [claim for claim in figure.claims(lab) if waiting or claim.measured is not None]


def save_figure(figure: Figure[L], lab: L, folder: Path) -> str | None:
    """Measure a figure, write its numbers as `<id>.csv` and `<id>.json`, and draw it from these.

    Args:
        figure: the figure.
        lab: measures.
        folder: of the files.

    Returns:
        The name of the files without ending; None where no panel could be measured.

    Raises:
        RunError: the disk is full.
    """
    started = time.perf_counter()
    panels = measure(figure, lab)
    if not panels:
        return None
    name = f"{lab.plan.what}-{figure.name}"
    rows = [row for data in panels.values() for row in data.rows]
    description = {
        "id": name,
        "title": figure.title,
        "message": figure.message,
        "widget": figure.widget,
        "caption": figure.caption(lab) if callable(figure.caption) else figure.caption,
        "settings": _settings(figure, lab),
        "seconds": round(time.perf_counter() - started, 2),
        "panels": {
            panel: {"rows": len(data.rows), "more": data.more} for panel, data in panels.items()
        },
    }
    files.write(folder / f"{name}.csv", table(rows))
    json_files.write(folder / f"{name}.json", description)
    draw_figure(figure, name, folder)
    return name


def draw(figure: Figure[Any], panels: Mapping[str, PanelData]) -> Drawing:
    """Draw a figure from the numbers of its panels, by name."""
    with style():
        drawn = [panel for panel in figure.panels if panel.name in panels]
        drawing, places = figure.layout([panels[panel.name] for panel in drawn])
        for panel, place in zip(drawn, places, strict=True):
            panel.draw(place, panels[panel.name])
        figure.finish(drawing)
    return drawing


def draw_figure(figure: Figure[Any], name: str, folder: Path) -> None:
    """Draw a figure from its saved numbers, as `<name>.png`, `.svg` and `.pdf`.

    Args:
        figure: says how.
        name: of the files, without ending.
        folder: of the files.

    Raises:
        RunError: the numbers are missing or damaged, or the disk is full.
    """
    drawing = draw(figure, _read_panels(folder, name))
    with style():
        if layout := drawing.get_layout_engine():  # once, and not again for each of the files
            layout.execute(drawing)
            drawing.set_layout_engine("none")
        for ending, metadata in FORMATS.items():
            transparent = ending == "svg"  # it takes the colour of its page
            files.write(
                folder / f"{name}.{ending}",
                partial(drawing.savefig, metadata=metadata, transparent=transparent),
            )


def _settings(figure: Figure[L], lab: L) -> dict[str, Any]:
    """Say what a figure was made from: scale, sequences, steps and seeds."""
    runs = {recipe: lab.runs[recipe] for recipe in figure.recipes if lab.runs.get(recipe)}
    steps = {recipe: trained[0].config.train.steps for recipe, trained in runs.items()}
    seeds = {recipe: len(trained) for recipe, trained in runs.items()}
    trained = {"steps": steps, "training seeds": seeds} if runs else {}
    return {"scale": lab.plan.scale, **figure.settings(lab), **trained}


def _read_panels(folder: Path, name: str) -> dict[str, PanelData]:
    """Read the numbers of a figure's panels."""
    path = files.inside(folder, f"{name}.json")
    description = json_files.read(path)
    csv = files.inside(folder, f"{name}.csv")
    rows = read_table(files.read_text(csv), str(csv))
    try:
        panels, start = {}, 0
        for panel, saved in description["panels"].items():
            stop = start + saved["rows"]
            panels[panel] = PanelData(rows=rows[start:stop], more=saved["more"])
            start = stop
    except (KeyError, TypeError, AttributeError) as error:
        problem = (
            f"has no panels to draw ({error!r}); it was written before figures could be redrawn"
        )
        raise RunError(f"{path}: {problem}") from None
    if start != len(rows):
        raise RunError(f"{folder / name}.csv: has {len(rows)} rows: must have {start}")
    return panels
