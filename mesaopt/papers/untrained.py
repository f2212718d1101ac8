"""Figures and claims that wait for trained models, and their list in a folder of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt import files, json_files
from mesaopt.errors import RunError
from mesaopt.papers.claims import Claim

FILE = "not-trained.json"
"""The list, next to the claims."""


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A figure that lacks models."""

    figure: str
    """Name of the figure in its study."""
    recipes: tuple[str, ...]
    """Recipes that it reads and of which there is no run."""
    drawn: bool
    """Whether it was drawn without them; otherwise it was left out."""
    claims: tuple[Claim, ...] = ()
    """Claims that wait for these models; they have no measured number."""

    def to_json(self) -> dict[str, Any]:
        """Give the figure as plain values."""
        return {
            "figure": self.figure,
            "recipes": list(self.recipes),
            "drawn": self.drawn,
            "claims": [claim.to_json() for claim in self.claims],
        }


def write_untrained(folder: Path, figures: Sequence[Untrained]) -> None:
    """Write figures where :func:`read_untrained` finds them."""
    json_files.write(folder / FILE, [figure.to_json() for figure in figures])


def read_untrained(folder: Path) -> list[Untrained]:
    """Read which figures of a reproduction lack models.

    Args:
        folder: the one given to `mesaopt reproduce --out`.

    Returns:
        The figures, in the order of the study; none where all models were trained.

    Raises:
        RunError: the list is damaged.
    """
    path = folder / FILE
    if not files.exists(path):
        return []
    form = {"figure": str, "recipes": [str], "drawn": bool, "claims": [{}]}
    try:
        return [
            Untrained(
                figure=item["figure"],
                recipes=tuple(item["recipes"]),
                drawn=item["drawn"],
                claims=tuple(map(Claim.from_json, item["claims"])),
            )
            for item in json_files.read(path, [form])
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: is damaged: {error!r}") from None
