"""The two conditions on the distribution of x_1, and the identity with a step of gradient descent."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from one_layer_oracle import (
    Atoms,
    beyond_one_power,
    draw_sequences,
    independent_atoms,
    lopsided_atoms,
)

from mesaopt.errors import ConfigError
from mesaopt.tasks import (
    InitialStates,
    SampledStates,
    from_distribution,
    generalised_gaussian,
    initial_states,
    two_magnitudes,
)
from mesaopt.theory.ar_process import (
    diagonal,
    one_step,
    one_step_identity,
    population_loss,
    recovery_test,
    sign_flip_test,
)


def phases(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return np.exp(2j * np.pi * random.random((count, dim)))


def cauchy(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.standard_cauchy((count, dim))


def skewed(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.exponential(size=(count, dim)) - 1


def turned(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return random.standard_normal((count, dim)) * np.exp(0.7j)


UNIT = SampledStates(phases, name="unit modulus")

RECOVERED: list[tuple[InitialStates, float]] = [
    (initial_states("full_one"), 1.0),
    (initial_states("sparse", scale=0.5), 0.5),
    (initial_states("rademacher", scale=3.0), 3.0),
    (two_magnitudes(0.0, 0.6, 2.0), 2.0),
    (two_magnitudes(1.0, 0.6), 1.0),
    (UNIT, 1.0),
]
NOT_RECOVERED: list[InitialStates] = [
    initial_states("gaussian"),
    initial_states("uniform"),
    generalised_gaussian(1.0),
    generalised_gaussian(30.0),
    two_magnitudes(0.9, 0.5),
    two_magnitudes(2.0, 0.1),
    Atoms(
        independent_atoms([1.0, -1.0], [0.5, 0.5], 3).atoms * [1.0, 1.0, 1.01], name="one scale off"
    ),
    SampledStates(lambda random, n, dim: phases(random, n, dim) * [1, 1, 2], name="moduli differ"),
]


@pytest.mark.parametrize(("initial", "magnitude"), RECOVERED, ids=lambda x: getattr(x, "name", ""))
def test_one_magnitude_is_recovered(initial: InitialStates, magnitude: float) -> None:
    actual = recovery_test(initial, dim=3)
    assert actual.holds
    assert actual.magnitude == pytest.approx(magnitude, rel=1e-14)
    assert actual.deviation <= 1e-14
    assert abs(actual.unexplained) < 1e-12


@pytest.mark.parametrize("initial", NOT_RECOVERED, ids=lambda initial: initial.name)
def test_other_magnitudes_are_not_recovered(initial: InitialStates) -> None:
    actual = recovery_test(initial, dim=3)
    assert not actual.holds
    assert 0 < actual.deviation <= 0.5
    assert actual.unexplained > 0


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_what_is_left_is_what_the_theory_says(name: str) -> None:
    actual = recovery_test(initial_states(name), dim=4, num_samples=2**16)
    # 2^18 numbers: moments up to the sixth are known to 1.3 %, the share to about as much.
    wanted = one_step(initial_states(name), dim=4, length=9).unexplained_limit
    assert actual.unexplained == pytest.approx(wanted, rel=0.05)


@given(ratio=st.floats(0, 3), scale=st.floats(0.1, 10))
def test_recovery_is_the_case_of_equality(ratio: float, scale: float) -> None:
    initial = two_magnitudes(ratio, 0.5, scale)
    actual = recovery_test(initial, dim=2, num_samples=200)
    assert actual.magnitude == pytest.approx(scale * max(ratio, 1.0), rel=1e-12)
    smaller = (min(ratio, 1.0) / max(ratio, 1.0)) ** 2
    assert actual.deviation == pytest.approx(min(smaller, 1 - smaller), rel=1e-9, abs=1e-15)
    assert actual.holds == (min(smaller, 1 - smaller) <= 1e-9)


def test_nothing_but_zeros_is_refused() -> None:
    initial = SampledStates(lambda random, count, dim: np.zeros((count, dim)), name="silent")
    with pytest.raises(ConfigError, match="'silent': gives zeros only"):
        recovery_test(initial, dim=2)


SYMMETRIC: list[InitialStates] = [
    initial_states("gaussian", scale=1e3),
    initial_states("sparse"),
    initial_states("rademacher"),
    initial_states("uniform", scale=1e-3),
    generalised_gaussian(0.5),
    two_magnitudes(0.2, 0.3),
    two_magnitudes(0.0, 0.9),
    from_distribution(scipy.stats.t(df=7)),
    SampledStates(cauchy, name="Cauchy"),
    UNIT,
    SampledStates(turned, name="turned"),  # real and imaginary parts agree, and flip together
]


@pytest.mark.parametrize("initial", SYMMETRIC, ids=lambda initial: initial.name)
@pytest.mark.parametrize("seed", range(3))
def test_symmetric_distributions_pass(initial: InitialStates, seed: int) -> None:
    actual = sign_flip_test(initial, dim=3, seed=seed)
    assert actual.invariant
    assert 0 < actual.statistic <= actual.threshold


LOPSIDED: list[tuple[InitialStates, int]] = [
    (initial_states("full_one"), 3),
    (lopsided_atoms(3), 3),
    (SampledStates(skewed, name="skewed"), 3),
    (Atoms([[1.0, 1.0], [-1.0, -1.0]], name="equal signs"), 2),
    (beyond_one_power(), 2),
]


@pytest.mark.parametrize(("initial", "dim"), LOPSIDED, ids=lambda x: getattr(x, "name", ""))
def test_other_distributions_fail(initial: InitialStates, dim: int) -> None:
    actual = sign_flip_test(initial, dim=dim)
    assert not actual.invariant
    assert actual.statistic > actual.threshold
    assert re.fullmatch(r"E( (Re |Im )?x_\d(\^\d)?)+", actual.worst)


def test_the_moment_without_a_single_power_is_found_and_named() -> None:
    actual = sign_flip_test(beyond_one_power(), dim=2)
    assert actual.worst == "E x_1^3 x_2^3"
    # E f = 9/4, and E f^2 = E x_1^6 E x_2^6 = (65/2)^2: 16384^(1/2) * 2.25 / 32.5, to one in the noise.
    assert actual.statistic == pytest.approx(128 * 2.25 / 32.5, abs=4)


def test_threshold_grows_with_the_number_of_monomials_only() -> None:
    initial = initial_states("gaussian")
    one, two = sign_flip_test(initial, dim=1), sign_flip_test(initial, dim=3)
    # Odd powers of one coordinate: x, x^3, x^5.
    assert one.threshold == pytest.approx(np.sqrt(2 * np.log(2 * 3 / 1e-6)), rel=1e-12)
    assert two.threshold > one.threshold
    assert sign_flip_test(initial, dim=1, num_samples=50).threshold == one.threshold


def test_the_sum_of_signs_is_what_is_tested() -> None:
    # All draws alike: |sum f| / sqrt(sum f^2) = sqrt(n), for every monomial.
    assert sign_flip_test(
        initial_states("full_one"), dim=2, num_samples=900
    ).statistic == pytest.approx(30)


@pytest.mark.parametrize(
    "initial",
    [initial for initial in SYMMETRIC if not isinstance(initial, SampledStates)],
    ids=lambda initial: initial.name,
)
def test_passing_distributions_have_no_off_diagonal_gradients(initial: InitialStates) -> None:
    engine = population_loss(initial, dim=3, length=8)
    _, gradient = engine.loss_and_gradient(diagonal(3, key_query=0.7, output_value=1.1))
    assert gradient.off_diagonal == 0


@pytest.mark.parametrize(
    ("initial", "dim"),
    [x for x in LOPSIDED if isinstance(x[0], Atoms)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_failing_distributions_have_off_diagonal_gradients(
    initial: InitialStates, dim: int
) -> None:
    engine = population_loss(initial, dim=dim, length=8)
    _, gradient = engine.loss_and_gradient(diagonal(dim, key_query=0.7, output_value=1.1))
    assert gradient.off_diagonal > 1e-3


SIZES = [(1, 3, 1), (3, 4, 1), (1, 3, 7), (5, 7, 2), (2, 31, 5), (7, 10, 3)]


@pytest.mark.parametrize(("count", "length", "dim"), SIZES)
@pytest.mark.parametrize("kind", ["process", "complex", "real"])
def test_the_layer_is_a_step_of_gradient_descent(
    count: int, length: int, dim: int, kind: str
) -> None:
    random = np.random.default_rng(count)
    shape = (count, length, dim)
    states = {
        "process": lambda: draw_sequences(initial_states("gaussian"), *shape),
        "complex": lambda: random.standard_normal(shape) + 1j * random.standard_normal(shape),
        "real": lambda: random.standard_normal(shape),
    }[kind]()
    # Sums of at most 30 * 14 products, in another order: 1e-13 of the largest prediction.
    assert one_step_identity(states, key_query=-0.7, output_value=1.1) < 1e-13


def test_the_identity_is_one_of_states_up_to_the_query() -> None:
    # Overwriting the last state, a target only, changes nothing; doubling the first pair's input does.
    states = draw_sequences(initial_states("gaussian"), 2, 6, 3)
    broken = states.copy()
    broken[:, -1] = 1e6
    assert one_step_identity(broken, key_query=0.7, output_value=1.1) < 1e-13


@pytest.mark.parametrize("length", [1, 2])
def test_sequences_without_a_target_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"length={length}: must be 3 or greater"):
        one_step_identity(np.ones((2, length, 2)), key_query=1.0, output_value=1.0)


def test_a_step_of_size_zero_is_the_layer_without_keys() -> None:
    states: Any = draw_sequences(initial_states("gaussian"), 2, 6, 3)
    assert one_step_identity(states, key_query=0.0, output_value=1.1) == 0.0
