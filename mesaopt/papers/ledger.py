"""The ledger: every claim of all studies with its verdict, as tables of the docs.

For those who maintain the package: `python -m mesaopt.papers.ledger RESULTS ...` keeps what the folders
of results judged in `docs/ledger.json`, and writes the tables from it into the pages. A folder may hold
some of the figures of a study; those of others are kept. Without a folder it only writes the tables.
"""

import re
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesaopt import files, json_files
from mesaopt.errors import MesaoptError
from mesaopt.papers.claims import Claim, read_claims
from mesaopt.papers.reproduce import STUDIES, get_study, settings_of
from mesaopt.papers.untrained import read_untrained
from mesaopt.recipes import RECIPES

DOCS = Path(__file__).parents[2] / "docs"
"""The pages, in a clone."""
FILE = "ledger.json"
"""Judged claims by study: a list of parts, one for each folder that some of them are from."""
PAGES = ("core.md", "uncovering.md", "emergence.md", "language-study.md")
"""Pages that hold tables of the ledger."""
SUMMARY = "summary"
"""The table of all studies; each of the others is called after its study."""

_PART = re.compile(r"(<!-- ledger: (\S+) -->\n).*?(<!-- end of ledger -->)", re.DOTALL)
_REPEATED = re.compile(
    r"(, |^)(plus|and a factor for) [\d.]+ standard errors of \S+$|; not trained yet"
)
"""Parts of a basis that say again what other columns do."""

_KINDS = ("claims", "waiting")
"""Claims that were judged, and those that wait for models."""
Part = dict[str, Any]
"""What one folder of results judged, and how."""

_META = {"started": str, "git": (str, None), "processor": str, "cores": int}
_RUN = {"name": str, "steps": int}


def collect(folder: Path) -> tuple[str, Part]:
    """Read what a folder of results judged.

    Args:
        folder: the one given to `mesaopt reproduce --out`.

    Returns:
        The study, and a part of its entry in the ledger.

    Raises:
        RunError: a file is missing or damaged.
    """
    config = settings_of(folder)
    meta = json_files.read(folder / "meta.json", _META)
    measuring = json_files.read(folder / "DONE", {"measuring": float})["measuring"]
    index = json_files.read(folder / "figures" / "index.json", {"runs": [_RUN]})
    models: dict[str, dict[str, int]] = {}
    for run in index["runs"]:
        recipe = run.get("recipe", run["name"].rsplit("-seed", 1)[0])
        model = models.setdefault(recipe, {"steps": run["steps"], "seeds": 0})
        model["seeds"] += 1
    waiting = [claim for figure in read_untrained(folder) for claim in figure.claims]
    return config["what"], {
        "scale": config["scale"],
        "runs": _origin(config["runs"]),
        "date": meta["started"][:10],
        "commit": (meta["git"] or "unknown")[:12],
        "machine": f"{meta['processor']}, {meta['cores']} cores",
        "minutes": round(measuring / 60),
        "training_minutes": round(_training_seconds(folder) / 60),
        "models": models,
        "claims": [claim.to_json() for claim in read_claims(folder)],
        "waiting": [claim.to_json() for claim in waiting],
    }


def merge(parts: Sequence[Part], newer: Part) -> list[Part]:
    """Put newly judged figures in the place of older ones.

    Args:
        parts: what is known of a study.
        newer: a part as :func:`collect` gives it.

    Returns:
        The older parts without the figures of the newer one, and that.

    Example:
        >>> older = {"claims": [{"shown_in": "fig1"}, {"shown_in": "fig2"}], "waiting": []}
        >>> merge([older], {"claims": [], "waiting": [{"shown_in": "fig2"}]})[0]["claims"]
        [{'shown_in': 'fig1'}]
    """
    again = {claim["shown_in"] for claim in _claims([newer])}
    kept = [
        part
        | {kind: [one for one in part[kind] if one["shown_in"] not in again] for kind in _KINDS}
        for part in parts
    ]
    return [part for part in (*kept, newer) if _claims([part])]


def _claims(parts: Sequence[Part], *kinds: str) -> list[dict[str, Any]]:
    """Give the claims of all parts, of both kinds if none is given."""
    return [claim for part in parts for kind in kinds or _KINDS for claim in part[kind]]


def _origin(runs: str | None) -> str | None:
    """Name the runs that were given; a folder of this machine says nothing to others."""
    return "given runs" if runs is not None and not runs.startswith("the zoo ") else runs


def _training_seconds(folder: Path) -> float:
    """Add up the trainings of a folder; those that diverged have no end, and do not count."""
    ends = [folder / "runs" / name / "DONE" for name in files.names(folder / "runs")]
    return sum(
        json_files.read(end, {"seconds": float})["seconds"] for end in ends if files.exists(end)
    )


