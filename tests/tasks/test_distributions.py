import functools
import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.errors import ConfigError
from mesaopt.tasks import (
    FiniteStates,
    IndependentCoordinates,
    InitialStates,
    SampledStates,
    SparseStates,
    from_distribution,
    full_one,
    gaussian,
    generalised_gaussian,
    initial_states,
    rademacher,
    two_magnitudes,
    uniform,
)

NAMES = ("full_one", "gaussian", "sparse", "rademacher", "uniform")
DISTRIBUTIONS = {
    **{name: initial_states(name, scale=1.5) for name in NAMES},
    "spiky": generalised_gaussian(1.0, 0.7),
    "flat": generalised_gaussian(4.0, 1.3),
    "two magnitudes": two_magnitudes(2.0, 0.25, 0.8),
    "finite": FiniteStates(
        "dependent", np.array([[1.0, 2.0, -1.0], [-1.0, 0.5, 0.0]]), np.array([0.3, 0.7])
    ),
    "scipy": from_distribution(scipy.stats.logistic(scale=0.5)),
}
POWERS = np.array(
    [
        [0, 0, 0],
        [1, 0, 0],
        [2, 0, 0],
        [3, 0, 0],
        [4, 0, 0],
        [6, 0, 0],
        [1, 1, 0],
        [2, 2, 0],
        [2, 4, 0],
    ]
    + [[3, 3, 0], [1, 2, 3], [2, 2, 2], [0, 5, 1]]
)


