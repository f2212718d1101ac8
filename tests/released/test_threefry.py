"""The random numbers of JAX, against known answers."""

import numpy as np
import pytest

from mesaopt.released import RELEASED, config_of, normal, orthogonal, threefry2x32


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_known_answers_of_random123(key: tuple, counter: tuple, words: tuple) -> None:
    counters = np.array([counter, counter], dtype=np.uint32)
    assert threefry2x32(key, counters).tolist() == [list(words)] * 2


@pytest.mark.parametrize(
    ("seed", "shape", "numbers"),
    [
        (
            0,
            (10,),
            [-0.3721109, 0.26423115, -0.18252768, -0.7368197, -0.44030377]
            + [-0.1521442, -0.67135346, -0.5908641, 0.73168886, 0.5673026],
        ),
        (42, (1,), [-0.18471177]),
        (5, (7,), [-0.8095068, -2.4998446, -0.09575798, -0.5124478, 1.1423542, -0.23984289, -1.4376286]),
    ],
)  # fmt: skip
def test_normal_numbers_are_those_that_jax_draws(seed: int, shape: tuple, numbers: list) -> None:
    # The first two are in JAX's documentation, the third was printed by JAX. Its erfinv is good to four
    # spacings of float32.
    np.testing.assert_allclose(normal(seed, shape), numbers, rtol=5e-7)


def test_an_orthogonal_matrix_is_the_one_that_jax_draws() -> None:
    wanted = [
        [0.6221963, -0.52370936, 0.5818937],
        [0.6146899, 0.78710914, 0.05114129],
        [-0.4847971, 0.3258642, 0.8116553],
    ]
    np.testing.assert_allclose(orthogonal(7, 3), wanted, atol=1e-6)  # printed by JAX, in float32


def test_the_shape_only_arranges_the_numbers() -> None:
    assert np.array_equal(normal(3, (4, 6)).ravel(), normal(3, (24,)))
    assert normal(3, ()).shape == ()


def test_the_tasks_have_the_authors_matrices() -> None:
    configs = {network.recipe: config_of(network).task for network in RELEASED}
    for recipe, task in configs.items():
        if recipe.startswith("fixed-"):
            assert np.array_equal(task.matrix, orthogonal(42, 10))
        elif recipe.endswith("-nonlinear"):
            # x @ A @ B with kernels on the right, in their code.
            first, second = np.array(task.teacher_hidden), np.array(task.teacher_output)
            np.testing.assert_allclose(first.T / 1.1, normal(421, (10, 40)), rtol=1e-6)
            np.testing.assert_allclose(second.T / 1.1, normal(422, (40, 10)), rtol=1e-6)
        else:
            assert getattr(task, "matrix", None) is None