def rewrite(page: str, ledger: Mapping[str, Sequence[Part]]) -> str:
    """Write the tables of the ledger into a page.

    Args:
        page: Markdown with a pair of comments around each table, which name its study, or the summary.
        ledger: parts by study, as :func:`collect` gives them.

    Returns:
        The page with these tables.

    Example:
        >>> print(rewrite("<!-- ledger: summary -->\\nold\\n<!-- end of ledger -->", {}))
        <!-- ledger: summary -->
        | study | claims judged | hold | hold within noise | fail | wait for models |
        |---|---|---|---|---|---|
        <BLANKLINE>
        <!-- end of ledger -->
    """

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        lines = _summary(ledger) if name == SUMMARY else _tables(name, ledger[name])
        return begin + "\n".join(lines) + "\n\n" + end

    return _PART.sub(table, page)


def hand_written(page: str) -> str:
    """Give a page without the tables of the ledger.

    Args:
        page: Markdown.

    Returns:
        What was written by hand.

    Example:
        >>> hand_written("Why:\\n<!-- ledger: core -->\\n| x |\\n<!-- end of ledger -->")
        'Why:\\n'
    """
    return _PART.sub("", page)


def _summary(ledger: Mapping[str, Sequence[Part]]) -> list[str]:
    names = ["study", "claims judged", "hold", "hold within noise", "fail", "wait for models"]
    lines = [_row(*names), "|---|---|---|---|---|---|"]
    for study in (name for name in STUDIES if name in ledger):
        claims, waiting = (_claims(ledger[study], kind) for kind in _KINDS)
        verdicts = Counter(Claim.from_json(claim).verdict for claim in claims)
        counts = (verdicts[verdict] for verdict in ("holds", "holds within noise", "fails"))
        lines.append(_row(f"`{study}`", len(claims), *counts, len(waiting)))
    return lines


def _tables(study: str, parts: Sequence[Part]) -> list[str]:
    """Write what was measured, and a table of claims for each figure that shows some."""
    names = {figure.name: figure.title for figure in get_study(study).figures}
    lines: list[str] = []
    for part in parts:
        lines += ["", _source(part)]
        shown = dict.fromkeys([*names, *(claim["shown_in"] for claim in _claims([part]))])
        for figure in shown:
            rows = [
                _claim_row(claim, kind == "claims", part["models"])
                for kind in _KINDS
                for claim in part[kind]
                if claim["shown_in"] == figure
            ]
            if rows:
                lines += ["", f"**{names.get(figure, 'Checks of rounding')}** (`{figure}`)", ""]
                lines += ["| claim | published, limits | ours | passes | verdict | training |"]
                lines += ["|---|---|---|---|---|---|", *rows]
    return lines[1:]


def _source(part: Part) -> str:
    """Say what was measured, when and where."""
    source = f", {part['runs']}" if part["runs"] else ""
    how_long = f"in {part['minutes']} minutes"
    if part["training_minutes"]:
        how_long = f"after {part['training_minutes'] / 60:.1f} hours of training in all,"
    return (
        f"Scale `{part['scale']}`{source}. Measured on {part['date']}, commit `{part['commit']}`, "
        f"{how_long} on {part['machine']}."
    )


def _claim_row(data: dict[str, Any], judged: bool, models: dict[str, Any]) -> str:
    claim = Claim.from_json(data)
    verdict = claim.verdict if claim.passed else "**fails**"
    return _row(
        f"{claim.statement}; {claim.figure} (`{claim.name}`)",
        _REPEATED.sub("", claim.basis),
        claim.number if judged else "",
        claim.threshold if judged else "",
        verdict if judged else "not trained yet",
        "; ".join(_training(recipe, models) for recipe in claim.recipes),
    )


def _training(recipe: str, models: dict[str, dict[str, int]]) -> str:
    """Say for how long a recipe was trained, and with how many seeds."""
    if recipe not in models:
        return f"`{recipe}`: none"
    steps, seeds = models[recipe]["steps"], models[recipe]["seeds"]
    published = RECIPES[recipe].config.train.steps
    length = f"{steps:,}" if steps == published else f"{steps:,} of {published:,}"
    return f"`{recipe}`: {length} steps, {seeds} seed{'s' if seeds > 1 else ''}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> None:
    """Keep what folders of results judged, and write the tables of the docs anew."""
    parser = ArgumentParser(prog="python -m mesaopt.papers.ledger", description=main.__doc__)
    parser.add_argument(
        "results", nargs="*", type=files.as_path, help="folder of `mesaopt reproduce`"
    )
    folders = parser.parse_args(arguments).results
    path = DOCS / FILE
    ledger = json_files.read(path, {}) if files.exists(path) else {}
    for study, part in map(collect, folders):
        ledger[study] = merge(ledger.get(study, []), part)
    json_files.write(path, {study: ledger[study] for study in STUDIES if study in ledger})
    for name in PAGES:
        files.write(DOCS / name, rewrite(files.read_text(DOCS / name), ledger))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MesaoptError as error:
        sys.exit(str(error))