def monomials(states: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Evaluate prod_j x_j^{p_j}: [state, dim] and [monomial, dim] to [state, monomial]."""
    table = [np.ones_like(states)]  # powers of the states, by repeated multiplication
    for _ in range(powers.max()):
        table.append(table[-1] * states)
    by_power = np.stack(table)  # [power, state, dim]
    factors = [by_power[powers[:, j], :, j] for j in range(powers.shape[1])]
    return functools.reduce(np.multiply, factors).T


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_moments_are_those_of_the_draws(name: str) -> None:
    initial, count = DISTRIBUTIONS[name], 200_000
    values = monomials(initial.sample(np.random.default_rng(0), count, 3), POWERS)
    standard_error = values.std(0) / math.sqrt(count)
    difference = np.abs(values.mean(0) - initial.moment(POWERS))
    # The 1e-11 is for distributions that do not vary: a sum of 200,000 rounded numbers of order 1.5^6.
    assert (difference <= 5 * standard_error + 1e-11).all()


@given(scale=st.floats(0.1, 10.0), name=st.sampled_from(NAMES))
def test_a_scale_multiplies_the_state(scale: float, name: str) -> None:
    unit, scaled = initial_states(name), initial_states(name, scale=scale)
    orders = POWERS.sum(-1)
    # A power of at most 6, a product of a few factors: some ten roundings.
    np.testing.assert_allclose(
        scaled.moment(POWERS), scale**orders * unit.moment(POWERS), rtol=1e-14
    )
    draws = (initial.sample(np.random.default_rng(1), 50, 3) for initial in (unit, scaled))
    # A uniform draw is low + width * u: rounded to the width, however small it comes out.
    np.testing.assert_allclose(scale * next(draws), next(draws), rtol=1e-14, atol=1e-15 * scale)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_are_a_pure_function_of_the_generator(name: str) -> None:
    initial = DISTRIBUTIONS[name]
    first, again, other = (initial.sample(np.random.default_rng(seed), 40, 3) for seed in (1, 1, 2))
    assert first.shape == (40, 3)
    assert first.dtype == np.float64
    assert np.array_equal(first, again)
    assert name == "full_one" or not np.array_equal(first, other)


def test_what_defines_each_distribution() -> None:
    draws = {
        name: DISTRIBUTIONS[name].sample(np.random.default_rng(0), 1000, 4)
        for name in (*NAMES, "two magnitudes")
    }
    assert (draws["full_one"] == 1.5).all()
    assert (np.abs(draws["rademacher"]) == 1.5).all()
    assert ((draws["sparse"] != 0).sum(1) == 1).all()
    assert (np.abs(draws["sparse"]).sum(1) == 1.5).all()
    assert 1.49 < np.abs(draws["uniform"]).max() <= 1.5
    assert set(np.unique(np.abs(draws["two magnitudes"]))) == {0.8, 1.6}


def test_a_generalised_gaussian_of_shape_2_is_gaussian() -> None:
    gaussian = initial_states("gaussian", scale=0.9 / math.sqrt(2))
    # Gamma functions in logarithms: ten roundings or so.
    np.testing.assert_allclose(
        generalised_gaussian(2.0, 0.9).moment(POWERS), gaussian.moment(POWERS), rtol=1e-13
    )


def own_gaussian(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.standard_normal((count, dim))


def test_a_sampler_of_ones_own_has_the_moments_of_its_draws() -> None:
    initial, exact = SampledStates(own_gaussian, num_samples=2**18), initial_states("gaussian")
    # Variances of 1, x, x^2, x^3 and x^4, by E x^(2n) = (2n - 1)!!.
    variance = np.array([0, 1, 3 - 1, 15, 105 - 9])
    moments = initial.moment(POWERS[:5])
    error = np.abs(moments - exact.moment(POWERS[:5]))
    assert (error <= 5 * np.sqrt(variance / 2**18)).all()
    assert np.array_equal(moments, initial.moment(POWERS[:5])), "the draws are fixed"


def test_complex_states_have_moments_with_conjugates() -> None:
    def circle(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        return 2 * np.exp(2j * math.pi * random.random((count, dim)))

    initial, one, none = (
        SampledStates(circle, num_samples=2**16),
        np.array([1, 0]),
        np.array([0, 0]),
    )
    assert initial.sample(np.random.default_rng(0), 3, 2).dtype == np.complex128
    assert initial.moment(one, one) == pytest.approx(4, rel=1e-12), "|x|^2 is 4 in every draw"
    # x and x^2 average to zero; 2^16 draws of modulus 2 and 4.
    assert abs(initial.moment(one, none)) < 5 * 2 / 2**8
    assert abs(initial.moment(2 * one)) < 5 * 4 / 2**8


def test_real_states_do_not_care_which_power_is_of_the_conjugate() -> None:
    initial: InitialStates = initial_states("gaussian", scale=2.0)
    for half in (np.array([1, 0]), np.array([1, 2])):
        assert initial.moment(half, half) == initial.moment(2 * half)
        assert initial.moment(half, half) > 0


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda random, count, dim: np.ones((count, dim + 1)), "returned shape"),
        (lambda random, count, dim: np.full((count, dim), np.nan), "NaN or an infinity"),
        (lambda random, count, dim: np.full((count, dim), np.inf), "NaN or an infinity"),
    ],
)
def test_samplers_that_return_no_states_are_refused(sampler, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampledStates(sampler).sample(np.random.default_rng(0), 5, 2)


@pytest.mark.parametrize(
    "distribution", [scipy.stats.cauchy(), scipy.stats.t(df=2), scipy.stats.t(df=5)]
)
def test_a_sixth_moment_that_is_infinite_is_refused(distribution) -> None:
    with pytest.raises(ConfigError, match="must be finite up to 6"):
        from_distribution(distribution)

    def sampler(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        return distribution.rvs(size=(count, dim), random_state=random)

    with pytest.raises(ConfigError, match="of the sixth moment"):
        SampledStates(sampler, num_samples=2**16).moment(np.array([6, 0]))


def test_a_moment_that_is_no_number_is_refused_where_the_distribution_is_made() -> None:
    with pytest.raises(ConfigError, match="initial states 'odd': moment 3 is inf"):
        IndependentCoordinates(
            "odd", lambda random, size: np.ones(size), lambda n: math.inf if n == 3 else 1.0
        )


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_out_of_range_are_refused(scale: float) -> None:
    makers = (SparseStates, full_one, gaussian, rademacher, uniform)
    named = (partial(initial_states, name, scale=scale) for name in NAMES)
    for make in (*named, *(partial(maker, scale) for maker in makers)):
        with pytest.raises(ConfigError, match="scale=.*: must be greater than 0 and finite"):
            make()


@pytest.mark.parametrize(
    "make", [lambda: generalised_gaussian(0.03), *(partial(m, 1e60) for m in (gaussian, uniform))]
)
def test_moments_too_large_for_a_number_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="moment 6 is inf: must be finite up to 6"):
        make()


@pytest.mark.parametrize(
    ("name", "value"), [("num_samples", 0), ("num_samples", 1.5), ("seed", -1)]
)
def test_numbers_of_draws_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}: must be "):
        SampledStates(own_gaussian, **{name: value})


def test_an_unknown_distribution_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="start='spars': did you mean 'sparse'?"):
        initial_states("spars")


@pytest.mark.parametrize("probabilities", [[0.5], [0.7, 0.7], [1.5, -0.5], [math.nan, 1]])
def test_probabilities_that_are_none_are_refused(probabilities: list[float]) -> None:
    with pytest.raises(ConfigError, match="must be 2 numbers, 0 or greater, with sum 1"):
        FiniteStates("two", np.array([[1.0], [-1.0]]), np.array(probabilities))


@pytest.mark.parametrize(
    "points",
    [np.ones(2), np.ones((0, 2)), np.ones((2, 0)), [[math.nan]], [[math.inf]], [[1j], [-1j]], 1.0],
)
def test_points_that_are_none_are_refused(points) -> None:
    with pytest.raises(
        ConfigError, match=r"'two': points of shape .*: must be finite real numbers"
    ):
        FiniteStates("two", np.array(points))


def test_a_distribution_of_states_is_a_distribution_of_their_dimension() -> None:
    with pytest.raises(ConfigError, match="dim=2: must be 3, as its states have"):
        DISTRIBUTIONS["finite"].sample(np.random.default_rng(0), 5, 2)
