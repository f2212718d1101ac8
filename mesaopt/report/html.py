"""The report of a folder of results, as one HTML file with everything in it."""

import base64
import html
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mesaopt import files
from mesaopt.papers.claims import read_claims

# The colours that figures are drawn in and the page's own, which follow its light or dark scheme.
_PAGE_COLORS = {"#1b1f24": "var(--ink)", "#d8dce2": "var(--grid)"}


def write_report(folder: str | Path) -> Path:
    """Write `index.html` into a folder of results.

    Args:
        folder: as `mesaopt reproduce` leaves it, with `claims.json` and `figures/`.

    Returns:
        Path of the page.

    Raises:
        RunError: a file that the page needs is missing or damaged, or the disk is full.
    """
    folder = Path(folder)
    claims = read_claims(folder)
    index = files.read_json(folder / "figures" / "index.json")
    meta = files.read_json(folder / "meta.json")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mesaopt", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("template.html.j2").render(
        title=index["title"],
        introduction=index["introduction"],
        config=files.read_json(folder / "config.json"),
        meta=meta,
        claims=claims,
        headings=index["headings"],
        passed=sum(claim.passed for claim in claims),
        figures=[_figure(folder / "figures", name) for name in index["figures"]],
        runs=index["runs"],
        environment=_environment(meta, files.read_json(folder / "DONE")),
    )
    path = folder / "index.html"
    files.write(path, page)
    return path


def _figure(folder: Path, name: str) -> dict[str, Any]:
    description = files.read_json(folder / f"{name}.json")
    svg = files.read_text(folder / f"{name}.svg")
    csv = files.read_text(folder / f"{name}.csv")
    encoded = base64.b64encode(csv.encode()).decode()
    return {
        **description,
        "settings": _sentence(description["settings"]),
        "svg": Markup(inline(svg, name, description["title"])),
        "csv": f"data:text/csv;base64,{encoded}",
    }


def inline(svg: str, name: str, title: str) -> str:
    """Prepare a drawing for a page: colours that follow its scheme, ids that no other drawing has.

    Args:
        svg: the drawing.
        name: unique on the page.
        title: read out by screen readers.

    Returns:
        The element.
    """
    svg = svg[svg.index("<svg") :]
    for drawn, page in _PAGE_COLORS.items():
        svg = svg.replace(drawn, page)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _sentence(settings: dict[str, Any]) -> str:
    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {words(item)}" for name, item in value.items())
        return f"{value:,}" if isinstance(value, int) else str(value)

    return " · ".join(f"{name}: {words(value)}" for name, value in settings.items())


def _environment(meta: dict[str, Any], seconds: dict[str, Any]) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {version}" for name, version in meta["packages"].items())
    return [
        ("Command", " ".join(meta["command"])),
        ("Started", meta["started"]),
        *([("Training time", f"{seconds['training']:.0f} s")] if seconds["training"] else []),
        ("Measuring and drawing", f"{seconds['measuring']:.0f} s"),
        ("Processor", f"{meta['processor']}, {meta['cores']} cores, {meta['num_threads']} threads"),
        ("GPU", ", ".join(meta["gpus"]) or "none"),
        ("Memory", f"{meta['memory_gib']} GiB"),
        ("System", meta["platform"]),
        ("Python", meta["python"]),
        ("Packages", packages),
        ("Git commit", meta["git"] or "not in a checkout"),
    ]
