import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mesaopt.analysis import (
    AttentionMaps,
    Estimate,
    InContextLoss,
    Sensitivity,
    mean_and_error,
    variance_over_seeds,
)


def losses(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=random, dtype=dtype).exp()


def test_a_mean_over_sequences_has_their_standard_error() -> None:
    samples = losses(300)
    error = (samples.var() / 300).sqrt().item()
    assert Estimate.of(samples).value == samples.mean().item()
    assert Estimate.of(samples).error == pytest.approx(error, rel=1e-6)
    assert Estimate.of(samples[None]).error == pytest.approx(error, rel=1e-6)


def test_the_variance_over_seeds_is_added() -> None:
    samples = losses(3, 300)
    sequences = Estimate.of(samples.mean(0)).error
    seeds = Estimate.of_seeds(samples.mean(1)).error
    assert Estimate.of(samples).error == pytest.approx(math.hypot(sequences, seeds), rel=1e-6)
    both = Estimate.of(samples.mean(0)).with_seeds(samples.mean(1))
    assert both.error == pytest.approx(math.hypot(sequences, seeds), rel=1e-12)
    mean, error = mean_and_error(samples[..., None])
    assert Estimate.of(samples) == Estimate(mean.item(), error.item())


def test_one_seed_adds_nothing() -> None:
    assert Estimate.of_seeds(torch.tensor([0.5])) == Estimate(0.5, 0.0)
    assert Estimate(1.0, 0.25).with_seeds(torch.tensor([3.0])) == Estimate(1.0, 0.25)
    assert variance_over_seeds(losses(1, 4)).tolist() == [0.0] * 4


def test_ratios_over_seeds_agree_where_the_other_has_none() -> None:
    above, below, none = losses(3, 300), losses(300) + 1, torch.tensor([])
    same = Estimate.ratio(above, below.expand(3, -1))
    seeds = {"above_seeds": above.mean(1), "below_seeds": none}
    independent = Estimate.ratio_of_models(above.mean(0), below, **seeds)
    assert independent.value == pytest.approx(same.value, rel=1e-6)
    assert independent.error == pytest.approx(same.error, rel=1e-5)


def test_a_ratio_of_one_seed_is_that_over_sequences() -> None:
    above, below = losses(2, 300, dtype=torch.float64)
    one, many = Estimate.ratio(above, below), Estimate.ratio(above[None], below[None])
    assert (one.value, one.error) == pytest.approx((many.value, many.error), rel=1e-12)


@pytest.mark.parametrize("seeds", [None, 3])
def test_a_negative_denominator_changes_the_sign_of_the_ratio_alone(seeds: int | None) -> None:
    above, below = (losses(*(() if seeds is None else (seeds,)), 300) + i for i in range(2))
    ratio, negative = Estimate.ratio(above, below), Estimate.ratio(above, -below)
    assert (negative.value, negative.error) == pytest.approx((-ratio.value, ratio.error))
    assert negative.low < negative.value < negative.high


def test_samples_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples has shape \(2, 3, 4\): must be"):
        Estimate.of(losses(2, 3, 4))


def test_intervals_cover() -> None:
    # Ratios of means of 200 paired, skewed numbers: the truth is within 1.96 errors 19 times in 20. The
    # tolerance is three standard errors of 1000 trials, and half a point of the skewness's bias.
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 200, 2, generator=random, dtype=torch.float64)
    whole = (0.5 * noise[..., 0]).exp()
    part = whole * (0.3 + 0.1 * noise[..., 1])
    found = [Estimate.ratio(p, w) for p, w in zip(part, whole, strict=True)]
    inside = sum(abs(f.value - 0.3) < 1.96 * f.error for f in found) / len(found)
    assert inside == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000) + 0.005)


def test_intervals_of_differences_cover() -> None:
    # As above, of two ratios that share most of their noise.
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 200, 3, generator=random, dtype=torch.float64)
    whole = (0.5 * noise[..., 0]).exp()
    common = 0.5 * noise[..., 1]
    pairs = [
        (whole * (0.5 + common), whole),
        (whole * (0.3 + common + 0.05 * noise[..., 2]), whole),
    ]
    found = [
        Estimate.ratio_difference(*((part[i], whole[i]) for part, whole in pairs))
        for i in range(1000)
    ]
    inside = sum(abs(f.value - 0.2) < 1.96 * f.error for f in found) / len(found)
    assert inside == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000) + 0.005)


def test_a_ratio_without_a_whole() -> None:
    zeros = torch.zeros(3)
    assert Estimate.ratio(zeros, zeros).value == 0
    assert Estimate.ratio(zeros + 1, zeros).value == math.inf


def test_a_difference_of_models_is_paired_over_sequences_and_counts_the_seeds_of_both() -> None:
    common, above, below = losses(300), losses(3, 1), 2 * losses(4, 1) - 1
    found = Estimate.difference_of_models(common + above, common + below)
    seeds = [Estimate.of_seeds(values[:, 0]).error for values in (above, below)]
    assert found.value == pytest.approx((above.mean() - below.mean()).item(), rel=1e-5)
    # What all models share cancels: left are the seeds, and the rounding of sums of two.
    assert found.error == pytest.approx(math.hypot(*seeds), rel=1e-5)
    alone = Estimate.difference_of_models(losses(1, 300), losses(1, 300).flip(1))
    assert alone.error == pytest.approx(Estimate.of(losses(300) - losses(300).flip(0)).error)


ONE, MAP = torch.rand(1, 3), torch.eye(3).repeat(3, 1, 1)
OF_ONE: dict[str, Callable[[], Any]] = {
    "mean": lambda: Estimate.of(ONE[:, 0]).error,
    "seeds": lambda: Estimate.of(ONE[:, :1]).error,
    "ratio": lambda: Estimate.ratio(ONE[0, :1], ONE[0, 1:2]).error,
    "ratio of seeds": lambda: Estimate.ratio(ONE[:, :1], ONE[:, 1:2]).error,
    "loss": lambda: InContextLoss(ONE).mean_error,
    "curve": lambda: InContextLoss(ONE).curve_error,
    "sensitivity": lambda: Sensitivity(1, ONE, ONE).curve_error,
    "attention": lambda: AttentionMaps(MAP, MAP, (0,), ONE[..., None]).mass_error,
}


@pytest.mark.parametrize("name", OF_ONE)
def test_a_single_sequence_has_no_error_and_no_warning(name: str) -> None:
    assert torch.as_tensor(OF_ONE[name]()).isnan().all()


PAIRED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "ratio": lambda a, b: _bare(Estimate.ratio)(a, b),
    "ratio_of_models": lambda a, b: _bare(Estimate.ratio_of_models)(
        a, b, above_seeds=a, below_seeds=b
    ),
    "ratio_difference": lambda a, b: _bare(Estimate.ratio_difference)((a, a), (b, b)),
    "difference_of_models": lambda a, b: _bare(Estimate.difference_of_models)(a[None], b[None]),
}


def _bare(method: Any) -> Callable[..., Any]:
    """A class method without the checks of shapes that tests make in every call."""
    return lambda *given, **named: inspect.unwrap(method.__func__)(Estimate, *given, **named)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("count", [1, 4])
def test_samples_of_other_sequences_are_not_paired(name: str, count: int) -> None:
    with pytest.raises(ValueError, match="must be those of the same sequences"):
        PAIRED[name](losses(5), losses(count))
