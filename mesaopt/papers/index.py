"""The list of studies and figures as data, so that `mesaopt list` need not load what measures them.

`python -m mesaopt.papers.index` writes it anew after a figure was added.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path

from mesaopt import json_files

STUDIES: dict[str, str] = {
    "core": "mesaopt.papers.uncovering2023.core",
    "uncovering2023": "mesaopt.papers.uncovering2023.item",
    "emergence2024": "mesaopt.papers.emergence2024.item",
    "language": "mesaopt.papers.language.item",
}
"""All that can be reproduced: by name, the module whose `STUDY` it is. It is imported when needed."""
FILE = Path(__file__).with_name("index.json")
"""The list."""


def read_index() -> list[dict[str, str]]:
    """Read the list of studies and figures.

    Returns:
        A row for each study and each of its figures: name, summary, and the scales of a study.

    Example:
        >>> read_index()[0]["name"]
        'core'
    """
    rows = json_files.read(FILE, [{str: str}])
    known = {row["name"] for row in rows}
    return rows + make_index([name for name in STUDIES if name not in known])


def make_index(names: Iterable[str] = STUDIES) -> list[dict[str, str]]:
    """Make the list from the studies themselves.

    Args:
        names: of the studies.

    Returns:
        As :func:`read_index`.

    Example:
        >>> make_index() == read_index()
        True
    """
    rows = []
    for name in names:
        study = importlib.import_module(STUDIES[name]).STUDY
        scales = ", ".join(study.plans)
        rows.append({"name": study.name, "summary": study.summary, "scales": scales})
        for figure in study.figures:
            rows.append(
                {"name": f"{study.name}/{figure.name}", "summary": figure.summary, "scales": ""}
            )
    return rows


if __name__ == "__main__":
    json_files.write(FILE, make_index())
