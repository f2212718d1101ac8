"""Claims: a statement of a paper, the number measured here, and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mesaopt import files, json_files
from mesaopt.errors import RunError

if TYPE_CHECKING:
    from mesaopt.analysis.estimate import Estimate

__all__ = ["Claim", "read_claims"]

STANDARD_ERRORS = 3.0
"""A limit is widened by this many standard errors of the measured number: a true claim then fails by
chance about once in 400 times."""

ROUNDING = "rounding"
"""Where claims about rounding alone are shown: behind all figures."""

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

    The limits are either `low` and `high`, or `published` plus and minus `tolerance`. Both are widened by
    three standard errors of what was measured, or as `noise` says; a number without an error is judged as
    it is.

    Example:
        >>> from mesaopt.analysis.estimate import Estimate
        >>> claim = Claim(
        ...     name="loss", figure="Fig. 4A", statement="the loss is 0.9",
        ...     measured=Estimate(0.91, 0.002), published=0.9, tolerance=0.01,
        ... )
        >>> claim.passed, claim.threshold
        (True, 'between 0.884 and 0.916')
        >>> claim.why
        '0.9 published, tolerance 0.01, plus 3 standard errors of 0.002'
    """

    name: str
    """Short, unique in its study."""
    figure: str
    """Place in the paper."""
    statement: str
    """The paper's statement, in one sentence."""
    measured: "Estimate | float | None"
    """The measured number; None where there are no models to measure it on: the claim waits for them."""
    low: float | None = None
    """Smallest value that passes, before noise; None for no lower limit."""
    high: float | None = None
    """Largest value that passes, before noise; None for no upper limit."""
    published: float | None = None
    """The paper's number, in place of `low` and `high`."""
    tolerance: float = 0.0
    """Distance from the published number that a faithful re-implementation may have, before noise."""
    basis: str = ""
    """Where the limits come from; needed for `low` and `high`."""
    noise: Literal["added", "factor"] = "added"
    """How noise widens `low` and `high`: by adding, or by a factor where the error grows with the value, as
    that of a ratio of very different numbers does."""
    recipes: tuple[str, ...] = ()
    """Recipes of the models that it is about; none for algorithms and theory."""
    study: str = ""
    """The study that it belongs to; filled in when the study judges it."""
    paper: str = ""
    """The paper's package, such as "uncovering2023"; filled in like `study`."""
    scale: str = ""
    """Scale of the measurement: smoke, small or paper; filled in like `study`."""
    shown_in: str = ""
    """Name of the figure of the study in which the number can be seen, or `ROUNDING`; filled in with the
    figure that judges it where there is none."""
    read_back: bool = field(default=False, compare=False)
    """Whether it comes from a file: its limits then include the noise already."""
    saved_error: float | None = None
    """Standard error of the measured number, if it comes from a file."""
    saved_within_noise: bool = False
    """:attr:`within_noise`, if it comes from a file."""

    @property
    def id(self) -> str:
        """Name of the claim in a report, such as "core/lsa-1-step-size"."""
        return f"{self.study}/{self.name}"

    @property
    def value(self) -> float:
        """The measured number; NaN where there is none."""
        if self.measured is None:
            return math.nan
        return self.measured if isinstance(self.measured, (int, float)) else self.measured.value

    @property
    def error(self) -> float | None:
        """Standard error of the measured number; None where it has none."""
        if self.measured is None or isinstance(self.measured, (int, float)):
            return self.saved_error
        return self.measured.error

    @property
    def number(self) -> str:
        """The measured number in words, with its standard error if it has one: "0.912 ± 0.002"."""
        return f"{self.value:.4g}" + (f" ± {self.error:.2g}" if self.error else "")

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Smallest and largest value that pass, noise included."""
        if self.read_back:
            return self.low, self.high
        return self._widened(self._noise)

    @property
    def _noise(self) -> float:
        """Distance that noise allows: three standard errors; 0 where there is none, or no finite one."""
        error = self.error or 0.0
        return STANDARD_ERRORS * error if math.isfinite(error) else 0.0

    def _widened(self, noise: float) -> tuple[float | None, float | None]:
        """Give the limits as they are with some noise."""
        if self.published is not None:
            width = self.tolerance + noise
            return round(self.published - width, 6), round(self.published + width, 6)
        if self.noise == "factor":
            share = noise / self.value if self.value > 0 else 0.0
            low = None if self.low is None else self.low * math.exp(-share)
            return low, None if self.high is None else self.high * math.exp(share)
        low = None if self.low is None else self.low - noise
        return low, None if self.high is None else self.high + noise

    @property
    def passed(self) -> bool:
        """Whether the value lies within the limits; NaN does not."""
        return _lies_between(self.value, *self.limits)

    @property
    def within_noise(self) -> bool:
        """Whether the value passes, and noise leaves open whether it should: more sequences may tell.

        It passes only since limits were widened by noise; or there is one limit alone, such as that of an
        order, and the value is nearer to it than three standard errors. An equality, whose limits are one
        number, can hold in no other way.
        """
        if self.read_back:
            return self.saved_within_noise
        low, high = self._widened(0.0)
        if not self.passed or low == high:
            return False
        is_one_sided = low is None or high is None
        return not _lies_between(
            self.value, *(self._widened(-self._noise) if is_one_sided else (low, high))
        )

    @property
    def verdict(self) -> str:
        """One of "holds", "holds within noise" and "fails"."""
        if not self.passed:
            return "fails"
        return "holds within noise" if self.within_noise else "holds"

    @property
    def threshold(self) -> str:
        """The limits in words."""
        low, high = self.limits
        if low is None:
            return f"at most {high:.4g}"
        if high is None:
            return f"at least {low:.4g}"
        return f"between {low:.4g} and {high:.4g}"

    @property
    def why(self) -> str:
        """The reason for the limits, in words."""
        if self.read_back:
            return self.basis
        reasons = [self.basis] if self.basis else []
        if self.published is not None:
            reasons = [f"{self.published:g} published", *reasons]
            reasons += [f"tolerance {self.tolerance:g}"] if self.tolerance else []
        if self.error is not None:
            by_factor = self.noise == "factor" and self.published is None
            how = "and a factor for" if by_factor else "plus"
            reasons.append(f"{how} {STANDARD_ERRORS:g} standard errors of {self.error:.2g}")
        return ", ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Give the claim as plain values; `threshold` is [low, high], null for no limit.

        `error`, `published`, `recipes` and `within_noise` are there where there is such a thing.
        """
        error = None if self.error is None or not math.isfinite(self.error) else self.error
        optional = {
            "error": error,
            "published": self.published,
            "recipes": list(self.recipes),
            "within_noise": self.within_noise or None,
        }
        return {
            "id": self.id,
            "paper": self.paper,
            "figure": self.figure,
            "statement": self.statement,
            "scale": self.scale,
            "value": self.value if math.isfinite(self.value) else None,
            "threshold": list(self.limits),
            "passed": self.passed,
            "basis": self.why,
            **({"shown_in": self.shown_in} if self.shown_in else {}),
            **{name: item for name, item in optional.items() if item not in (None, [])},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Claim":
        """Read what :meth:`to_json` wrote; its limits include the noise."""
        study, _, name = data["id"].partition("/")
        low, high = data["threshold"]
        return cls(
            name=name,
            study=study,
            measured=math.nan if data["value"] is None else data["value"],
            low=low,
            high=high,
            read_back=True,
            # These are not in claims of earlier versions:
            saved_error=data.get("error"),
            saved_within_noise=data.get("within_noise", False),
            shown_in=data.get("shown_in", ""),
            published=data.get("published"),
            recipes=tuple(data.get("recipes", ())),
            **{key: data[key] for key in ("paper", "figure", "statement", "scale", "basis")},
        )


def _lies_between(value: float, low: float | None, high: float | None) -> bool:
    """Compare a value with limits, of which None is no limit; NaN lies nowhere."""
    return (-math.inf if low is None else low) <= value <= (math.inf if high is None else high)


def read_claims(folder: Path) -> list[Claim]:
    """Read the claims that a reproduction wrote.

    Args:
        folder: the one given to `mesaopt reproduce --out`.

    Returns:
        The claims, in the order of the report.

    Raises:
        RunError: there are none, or the file is damaged.
    """
    path = folder / "claims.json"
    if not files.exists(path):
        raise RunError(f"{path}: there is no such file; mesaopt reproduce writes it")
    try:
        claims = [Claim.from_json(item) for item in json_files.read(path, [_SAVED])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: is not a list of claims: {error!r}") from None
    for claim in claims:
        if not isinstance(claim.shown_in, str):
            raise RunError(f"{path}: is damaged: shown_in={claim.shown_in!r}: must be text")
        if not isinstance(claim.saved_within_noise, bool):
            given = f"within_noise={claim.saved_within_noise!r}"
            raise RunError(f"{path}: is damaged: {given}: must be true or false")
        if claim.low is None and claim.high is None:
            raise RunError(f"{path}: is damaged: {claim.id!r} has no limit: must have one or two")
    return claims


def write_claims(folder: Path, claims: Sequence[Claim]) -> None:
    """Write claims where :func:`read_claims` finds them."""
    json_files.write(folder / "claims.json", [claim.to_json() for claim in claims])
