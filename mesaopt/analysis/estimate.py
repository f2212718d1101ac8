"""Numbers with their standard errors."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.display import with_error

STANDARD_ERRORS = 3.0
"""Half the width of the interval on which decisions rest. By noise alone a number is beyond one end of it
about once in 700 times."""


@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error.

    The differences and quotients of two estimates are those of independent ones. For numbers measured on
    the same sequences, whose noise cancels in part, take :meth:`of` of the differences, :meth:`ratio`, or
    :meth:`difference_of_models`.

    Example:
        >>> estimate = Estimate(0.9, 0.1)
        >>> 1 - estimate / 2
        Estimate(value=0.55, error=0.05)
        >>> Estimate(1.0, 0.3) - Estimate(0.25, 0.4)
        Estimate(value=0.75, error=0.5)
        >>> Estimate(1.0, 0.3) / Estimate(2.0, 0.8)
        Estimate(value=0.5, error=0.25)
        >>> print(estimate)
        0.90 ± 0.10
    """

    value: float
    """The measured number."""
    error: float
    """Its standard error, 0 or greater; NaN where a single sample does not tell it."""

    def __str__(self) -> str:
        return with_error(self.value, self.error)

    @property
    def low(self) -> float:
        """The value less three standard errors."""
        return self.value - STANDARD_ERRORS * self.error

    @property
    def high(self) -> float:
        """The value plus three standard errors."""
        return self.value + STANDARD_ERRORS * self.error

    @classmethod
    def of(cls, samples: Float[Tensor, "*seed sequence"]) -> "Estimate":
        """Estimate a mean over sequences, or over training seeds and sequences.

        Args:
            samples: one number per sequence, or one per training seed and sequence. All seeds are measured
                on the same sequences.

        Returns:
            The mean. Its variance is that over sequences of the mean over seeds, plus that over seeds of
            the mean over sequences where there are several seeds.

        Raises:
            ValueError: the samples have more than two dimensions, or none.

        Example:
            >>> Estimate.of(torch.tensor([1.0, 3.0]))
            Estimate(value=2.0, error=1.0)
            >>> Estimate.of(torch.tensor([[1.0, 3.0]]))
            Estimate(value=2.0, error=1.0)
        """
        if samples.dim() == 2:
            mean, error = mean_and_error(samples)
            return cls(mean.item(), error.item())
        if samples.dim() != 1:
            shape = tuple(samples.shape)
            raise ValueError(f"samples has shape {shape}: must be [sequence] or [seed, sequence]")
        return cls(samples.mean().item(), standard_error(samples).item())

    @classmethod
    def of_seeds(cls, values: Float[Tensor, " seed"]) -> "Estimate":
        """Estimate a mean over training seeds, from one number per seed.

        Args:
            values: one per seed.

        Returns:
            The mean, with an error of 0 where there is a single seed.

        Example:
            >>> Estimate.of_seeds(torch.tensor([1.0, 3.0]))
            Estimate(value=2.0, error=1.0)
            >>> Estimate.of_seeds(torch.tensor([1.0]))
            Estimate(value=1.0, error=0.0)
        """
        return cls(values.mean().item(), variance_over_seeds(values).sqrt().item())

    @classmethod
    def from_variances(cls, value: float | Tensor, *variances: float | Tensor) -> "Estimate":
        """Make an estimate whose noise has several independent sources.

        Args:
            value: the number.
            *variances: the squared standard error due to each source, added in this order and in the type
                they come in.

        Returns:
            The estimate.

        Example:
            >>> Estimate.from_variances(1.0, 9.0, 16.0)
            Estimate(value=1.0, error=5.0)
        """
        return cls(float(value), float(sum(variances) ** 0.5))

    @classmethod
    def ratio(
        cls,
        above: Float[Tensor, "*seed sequence"],
        below: Float[Tensor, "*seed sequence"],
    ) -> "Estimate":
        """Estimate mean(above) / mean(below), both measured on the same sequences.

        The variance over sequences is that of the mean of above - r below, divided by mean(below)^2, where
        r is the ratio: noise that both share cancels.

        Args:
            above: one number per sequence, or one per training seed and sequence.
            below: of the same shape. With several seeds, those of `above` in the same order; the variance
                over seeds of the ratio is added.

        Returns:
            The ratio. Where mean(below) of one number per sequence is 0, that is 0 or infinite, without an
            error.

        Raises:
            ValueError: the shapes differ.

        Example:
            >>> Estimate.ratio(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
            Estimate(value=0.5, error=0.0)
        """
        _check_paired(above, below)
        if above.dim() == 2:
            seed_ratios = above.mean(1) / below.mean(1)
            above, below = above.mean(0), below.mean(0)
            ratio = above.mean() / below.mean()
            variance = _ratio_variance(above, below)
            return cls.from_variances(ratio, variance, variance_over_seeds(seed_ratios))
        numerator, denominator = above.mean(), below.mean()
        if denominator == 0:
            return cls(math.copysign(math.inf, numerator) if numerator else 0.0, 0.0)
        value = (numerator / denominator).item()
        return cls(value, (standard_error(above - value * below) / denominator.abs()).item())

    @classmethod
    def ratio_of_models(
        cls,
        above: Float[Tensor, " sequence"],
        below: Float[Tensor, " sequence"],
        *,
        above_seeds: Float[Tensor, " above_seed"],
        below_seeds: Float[Tensor, " below_seed"],
    ) -> "Estimate":
        """Estimate mean(above) / mean(below) of two models that were trained with independent seeds.

        Args:
            above: one number per sequence, the mean over the first model's seeds.
            below: the same of the second model, for the same sequences.
            above_seeds: the mean over sequences of every seed of the first model. Empty for what has no
                seeds, such as an algorithm.
            below_seeds: the same of the second model.

        Returns:
            The ratio. Its variance is that over sequences, as in :meth:`ratio`, plus those over the seeds
            of both models.

        Raises:
            ValueError: the numbers of sequences differ.

        Example:
            >>> x, none = torch.tensor([1.0, 2.0]), torch.tensor([])
            >>> Estimate.ratio_of_models(x, 2 * x, above_seeds=torch.tensor([1.0, 2.0]), below_seeds=none)
            Estimate(value=0.5, error=0.1666666716337204)
        """
        _check_paired(above, below)
        ratio = above.mean() / below.mean()
        slopes = 1 / below.mean(), ratio / below.mean()
        seeds = [
            slope**2 * variance_over_seeds(values)
            for slope, values in zip(slopes, (above_seeds, below_seeds), strict=True)
        ]
        return cls.from_variances(ratio, _ratio_variance(above, below), *seeds)

    @classmethod
    def difference_of_models(
        cls,
        above: Float[Tensor, "above_seed sequence"],
        below: Float[Tensor, "below_seed sequence"],
    ) -> "Estimate":
        """Estimate mean(above) - mean(below) of two models that were trained with independent seeds.

        Args:
            above: one number per training seed of the first model and sequence.
            below: the same of the second model, for the same sequences.

        Returns:
            The difference. Its variance is that over sequences of the difference of the means over seeds,
            so that noise that both share cancels, plus those over the seeds of both models.

        Raises:
            ValueError: the numbers of sequences differ.

        Example:
            >>> x = torch.tensor([[1.0, 2.0]])
            >>> Estimate.difference_of_models(3 + x, x)
            Estimate(value=3.0, error=0.0)
            >>> Estimate.difference_of_models(torch.cat([x, x + 2]), x)
            Estimate(value=1.0, error=1.0)
        """
        _check_paired(above[0], below[0])
        paired = cls.of(above.mean(0) - below.mean(0))
        return paired.with_seeds(above.mean(1)).with_seeds(below.mean(1))

    @classmethod
    def ratio_difference(
        cls,
        first: tuple[Float[Tensor, " sequence"], Float[Tensor, " sequence"]],
        second: tuple[Float[Tensor, " sequence"], Float[Tensor, " sequence"]],
    ) -> "Estimate":
        """Estimate a difference of two ratios, all four parts measured on the same sequences.

        Args:
            first: numerator and denominator.
            second: those of the ratio to be subtracted.

        Returns:
            The difference.

        Raises:
            ValueError: the numbers of sequences differ.

        Example:
            >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
            >>> Estimate.ratio_difference((y, x), (x, y))
            Estimate(value=1.5, error=0.0)
        """
        _check_paired(*first, *second)
        value = cls.ratio(*first).value - cls.ratio(*second).value
        return cls(value, cls.of(_influence(*first) - _influence(*second)).error)

    def with_seeds(self, values: Float[Tensor, " seed"]) -> "Estimate":
        """Add the error over training seeds to the error over sequences.

        Args:
            values: the number for each seed.

        Returns:
            The same number, whose squared error has grown by the variance of a mean over these seeds.

        Example:
            >>> Estimate(1.0, 0.75).with_seeds(torch.tensor([0.0, 2.0]))
            Estimate(value=1.0, error=1.25)
        """
        return Estimate(self.value, math.hypot(self.error, Estimate.of_seeds(values).error))

    def repeated(self, times: float) -> "Estimate":
        """Widen the error of a mean whose samples hold the same several times over.

        Args:
            times: how often each is there, 1 or more.

        Returns:
            The same number with the error of the different ones.

        Example:
            >>> Estimate(1.0, 0.25).repeated(4.0)
            Estimate(value=1.0, error=0.5)
        """
        return Estimate(self.value, self.error * times**0.5)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, (self.error**2 + other.error**2) ** 0.5)

    def __rsub__(self, number: float | int) -> "Estimate":
        return Estimate(number - self.value, self.error)

    def __truediv__(self, other: "Estimate | float | int") -> "Estimate":
        if not isinstance(other, Estimate):
            return Estimate(self.value / other, self.error / abs(other))
        ratio = self.value / other.value
        return Estimate(ratio, math.hypot(self.error, ratio * other.error) / abs(other.value))


