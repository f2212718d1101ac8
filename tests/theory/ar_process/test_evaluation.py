"""Statistics of the last prediction against running the layer on every sequence."""

import numpy as np
import pytest
from one_layer_oracle import draw_sequences, in_chunks, layer_loss, random_weights

from mesaopt.tasks import initial_states, two_magnitudes
from mesaopt.theory.ar_process import Weights, diagonal, last_token, one_step


def predictions(states: np.ndarray, weights: Weights) -> np.ndarray:
    """Run the layer on each sequence after its longest context."""
    actual = []
    for x in states:
        pairs = sum(np.outer(x[i], x[i - 1].conj()) for i in range(1, len(x) - 1))
        actual.append(weights.output_value @ pairs @ weights.key_query @ x[-2] / (len(x) - 2))
    return np.array(actual)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize(("length", "dim"), [(3, 1), (6, 2), (9, 3)])
def test_they_are_those_of_the_predictions(size: int, length: int, dim: int) -> None:
    states = draw_sequences(initial_states("gaussian"), 33, length, dim)
    weights = random_weights(dim)
    ours, target = predictions(states, weights), states[:, -1]
    test = last_token(in_chunks(states, size))
    # Means of 33 numbers near 1, but for quotients, that reach 1e3.
    assert float(test.loss(weights)) == pytest.approx(
        layer_loss(states, weights, contexts="last"), rel=1e-12
    )
    assert float(test.loss(weights)) == pytest.approx(
        float((np.abs(ours - target) ** 2).sum(1).mean() / 2), rel=1e-12
    )
    assert float(test.ratio(weights)) == pytest.approx(
        float((ours / target).real.mean()), rel=1e-11, abs=1e-12
    )
    slope = (ours * target.conj()).real.sum() / (np.abs(target) ** 2).sum()
    assert float(test.slope(weights)) == pytest.approx(float(slope), rel=1e-12, abs=1e-13)


def test_several_layers_are_evaluated_at_once() -> None:
    test = last_token(in_chunks(draw_sequences(initial_states("uniform"), 9, 5, 2), 4))
    weights = random_weights(2, batch=(3, 2))
    for actual in (test.loss(weights), test.ratio(weights), test.slope(weights)):
        assert actual.shape == (3, 2)
    alone = Weights(weights.output_value[1, 1], weights.key_query[1, 1])
    np.testing.assert_allclose(test.ratio(weights)[1, 1], test.ratio(alone), rtol=1e-12)
    np.testing.assert_allclose(test.slope(weights)[1, 1], test.slope(alone), rtol=1e-12)
    np.testing.assert_allclose(test.loss(weights)[1, 1], test.loss(alone), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_targets_that_are_zero_are_left_out(count: int) -> None:
    # Every sequence has one coordinate that is there, though not every coordinate need be seen.
    states = draw_sequences(initial_states("sparse"), count, 6, 3)
    test = last_token(in_chunks(states, 7))
    weights = diagonal(3, key_query=0.5, output_value=1.5)
    assert float(test.ratio(weights)) == pytest.approx(0.75, rel=1e-13)


def test_every_target_that_is_there_counts_once() -> None:
    initial = two_magnitudes(0.0, 0.5)
    states = draw_sequences(initial, 21, 6, 3, seed=2)
    weights = random_weights(3)
    ours, target = predictions(states, weights), states[:, -1]
    there = np.abs(target) > 0
    counts = there.sum(0)
    assert len(set(counts.tolist())) > 1  # else a mean of means would be the same
    wanted = (ours[there] / target[there]).real.mean()
    actual = float(last_token(in_chunks(states, 4)).ratio(weights))
    assert actual == pytest.approx(float(wanted), rel=1e-12)


def test_the_mean_ratio_of_gaussian_data_is_far_from_its_slope() -> None:
    initial = initial_states("gaussian")
    theory = one_step(initial, dim=2, length=30)
    weights = diagonal(2, key_query=theory.product, output_value=1.0)
    test = last_token(in_chunks(draw_sequences(initial, 4000, 30, 2), 500))
    # The ratio is c |x|^2 and noise of mean zero: a spread of c sqrt(2), over 8000, and the noise's.
    assert float(test.ratio(weights)) == pytest.approx(theory.ratio, abs=0.02)
    # Ratio of fourth and second moments: their relative errors are sqrt(96/9) and sqrt(2) over sqrt(8000).
    assert float(test.slope(weights)) == pytest.approx(theory.regression_slope, rel=0.12)
    assert theory.regression_slope > 2.5 * theory.ratio
