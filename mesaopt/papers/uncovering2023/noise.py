"""Noise of measured numbers, and limits of claims widened by it."""

from mesaopt.analysis import mean_and_error, variance_over_seeds
from mesaopt.papers.claims import STANDARD_ERRORS

__all__ = ["mean_and_error", "variance_over_seeds", "widened"]


def widened(low: float | None, high: float | None, error: float) -> dict[str, float | None]:
    """Widen the limits of a claim by three standard errors.

    Example:
        >>> widened(None, 1.0, 0.125)
        {'low': None, 'high': 1.375}
    """
    width = STANDARD_ERRORS * error
    return {
        "low": None if low is None else low - width,
        "high": None if high is None else high + width,
    }
