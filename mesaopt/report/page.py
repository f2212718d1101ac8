"""A figure with tables around it, as one HTML file, or the figure alone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from mesaopt import files
from mesaopt.errors import printable
from mesaopt.papers.plots import style
from mesaopt.report.html import page_templates
from mesaopt.report.svg import inline


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    title: str
    rows: Sequence[dict[str, str]]
    """All with the same columns; the text is shown alone where there is none."""
    text: str = ""
    verbatim: str = ""
    """Shown as it is, line by line."""


@dataclass(frozen=True)
class Page:
    """A figure with words and tables."""

    title: str
    lead: str
    """A sentence or two below the title."""
    figure: Figure
    """In the house style."""
    caption: str
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()
    """The commands to type next."""


def write(page: Page, path: Path) -> None:
    """Write a page as one HTML file that needs nothing but itself, or its figure alone as PNG or SVG.

    Args:
        page: to be written.
        path: of the file, whose ending says what is written; folders above it are made.

    Raises:
        RunError: the disk is full.
    """
    if path.suffix.lower() != ".html":
        save_figure(page.figure, path)
        return
    template = page_templates().get_template("page.html.j2")
    svg = inline_figure(page.figure, "figure", page.title)
    files.write(path, template.render(page=page, svg=svg, version=version("mesaopt")))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the ending of the path.

    Args:
        figure: drawn in the house style.
        path: of the file; folders above it are made.

    Raises:
        RunError: the disk is full.
    """
    if path.suffix.lower() == ".svg":
        files.write(path, _svg(figure))
        return
    picture = io.BytesIO()
    with style():
        figure.savefig(picture, format="png", dpi=200)
    files.write(path, picture.getvalue())


def inline_figure(figure: Figure, name: str, title: str) -> Markup:
    """Write a figure as a part of a page, whose colours follow those of the page.

    Args:
        figure: drawn in the house style.
        name: unique on the page.
        title: read out by screen readers.

    Returns:
        The element.
    """
    return Markup(inline(_svg(figure), name, title))


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    with style():
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()


def scale_of(values: Sequence[float]) -> str:
    """Choose the scale of an axis: logarithmic for positive numbers that span more than a factor of 20.

    Args:
        values: that are drawn, one or more.

    Returns:
        "log" or "linear".

    Example:
        >>> scale_of([0.9, 1.7]), scale_of([0.001, 1.7]), scale_of([-1.0, 50.0])
        ('linear', 'log', 'linear')
    """
    low, high = min(values), max(values)
    return "log" if low > 0 and high > 20 * low else "linear"


def plain(text: str) -> str:
    """Write a name so that a figure shows it as it is: not as a formula, and never hidden in a legend.

    Args:
        text: from a user or a file.

    Returns:
        The text, on one line.

    Example:
        >>> plain("_a$b$")
        ' _a\\\\$b\\\\$'
    """
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
