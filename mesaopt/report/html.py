"""The report of a folder of results, as one HTML file with everything in it."""

import base64
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mesaopt import files, json_files
from mesaopt.errors import RunError
from mesaopt.papers.claims import ROUNDING, Claim, read_claims
from mesaopt.papers.untrained import FILE, read_untrained
from mesaopt.report.svg import inline
from mesaopt.report.widget import LAYER, layer_data, script, script_hash

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RUN = {
    "name": str,
    "parameters": int,
    "steps": int,
    "batch_size": int,
    "learning_rate": float,
    "test_loss": float,
    "seconds": float,
}
_INDEX = {
    "title": str,
    "introduction": str,
    "figures": [str],
    "runs": [_RUN],
}
_SOURCE = {"title": str, "authors": str, "url": str}
_HEADLINE = {"claim": str, "text": str}
_ADDRESS = re.compile(r"https://[A-Za-z0-9./_-]{1,200}")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The content security policy of a page, should anything of a stranger ever get through."""
_META = {
    "started": str,
    "command": [str],
    "git": (str, None),
    "packages": {str: str},
    "python": str,
    "platform": str,
    "processor": str,
    "cores": (int, None),
    "num_threads": int,
    "memory_gib": float,
    "gpus": [str],
}
_FIGURE = {"title": str, "caption": str, "settings": {}, "seconds": float}


def page_templates() -> jinja2.Environment:
    """Return the templates of the pages; whatever is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mesaopt", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def write_report(folder: str | Path) -> Path:
    """Write `index.html` into a folder of results.

    The folder may come from anyone: what is in it is checked and escaped, and nothing outside of it is
    read or written.

    Args:
        folder: as `mesaopt reproduce` leaves it, with `claims.json` and `figures/`.

    Returns:
        Path of the page.

    Raises:
        RunError: a file that the page needs is missing, damaged or a link to elsewhere; the disk is full.
    """
    folder = files.as_path(folder)
    claims = read_claims(files.inside(folder, "claims.json").parent)
    untrained = read_untrained(files.inside(folder, FILE).parent)
    index = _index(folder)
    meta = json_files.read(files.inside(folder, "meta.json"), _META)
    json_files.check(meta["packages"], {"mesaopt": str}, str(folder / "meta.json"), "packages")
    config = _config(folder)
    done = json_files.read(files.inside(folder, "DONE"), {"training": float, "measuring": float})
    figures = [_figure(folder, name) for name in index["figures"]]
    plays = any(figure["widget"] for figure in figures)
    page = (
        page_templates()
        .get_template("template.html.j2")
        .render(
            title=index["title"],
            introduction=index["introduction"],
            policy=f"{_POLICY}; script-src {script_hash()}" if plays else _POLICY,
            script=Markup(script()) if plays else None,
            source=index["source"],
            headlines=_headlines(index, claims),
            config=config,
            chosen=config.get("figures") or config.get("parts") or [],
            meta=meta,
            passed=sum(claim.passed for claim in claims),
            total=len(claims),
            failed=[claim for claim in claims if not claim.passed],
            untrained=untrained,
            figures=figures,
            groups=_place(claims, figures),
            runs=index["runs"],
            environment=_environment(meta, done),
        )
    )
    path = folder / "index.html"
    files.write(path, page)
    return path


def _config(folder: Path) -> dict[str, Any]:
    """Read the settings: the scale, and the figures where some were chosen, called parts in old folders."""
    path = files.inside(folder, "config.json")
    config = json_files.read(path, {"scale": str})
    for name in {"figures", "parts"} & config.keys():
        json_files.check(config[name], [str], str(path), name)
    return config


def _index(folder: Path) -> dict[str, Any]:
    """Read the list of figures, with the paper and the headlines, which old folders do not have."""
    path = files.inside(folder, "figures", "index.json")
    index = {"source": None, "headlines": []} | json_files.read(path, _INDEX)
    if index["source"] is not None:
        json_files.check(index["source"], _SOURCE, str(path), "source")
        if not _ADDRESS.fullmatch(index["source"]["url"]):
            problem = f"source.url={index['source']['url']!r}: must be a plain https address"
            raise RunError(f"{path}: is damaged: {problem}")
    json_files.check(index["headlines"], [_HEADLINE], str(path), "headlines")
    return index


def _headlines(index: dict[str, Any], claims: list[Claim]) -> list[dict[str, Any]]:
    """Give the headlines with their claims."""
    measured = {claim.id: claim for claim in claims}
    return [
        {"claim": measured[headline["claim"]], "text": headline["text"]}
        for headline in index["headlines"]
        if headline["claim"] in measured
    ]


def _place(claims: list[Claim], figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put claims behind the figures that show them, and give the groups of those that none shows."""
    for figure in figures:
        figure["claims"] = [c for c in claims if f"{c.study}-{c.shown_in}" == figure["id"]]
    shown = {claim.id for figure in figures for claim in figure["claims"]}
    rest = [claim for claim in claims if claim.id not in shown]
    groups = [
        {
            "id": "other-claims",
            "title": "Other claims",
            "text": "No figure on this page shows these numbers.",
            "claims": [claim for claim in rest if claim.shown_in != ROUNDING],
        },
        {
            "id": "rounding",
            "title": "Checks of rounding",
            "text": "Two ways to compute the same number must agree up to rounding.",
            "claims": [claim for claim in rest if claim.shown_in == ROUNDING],
        },
    ]
    return [group for group in groups if group["claims"]]


def _links(folder: Path, name: str) -> list[tuple[str, str]]:
    """Link the files of a drawing that lie beside the page."""
    endings = [e for e in ("png", "pdf", "svg") if files.exists(folder / "figures" / f"{name}.{e}")]
    return [(ending.upper(), f"figures/{name}.{ending}") for ending in endings]


def _figure(folder: Path, name: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        wanted = "must be letters, digits, '.', '_' and '-', at most 100"
        raise RunError(
            f"{folder / 'figures' / 'index.json'}: is damaged: figures: {name!r}: {wanted}"
        )
    description = json_files.read(files.inside(folder, "figures", f"{name}.json"), _FIGURE)
    svg = files.read_text(files.inside(folder, "figures", f"{name}.svg"))
    csv = files.read_text(files.inside(folder, "figures", f"{name}.csv"))
    encoded = base64.b64encode(csv.encode()).decode()
    path = str(folder / "figures" / name)
    message, widget = description.get("message", ""), description.get("widget", "")
    json_files.check([message, widget], [str], f"{path}.json", "message, widget")
    return {
        "title": description["title"],
        "caption": description["caption"],
        "message": message,
        "widget": layer_data(description, csv, path) if widget == LAYER else None,
        "id": name,
        "links": _links(folder, name),
        "settings": _sentence(description["settings"]),
        "svg": Markup(inline(svg, name, description["title"])),
        "csv": f"data:text/csv;base64,{encoded}",
    }


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