def variance_over_seeds(values: Float[Tensor, "seed *shape"]) -> Float[Tensor, "*shape"]:
    """Give the variance of a mean over training seeds.

    Args:
        values: one per seed, or none.

    Returns:
        The variance over seeds divided by their number; 0 where there are fewer than two.

    Example:
        >>> variance_over_seeds(torch.tensor([1.0, 3.0])), variance_over_seeds(torch.tensor([1.0]))
        (tensor(1.), tensor(0.))
    """
    return (
        values.var(0) / len(values) if len(values) > 1 else torch.zeros(values.shape[1:]).to(values)
    )


def mean_and_error(
    values: Float[Tensor, "seed sequence *shape"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Give the mean over training seeds and sequences, and its standard error, entry by entry.

    Args:
        values: of every seed on every sequence; all seeds are measured on the same sequences.

    Returns:
        The mean and its standard error over both; over sequences alone where there is a single seed.

    Example:
        >>> mean_and_error(torch.tensor([[1.0, 3.0]]))
        (tensor(2.), tensor(1.))
    """
    sequences = standard_error(values.mean(0)).square()
    return values.mean((0, 1)), (sequences + variance_over_seeds(values.mean(1))).sqrt()


def standard_error(samples: Float[Tensor, "sequence *shape"]) -> Float[Tensor, "*shape"]:
    """Give the standard error of a mean over sequences; NaN for a single one."""
    if len(samples) < 2:
        return torch.full_like(samples.sum(0), math.nan)
    return samples.std(0) / len(samples) ** 0.5


def estimates(samples: Float[Tensor, "sequence column"]) -> list[Estimate]:
    """Estimate the mean of every column; the errors of a single sequence are NaN."""
    pairs = zip(samples.mean(0).tolist(), standard_error(samples).tolist(), strict=True)
    return [Estimate(value, error) for value, error in pairs]


def _check_paired(*samples: Tensor) -> None:
    """Refuse samples of other sequences, which would be repeated to the same number without a word."""
    shapes = [tuple(one.shape) for one in samples]
    if len(set(shapes)) > 1:
        given = ", ".join(map(str, shapes))
        raise ValueError(f"samples have shapes {given}: must be those of the same sequences")


def _ratio_variance(
    above: Float[Tensor, " sequence"], below: Float[Tensor, " sequence"]
) -> Float[Tensor, ""]:
    """Give the variance of mean(above) / mean(below) over sequences."""
    return standard_error(_influence(above, below)).square()


def _influence(
    above: Float[Tensor, " sequence"], below: Float[Tensor, " sequence"]
) -> Float[Tensor, " sequence"]:
    """Give what each sequence contributes to the noise of mean(above) / mean(below)."""
    denominator = below.mean()
    return (above - above.mean() / denominator * below) / denominator
