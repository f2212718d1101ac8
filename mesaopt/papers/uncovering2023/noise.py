"""Noise of what claims measure: over training seeds and test sequences, and what it does to limits."""

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.papers.claims import STANDARD_ERRORS


def variance_over_seeds(values: Float[Tensor, "seed *shape"]) -> Float[Tensor, "*shape"]:
    """Give the variance of a mean over seeds; zero where a single one says nothing about it.

    Example:
        >>> variance_over_seeds(torch.tensor([1.0, 3.0])), variance_over_seeds(torch.tensor([1.0]))
        (tensor(1.), tensor(0.))
    """
    return values.var(0) / len(values) if len(values) > 1 else torch.tensor(0.0)


def mean_and_error(
    values: Float[Tensor, "seed sequence *shape"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Give the mean over seeds and sequences, and its standard error over both.

    Example:
        >>> mean_and_error(torch.tensor([[1.0, 3.0]]))
        (tensor(2.), tensor(1.))
    """
    sequences = values.mean(0).var(0) / values.shape[1]
    return values.mean((0, 1)), (sequences + variance_over_seeds(values.mean(1))).sqrt()


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
