"""Claims: what a paper states, the number measured here, and a verdict."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt import files
from mesaopt.errors import RunError

STANDARD_ERRORS = 3.0
"""A threshold is widened by this many standard errors of the measured noise: a true claim then fails
by chance about once in 400 times."""

_SAVED = {
    "id": str,
    "paper": str,
    "figure": str,
    "statement": str,
    "scale": str,
    "basis": str,
    "value": (float, None),
    "threshold": [(float, None)],
    "passed": bool,
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a paper, measured and judged.

    Example:
        >>> claim = Claim(
        ...     id="demo", paper="uncovering2023", figure="Fig. 4A", statement="the loss is 0.9",
        ...     scale="smoke", value=0.91, low=0.88, high=0.92, basis="0.9 +- 0.02",
        ... )
        >>> claim.passed, claim.threshold
        (True, 'between 0.88 and 0.92')
    """

    id: str
    """Short name, unique in a report."""
    paper: str
    """Name of the paper's package, such as "uncovering2023"."""
    figure: str
    """Where in the paper it stands."""
    statement: str
    """What the paper says, in one sentence."""
    scale: str
    """Scale of the measurement: smoke, small or paper."""
    value: float
    """What was measured."""
    low: float | None = None
    """Smallest value that passes; None for no lower limit."""
    high: float | None = None
    """Largest value that passes; None for no upper limit."""
    basis: str
    """Where the threshold comes from."""

    @property
    def passed(self) -> bool:
        """Whether the value lies within the threshold; a value that is no number does not."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= self.value <= high

    @property
    def threshold(self) -> str:
        """The threshold in words."""
        if self.low is None:
            return f"at most {self.high:.4g}"
        if self.high is None:
            return f"at least {self.low:.4g}"
        return f"between {self.low:.4g} and {self.high:.4g}"

    def to_json(self) -> dict[str, Any]:
        """Give the claim as plain values; `threshold` is [low, high], null for no limit."""
        return {
            "id": self.id,
            "paper": self.paper,
            "figure": self.figure,
            "statement": self.statement,
            "scale": self.scale,
            "value": self.value if math.isfinite(self.value) else None,
            "threshold": [self.low, self.high],
            "passed": self.passed,
            "basis": self.basis,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Claim":
        """Undo :meth:`to_json`."""
        fields = {name: data[name] for name in data if name not in ("threshold", "passed")}
        fields["value"] = math.nan if data["value"] is None else data["value"]
        low, high = data["threshold"]
        return cls(low=low, high=high, **fields)


def interval(published: float, *, tolerance: float = 0.0, noise: float) -> tuple[float, float, str]:
    """Derive a threshold from a published number and the noise measured here.

    Args:
        published: the paper's number.
        tolerance: how far off a faithful re-implementation may be without any noise.
        noise: standard error of the difference between our number and theirs.

    Returns:
        The smallest and the largest value that pass, and the sentence that says why.

    Example:
        >>> interval(0.9, tolerance=0.01, noise=0.001)
        (0.887, 0.913, '0.9 published, tolerance 0.01, plus 3 standard errors of 0.001')
    """
    width = tolerance + STANDARD_ERRORS * noise
    basis = f"{published:g} published, "
    if tolerance:
        basis += f"tolerance {tolerance:g}, plus "
    basis += f"{STANDARD_ERRORS:g} standard errors of {noise:.2g}"
    return round(published - width, 6), round(published + width, 6), basis


def read_claims(folder: Path) -> list[Claim]:
    """Read the claims that a reproduction wrote.

    Args:
        folder: what was given to `mesaopt reproduce --out`.

    Returns:
        The claims, in the order of the report.

    Raises:
        RunError: there are none, or the file is damaged.
    """
    path = folder / "claims.json"
    if not files.exists(path):
        raise RunError(f"{path}: there is no such file; mesaopt reproduce writes it")
    try:
        claims = [Claim.from_json(item) for item in files.read_json(path, [_SAVED])]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is not a list of claims: {error!r}") from None
    for claim in claims:
        if claim.low is None and claim.high is None:
            raise RunError(f"{path}: is damaged: {claim.id!r} has no limit: must have one or two")
    return claims


def write_claims(folder: Path, claims: list[Claim]) -> None:
    """Write claims where :func:`read_claims` finds them.

    Args:
        folder: of the reproduction.
        claims: in the order of the report.
    """
    files.write_json(folder / "claims.json", [claim.to_json() for claim in claims])
