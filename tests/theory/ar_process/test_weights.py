import math
from typing import Any

import numpy as np
import pytest
from one_layer_oracle import draw_sequences, layer_loss, random_weights

from mesaopt.errors import ConfigError
from mesaopt.tasks import initial_states
from mesaopt.theory.ar_process import Blocks, Weights, diagonal, normal
from mesaopt.theory.ar_process.weights import check_choice


@pytest.mark.parametrize("blocks", ["core", "all"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_diagonal_start_has_two_numbers(blocks: str, dim: int) -> None:
    weights = diagonal(dim, key_query=0.5 + 1j, output_value=3.0, blocks=blocks)
    assert (weights.dim, weights.blocks) == (dim, blocks)
    np.testing.assert_array_equal(weights.value_block, 3.0 * np.eye(dim))
    np.testing.assert_array_equal(weights.key_block, (0.5 + 1j) * np.eye(dim))
    assert np.count_nonzero(weights.output_value) == np.count_nonzero(weights.key_query) == dim
    np.testing.assert_array_equal(weights.products, np.full(dim, 1.5))
    assert weights.off_diagonal == 0


def test_the_key_block_pairs_the_previous_state_with_the_query() -> None:
    weights = diagonal(2, key_query=1.0, output_value=1.0, blocks="all")
    np.testing.assert_array_equal(weights.key_query[2:, :2], np.eye(2))  # rows of x_{i-1}
    np.testing.assert_array_equal(weights.output_value[:, :2], np.eye(2))  # columns of x_i


def test_products_are_free_of_a_shared_phase() -> None:
    phases = np.exp(1j * np.array([0.3, 2.0, -1.0]))
    v, k = np.diag(phases * 2), np.diag(phases.conj() * [1.0, 2.0, -3.0])
    np.testing.assert_allclose(Weights(v, k).products, [2.0, 4.0, -6.0], rtol=1e-14)


def test_off_diagonals_are_relative_to_the_diagonal() -> None:
    v = np.array([[2.0, -0.5j], [0.1, 1.0]])
    k = np.array([[1.0, 0.0], [0.4, -4.0]])
    assert Weights(v, k).off_diagonal == 0.25
    assert Weights(k, v).off_diagonal == 0.25
    assert Weights(np.eye(2), k).off_diagonal == 0.1


@pytest.mark.parametrize("blocks", ["core", "all"])
def test_masks_take_the_off_diagonals_of_two_blocks_only(blocks: str) -> None:
    weights = random_weights(3, blocks, batch=(2,))
    before = weights.output_value.copy()
    masked = weights.masked()
    np.testing.assert_array_equal(weights.output_value, before)  # the original is left alone
    assert (masked.off_diagonal == 0).all()
    np.testing.assert_array_equal(masked.products, weights.products)
    if blocks == "all":
        np.testing.assert_array_equal(masked.output_value[..., 3:], weights.output_value[..., 3:])
        np.testing.assert_array_equal(masked.key_query[:, :3], weights.key_query[:, :3])
        np.testing.assert_array_equal(masked.key_query[..., 3:], weights.key_query[..., 3:])


def test_masks_give_zeros_for_infinities() -> None:
    infinite = np.full((2, 2), np.inf)
    masked = Weights(infinite, infinite).masked()
    np.testing.assert_array_equal(masked.output_value, [[np.inf, 0.0], [0.0, np.inf]])


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_embedded_core_weights_are_the_same_layer(batch: tuple[int, ...]) -> None:
    core = random_weights(2, batch=batch)
    every = core.embedded()
    assert every.blocks == "all"
    assert every.embedded() is every
    np.testing.assert_array_equal(every.value_block, core.output_value)
    np.testing.assert_array_equal(every.key_block, core.key_query)
    if not batch:
        states = draw_sequences(initial_states("gaussian"), 3, 5, 2)
        # The same sums with zeros between the terms.
        assert layer_loss(states, every) == pytest.approx(layer_loss(states, core), rel=1e-14)


def test_moves_are_steps_along_a_change() -> None:
    weights, change = random_weights(2, seed=1), random_weights(2, seed=2)
    moved = weights.moved(change, -0.5)
    np.testing.assert_array_equal(
        moved.output_value, weights.output_value - 0.5 * change.output_value
    )
    np.testing.assert_array_equal(moved.key_query, weights.key_query - 0.5 * change.key_query)


@pytest.mark.parametrize("blocks", ["core", "all"])
def test_normal_starts_have_the_spread_they_are_asked_for(blocks: str) -> None:
    weights = normal(5, std=0.1, random=np.random.default_rng(0), blocks=blocks, count=40)
    assert weights.blocks == blocks
    assert weights.output_value.shape[0] == weights.key_query.shape[0] == 40
    for entries in (weights.output_value, weights.key_query):
        # The standard error of a standard deviation of n normal numbers is 1 / sqrt(2 n) of it.
        assert entries.std() == pytest.approx(0.1, rel=4 / math.sqrt(2 * entries.size))
        assert abs(entries.mean()) < 4 * 0.1 / math.sqrt(entries.size)
    other = normal(5, std=0.1, random=np.random.default_rng(0), blocks=blocks, count=40)
    np.testing.assert_array_equal(weights.key_query, other.key_query)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": 0.0}, "std=0.0: must be greater than 0"),
        ({"std": -1.0}, "std=-1.0: must be greater than 0"),
        ({"std": math.nan}, "std=nan: must be greater than 0"),
        ({"dim": 0}, "dim=0: must be 1 or greater"),
        ({"count": 0}, "count=0: must be 1 or greater"),
    ],
)
def test_normal_starts_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"dim": 2, "std": 1.0, "random": np.random.default_rng(0)} | changes
    with pytest.raises(ConfigError, match=message):
        normal(settings.pop("dim"), **settings)


def test_a_diagonal_start_without_coordinates_is_refused() -> None:
    with pytest.raises(ConfigError, match="dim=0: must be 1 or greater"):
        diagonal(0, key_query=1.0, output_value=1.0)


def test_a_misspelt_choice_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="blocks='al': did you mean 'all'"):
        check_choice("blocks", "al", Blocks)
    check_choice("blocks", "core", Blocks)
