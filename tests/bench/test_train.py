from dataclasses import replace

import pytest
import torch

from mesaopt.bench.train import matmul_flops, measure_training_step
from mesaopt.errors import ConfigError


def test_a_measurement_hangs_together() -> None:
    threads = torch.get_num_threads()
    result = measure_training_step(repeats=2, threads=1)
    assert torch.get_num_threads() == threads
    assert result.fastest <= result.milliseconds <= result.slowest
    assert result.tokens_per_second == pytest.approx(256 * 50 / (result.milliseconds / 1000))
    # Forward and backward of two layers: projections 4 * 2 * 12800 * 40 * 80 and scores 4 * 12800 * 50
    # * 80, tripled, less the gradient of the tokens, which nobody asks for.
    assert 2.5e9 < result.flops < 3.5e9
    assert 0 < result.share_of_peak < 1
    assert result.peak_memory_mib >= result.idle_memory_mib
    assert len(result.describe()) == 6
    assert len(result.describe(goals=True)) == 10
    long = replace(result, steps=1000, milliseconds=108_000.0)
    assert ("the whole training", "1,000 steps, about 30.0 h here") in long.describe()


def test_rates_are_positive() -> None:
    assert matmul_flops(torch.float64, size=64) > 0


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"threads": 0}])
def test_nothing_to_measure_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be 1 or greater"):
        measure_training_step(**arguments)
