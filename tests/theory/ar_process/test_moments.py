"""Distributions of x_1 against quadrature and enumeration, and the moments that theory asks of them."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from one_layer_oracle import Atoms, finite_twin, independent_atoms, lopsided_atoms

from mesaopt.errors import ConfigError
from mesaopt.tasks import (
    IndependentCoordinates,
    InitialStates,
    SampledStates,
    from_distribution,
    generalised_gaussian,
    initial_states,
    two_magnitudes,
)
from mesaopt.theory.ar_process import population_loss, start_moments
from mesaopt.theory.ar_process.moments import third_products

NAMES = ("full_one", "gaussian", "sparse", "rademacher", "uniform")


def exponents(dim: int, degree: int = 6) -> np.ndarray:
    """Every row of exponents that adds up to the degree or less."""
    rows = itertools.product(range(degree + 1), repeat=dim)
    return np.array([row for row in rows if sum(row) <= degree])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_moments_are_those_of_quadrature(name: str, dim: int, scale: float) -> None:
    powers = exponents(dim)
    exact = finite_twin(name, dim, scale).moment(powers)
    # Nodes of quadrature are found to some 1e-14, their sixth powers to 1e-13, against a sixth moment
    # of 15 scale^6.
    bound = 1e-12 * 15 * scale ** powers.sum(-1)
    assert (np.abs(initial_states(name, scale=scale).moment(powers) - exact) <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_real_distributions_do_not_tell_a_coordinate_from_its_conjugate(name: str) -> None:
    initial, powers = initial_states(name), exponents(2, 3)
    np.testing.assert_array_equal(initial.moment(powers, powers), initial.moment(2 * powers))


@given(shape=st.floats(0.5, 8), scale=st.floats(0.2, 3))
def test_generalised_gaussian_moments_are_those_of_scipy(shape: float, scale: float) -> None:
    initial = generalised_gaussian(shape, scale)
    for n in range(7):
        wanted = scipy.stats.gennorm(shape, scale=scale).moment(n) if n else 1.0
        # Exponentials of differences of log-gammas up to 20, each rounded: 1e-14 of themselves.
        assert float(initial.moment(np.array([n]))) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_generalised_gaussian_is_gaussian_at_shape_two() -> None:
    ours, normal = generalised_gaussian(2.0, math.sqrt(2.0)), initial_states("gaussian")
    powers = exponents(2)
    np.testing.assert_allclose(ours.moment(powers), normal.moment(powers), rtol=1e-13)


@given(ratio=st.floats(0, 3), probability=st.floats(0, 1), scale=st.floats(0.2, 2))
def test_two_magnitudes_by_enumeration(ratio: float, probability: float, scale: float) -> None:
    first, second = scale * ratio, scale
    likely = [probability / 2] * 2 + [(1 - probability) / 2] * 2
    initial = independent_atoms([first, -first, second, -second], likely, 2)
    powers = exponents(2)
    actual = two_magnitudes(ratio, probability, scale).moment(powers)
    # 16 terms up to 6^6.
    np.testing.assert_allclose(actual, initial.moment(powers), rtol=1e-12, atol=1e-16 * 16 * 6**6)


DISTRIBUTIONS: list[InitialStates] = [
    *(initial_states(name, scale=1.3) for name in NAMES),
    generalised_gaussian(4.0),
    generalised_gaussian(1.0, 0.5),
    two_magnitudes(0.3, 0.7),
    from_distribution(scipy.stats.logistic()),
    lopsided_atoms(3),
]
every_distribution = pytest.mark.parametrize(
    "initial", DISTRIBUTIONS, ids=lambda initial: initial.name
)


@every_distribution
def test_draws_have_the_moments_that_the_distribution_states(initial: InitialStates) -> None:
    count, dim = 20_000, 3
    states = initial.sample(np.random.default_rng(0), count, dim)
    assert states.shape == (count, dim)
    for row in np.eye(3, dtype=int).tolist() + [[1, 1, 0], [2, 0, 1], [2, 2, 0], [0, 4, 0]]:
        powers = np.array(row)
        values = (states**powers).prod(-1)
        # Five standard errors of the mean: one of 70 comparisons fails by chance in 3e4 runs.
        error = 5 * values.std() / count**0.5 + 1e-12
        assert abs(values.mean() - initial.moment(powers)) <= error


@every_distribution
def test_seeds_repeat_and_differ(initial: InitialStates) -> None:
    draws = [initial.sample(np.random.default_rng(seed), 50, 3) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() == (initial.name != "full_one")


def test_a_sampler_finds_the_moments_to_its_error() -> None:
    count = 2**16
    initial = SampledStates(
        lambda random, n, dim: random.standard_normal((n, dim)), num_samples=count, seed=1
    )
    powers = exponents(2)
    normal = initial_states("gaussian")
    spread = (
        normal.moment(2 * powers[powers.sum(-1) <= 3])
        - normal.moment(powers[powers.sum(-1) <= 3]) ** 2
    )
    actual = initial.moment(powers)[powers.sum(-1) <= 3]
    wanted = normal.moment(powers)[powers.sum(-1) <= 3]
    assert (np.abs(actual - wanted) <= 4 * np.sqrt(spread / count)).all()
    np.testing.assert_array_equal(
        initial.moment(powers), initial.moment(powers)
    )  # the seed is fixed
    assert initial.moment(powers.reshape(2, 14, 2)).shape == (2, 14)


def test_a_sampler_of_complex_states_keeps_conjugates_apart() -> None:
    def turned(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        return np.exp(2j * np.pi * random.integers(3, size=(count, dim)) / 3)

    initial = SampledStates(turned, num_samples=2**14)
    one, zero = np.array([1, 0]), np.array([0, 0])
    assert initial.moment(one, one) == pytest.approx(1.0, abs=1e-12)
    assert initial.moment(3 * one, zero) == pytest.approx(1.0, abs=1e-12)
    assert abs(initial.moment(2 * one, zero)) < 5 / 2**7


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_start_moments_of_a_distribution_without_symmetry(dim: int) -> None:
    initial = lopsided_atoms(dim)
    square, weight = np.abs(initial.atoms) ** 2, initial.probabilities
    moments = start_moments(initial, dim)
    assert moments.dim == dim
    np.testing.assert_allclose(moments.second, weight @ square, rtol=1e-13)
    np.testing.assert_allclose(moments.fourth, weight @ square**2, rtol=1e-13)
    np.testing.assert_allclose(moments.sixth, weight @ square**3, rtol=1e-13)
    mixed = np.einsum("n,nj,nr->jr", weight, square, square**2) * (1 - np.eye(dim))
    np.testing.assert_allclose(moments.mixed, mixed, rtol=1e-13)


def test_third_products_are_those_of_the_features() -> None:
    initial, dim = lopsided_atoms(2), 2
    x = initial.atoms
    f = np.einsum("nk,nl,nm->nklm", x, x.conj(), x).reshape(len(x), -1)
    gram, cross, energy = third_products(initial, dim)
    weight = initial.probabilities
    np.testing.assert_allclose(gram, np.einsum("n,na,nb->ab", weight, f, f.conj()), atol=1e-13)
    np.testing.assert_allclose(cross, np.einsum("n,na,nj->aj", weight, f, x.conj()), atol=1e-13)
    np.testing.assert_allclose(energy, weight @ np.abs(x) ** 2, rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_distribution(scipy.stats.t(df=5)), "'t': moment 6 is inf"),
        (lambda: from_distribution(scipy.stats.cauchy(), name="own"), "'own': moment 1 is"),
        (lambda: initial_states("gausian"), "did you mean 'gaussian'"),
        (lambda: initial_states("gaussian", scale=0.0), "scale=0.0: must be greater than 0"),
        (lambda: initial_states("sparse", scale=math.nan), "scale=nan: must be greater than 0"),
        (lambda: initial_states("uniform", scale=math.inf), "scale=inf: must be .* finite"),
        (lambda: generalised_gaussian(0.0), "shape=0.0: must be greater than 0"),
        (lambda: generalised_gaussian(2.0, -1.0), "scale=-1.0: must be greater than 0"),
        (lambda: two_magnitudes(-0.1, 0.5), "ratio=-0.1: must be 0 or greater"),
        (lambda: two_magnitudes(0.5, 1.1), "probability=1.1: must be between 0 and 1"),
        (lambda: two_magnitudes(0.5, 0.5, 0.0), "scale=0.0: must be greater than 0"),
    ],
)
def test_distributions_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def student(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.standard_t(5, (count, dim))


def cauchy(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.standard_cauchy((count, dim))


@pytest.mark.parametrize("sampler", [student, cauchy])
def test_a_sampler_without_a_sixth_moment_is_found_out(sampler: Any) -> None:
    initial = SampledStates(sampler, name="heavy", num_samples=2**17)
    with pytest.raises(
        ConfigError, match="'heavy': one of 131,072 draws makes up .* known moments"
    ):
        start_moments(initial, 2)


@pytest.mark.parametrize("count", [1, 5, 19])
def test_few_draws_of_bounded_states_are_no_heavy_tail(count: int) -> None:
    initial = SampledStates(
        lambda random, n, dim: random.choice([-1.0, 1.0], (n, dim)), num_samples=count
    )
    assert initial.moment(np.array([2, 4])) == 1.0


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda random, n, dim: np.ones((n, dim + 1)), r"shape \(16384, 4\): must be \(16384, 3\)"),
        (lambda random, n, dim: np.ones(n), r"shape \(16384,\): must be \(16384, 3\)"),
        (lambda random, n, dim: np.full((n, dim), np.nan), "returned a NaN or an infinity"),
        (lambda random, n, dim: np.full((n, dim), np.inf), "returned a NaN or an infinity"),
    ],
)
def test_a_sampler_that_returns_something_else_is_refused(sampler: Any, message: str) -> None:
    initial = SampledStates(sampler, name="broken", num_samples=2**14)
    with pytest.raises(ConfigError, match=f"'broken': .*{message}"):
        population_loss(initial, dim=3, length=5)


def test_samples_of_whole_numbers_become_floats() -> None:
    initial = SampledStates(lambda random, n, dim: np.ones((n, dim), dtype=np.int64))
    assert initial.sample(np.random.default_rng(0), 2, 2).dtype == np.float64


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_own_distribution_with_an_infinite_moment_is_refused(value: float) -> None:
    class Heavy(Atoms):
        def moment(self, powers: Any, conjugate_powers: Any = None) -> Any:
            total = powers if conjugate_powers is None else powers + conjugate_powers
            return np.where(total.sum(-1) == 6, value, super().moment(powers, conjugate_powers))

    initial = Heavy([[1.0, 2.0], [2.0, 1.0]], name="heavy")
    for ask in (
        lambda: start_moments(initial, 2),
        lambda: population_loss(initial, dim=2, length=4),
    ):
        with pytest.raises(ConfigError, match="'heavy': has a moment that is not finite"):
            ask()


def test_an_independent_distribution_checks_its_moments() -> None:
    def draw(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return random.pareto(3.0, size)

    with pytest.raises(ConfigError, match="'Pareto': moment 3 is inf: must be finite up to 6"):
        IndependentCoordinates("Pareto", draw, lambda n: 3 / (3 - n) if n < 3 else math.inf)
