"""The closed form: its printed numbers, its scaling, and distributions whose coordinates differ."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_layer_oracle import Atoms, independent_atoms, lopsided_atoms

from mesaopt.errors import ConfigError
from mesaopt.tasks import SampledStates, generalised_gaussian, initial_states, two_magnitudes
from mesaopt.theory.ar_process import (
    ClosedForm,
    OneStep,
    descend,
    diagonal,
    harmonic,
    off_diagonal_gradients,
    one_step,
    population_loss,
    stability_bound,
)

SIX, FOUR = 5.001e-7, 5.001e-5  # half a unit of the last digit printed


@pytest.mark.parametrize(("length", "mean"), [(20, 0.194173), (100, 0.052727), (1000, 0.007498)])
def test_harmonic_numbers(length: int, mean: float) -> None:
    assert harmonic(length) / (length - 2) == pytest.approx(mean, abs=SIX)


# dim, T; full-one: product, minimal loss, half the squared error at the last context; Gaussian: the same.
TABLE = [
    (2, 20, (0.837400, 2.9268, 0.06540), (0.192523, 7.6037, 0.40702)),
    (5, 20, (0.562844, 19.6720, 0.65376), (0.173109, 21.6302, 1.07706)),
    (2, 100, (0.949914, 4.9085, 0.01172), (0.197913, 39.8136, 0.40126)),
    (5, 100, (0.825826, 42.6727, 0.14543), (0.191905, 103.9498, 1.01373)),
    (5, 1000, (0.970880, 72.6555, 0.01156), (0.198807, 1006.9266, 1.00124)),
]


@pytest.mark.parametrize(("dim", "length", "full_one", "gaussian"), TABLE)
def test_printed_optima(dim: int, length: int, full_one: tuple, gaussian: tuple) -> None:
    for name, wanted in (("full_one", full_one), ("gaussian", gaussian)):
        theory = one_step(initial_states(name), dim=dim, length=length)
        product, loss, last = wanted
        assert theory.product == pytest.approx(product, abs=SIX)
        assert theory.minimal_loss == pytest.approx(loss, abs=FOUR)
        assert theory.position_loss(length - 1) == pytest.approx(last, abs=5.001e-6)
    sparse = one_step(initial_states("sparse"), dim=dim, length=length)
    assert sparse.product == pytest.approx(1.0, rel=1e-15)
    assert sparse.minimal_loss == pytest.approx(0.0, abs=1e-13)
    assert sparse.position_loss(length - 1) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("scale", "product", "loss"), [(0.5, 0.767620, 25.9874), (2.0, 0.047976, 415.799)]
)
def test_printed_optima_at_other_scales(scale: float, product: float, loss: float) -> None:
    theory = one_step(initial_states("gaussian", scale=scale), dim=5, length=100)
    assert theory.product == pytest.approx(product, abs=SIX)
    assert theory.minimal_loss == pytest.approx(loss, abs=5.001e-4 if scale == 2 else FOUR)


LENGTHS = (10, 20, 50, 100, 200, 500, 1000)


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("gaussian", (0.157259, 0.173109, 0.186165, 0.191905, 0.195368, 0.197842, 0.198807)),
        ("full_one", (0.423921, 0.562844, 0.729093, 0.825826, 0.894018, 0.948291, 0.970880)),
    ],
)
def test_printed_products_over_lengths(name: str, products: tuple[float, ...]) -> None:
    actual = [one_step(initial_states(name), dim=5, length=length).product for length in LENGTHS]
    np.testing.assert_allclose(actual, products, rtol=0, atol=SIX)


def test_printed_initial_losses() -> None:
    for name, wanted in (("gaussian", 230.683), ("sparse", 48.025), ("full_one", 240.130)):
        theory = one_step(initial_states(name), dim=5, length=100)
        assert theory.loss(0.1 * 0.1) == pytest.approx(wanted, abs=5.001e-4)
        start = diagonal(5, key_query=0.1, output_value=0.1)
        engine = ClosedForm.of(initial_states(name), dim=5, length=100)
        assert float(engine.loss_and_gradient(start)[0]) == pytest.approx(
            theory.loss(0.1 * 0.1), rel=1e-14
        )


def test_limits_over_long_contexts() -> None:
    gaussian = one_step(initial_states("gaussian", scale=2.0), dim=5, length=100)
    assert gaussian.limit == pytest.approx(1 / (5 * 4), rel=1e-15)
    assert gaussian.unexplained_limit == pytest.approx(0.4, rel=1e-14)
    assert one_step(initial_states("uniform", scale=2.0), dim=3, length=9).limit == pytest.approx(
        7 / (5 * 4), rel=1e-14
    )
    assert one_step(initial_states("uniform"), dim=3, length=9).unexplained_limit == pytest.approx(
        0.16, rel=1e-13
    )
    for name in ("sparse", "rademacher", "full_one"):
        theory = one_step(initial_states(name, scale=0.5), dim=4, length=9)
        assert theory.limit == pytest.approx(4.0, rel=1e-15)
        assert theory.unexplained_limit == pytest.approx(0.0, abs=1e-15)
    for name in ("gaussian", "uniform", "full_one", "sparse"):
        near = one_step(initial_states(name), dim=5, length=10**5)
        # Off by the factor 1 + (k3/k2) H/(T-2) = 1 + 4 * 1.2e-4 at most.
        assert near.product == pytest.approx(near.limit, rel=6e-4)


def test_the_mean_ratio_is_not_the_regression_slope() -> None:
    theory = one_step(initial_states("gaussian", scale=3.0), dim=5, length=100)
    assert theory.ratio == pytest.approx(0.191905, abs=SIX)  # s^2 (ab)*, towards 1/5
    assert theory.regression_slope == pytest.approx(0.5757, abs=5.001e-5)  # towards 3/5


names = st.sampled_from(("gaussian", "sparse", "full_one", "uniform", "rademacher"))


@given(name=names, scale=st.floats(0.2, 4), dim=st.integers(1, 6), length=st.integers(3, 60))
def test_products_scale_as_minus_two_and_losses_as_two(
    name: str, scale: float, dim: int, length: int
) -> None:
    unit = one_step(initial_states(name), dim=dim, length=length)
    scaled = one_step(initial_states(name, scale=scale), dim=dim, length=length)
    # A dozen roundings; the loss is a difference that may vanish.
    assert scaled.product == pytest.approx(unit.product / scale**2, rel=1e-14)
    wanted = unit.minimal_loss * scale**2
    assert scaled.minimal_loss == pytest.approx(wanted, rel=1e-12, abs=1e-13 * length * scale**2)
    assert scaled.ratio == pytest.approx(unit.ratio, rel=1e-14)
    assert scaled.unexplained == pytest.approx(unit.unexplained, rel=1e-12, abs=1e-14)


@given(
    shape=st.floats(0.6, 8),
    dim=st.integers(1, 5),
    length=st.integers(3, 50),
    product=st.floats(-2, 2),
)
def test_the_loss_is_the_sum_of_its_positions_and_least_at_the_product(
    shape: float, dim: int, length: int, product: float
) -> None:
    theory = one_step(generalised_gaussian(shape), dim=dim, length=length)
    positions = theory.position_loss(np.arange(2, length), product)
    assert theory.loss(product) == pytest.approx(float(np.sum(positions)), rel=1e-12)
    assert theory.loss(theory.product) == pytest.approx(theory.minimal_loss, rel=1e-11)
    gap = dim / 2 * theory.curvature * (product - theory.product) ** 2
    assert theory.loss(product) - theory.minimal_loss == pytest.approx(
        gap, rel=1e-9, abs=1e-12 * theory.loss(product)
    )
    energy = dim / 2 * (length - 2) * theory.k0
    assert theory.minimal_loss == pytest.approx(energy * theory.unexplained, rel=1e-11)


def test_rademacher_has_the_theory_of_full_one() -> None:
    ours, theirs = (
        one_step(initial_states(name), dim=5, length=100) for name in ("rademacher", "full_one")
    )
    assert ours == theirs


def test_a_complex_distribution_of_unit_modulus_has_the_theory_of_full_one() -> None:
    roots = np.exp(2j * np.pi * np.arange(3) / 3)
    theory = one_step(independent_atoms(roots, np.full(3, 1 / 3), 3), dim=3, length=20)
    wanted = one_step(initial_states("full_one"), dim=3, length=20)
    assert theory.product == pytest.approx(wanted.product, rel=1e-13)
    assert theory.minimal_loss == pytest.approx(wanted.minimal_loss, rel=1e-13)


def test_a_distribution_known_by_samples_has_a_theory() -> None:
    initial = SampledStates(
        lambda random, count, dim: random.standard_normal((count, dim)), num_samples=2**18
    )
    actual = one_step(initial, dim=2, length=20).product
    # The sixth moment of a coordinate is found to sqrt(10395 / 225) / 2^9 = 1.3 %, of two to 0.9 %.
    exact = one_step(initial_states("gaussian"), dim=2, length=20).product
    assert actual == pytest.approx(exact, rel=0.03)
    assert actual != exact


def different_scales(dim: int = 3) -> Atoms:
    atoms = independent_atoms([1.0, -1.0, 0.5, -0.5], np.full(4, 0.25), dim).atoms
    return Atoms(atoms * np.linspace(0.8, 1.2, dim), name="different scales")


def test_one_step_refuses_coordinates_that_differ() -> None:
    with pytest.raises(
        ConfigError, match="'different scales': its fourth moments are .* ClosedForm"
    ):
        one_step(different_scales(), dim=3, length=9)


def test_one_step_refuses_coordinates_that_differ_a_little() -> None:
    atoms = independent_atoms([1.0, -1.0], [0.5, 0.5], 2).atoms
    initial = Atoms(atoms * [1.0, 1.0001], name="nearly alike")
    with pytest.raises(ConfigError, match="'nearly alike': its fourth moments"):
        one_step(initial, dim=2, length=9)


def test_one_step_looks_at_both_sums_of_mixed_moments() -> None:
    # Rows of E x_j^2 x_r^4 add up alike while columns do not, with the same fourth and sixth moments.
    initial = Atoms(np.eye(3), name="rows alone")
    even = ClosedForm.of(initial, dim=3, length=9).moments

    class Mixed(Atoms):
        def moment(self, powers: np.ndarray, conjugate_powers: np.ndarray | None = None):
            total = powers if conjugate_powers is None else powers + conjugate_powers
            mixed = np.zeros(total.shape[:-1])
            rows = np.array(
                [[0, 0.2, 0.1], [0.3, 0, 0.0], [0.3, 0.0, 0]]
            )  # sums .3; columns .6 .2 .1
            for j in range(3):
                for r in range(3):
                    mixed = np.where((total[..., j] == 2) & (total[..., r] == 4), rows[j, r], mixed)
            return np.where(
                (total > 0).sum(-1) == 1, super().moment(powers, conjugate_powers), mixed
            )

    assert even.mixed.sum() == 0
    with pytest.raises(ConfigError, match="its mixed moments are .* ClosedForm"):
        one_step(Mixed(np.eye(3), name="rows alone"), dim=3, length=9)


def test_training_the_closed_form_solves_coordinates_that_differ() -> None:
    initial = different_scales()
    closed = ClosedForm.of(initial, dim=3, length=9)
    exact = population_loss(initial, dim=3, length=9)
    start = diagonal(3, key_query=0.4, output_value=0.6)
    rate = stability_bound(closed, start) / 5
    ours, theirs = (
        descend(engine, start, learning_rate=rate, steps=1000) for engine in (closed, exact)
    )
    # Two runs that round differently and both contract: some hundred roundings.
    np.testing.assert_allclose(ours.last.products, theirs.last.products, rtol=1e-11)
    assert theirs.last.off_diagonal < 1e-12
    assert np.ptp(ours.last.products) > 0.2  # not a multiple of the identity
    _, gradient = closed.loss_and_gradient(ours.last)
    assert np.abs(gradient.output_value).max() < 1e-9
    tied = [
        float(closed.loss_and_gradient(diagonal(3, key_query=1.0, output_value=c))[0])
        for c in np.linspace(0, 3, 301)
    ]
    assert ours.loss[-1] < min(tied) - 0.05


@given(
    dim=st.integers(2, 4),
    length=st.integers(3, 15),
    a=st.floats(-2, 2),
    b=st.floats(-2, 2),
)
def test_off_diagonal_gradients_are_those_of_the_population(
    dim: int, length: int, a: float, b: float
) -> None:
    value, key = off_diagonal_gradients(dim=dim, length=length, key_query=a, output_value=b)
    engine = population_loss(initial_states("full_one"), dim=dim, length=length)
    _, gradient = engine.loss_and_gradient(diagonal(dim, key_query=a, output_value=b))
    off = ~np.eye(dim, dtype=bool)
    # Terms up to 8 * 8 * (2 H + 2 H2) = 700 with roundings of 1e-16 in a sum of 64.
    np.testing.assert_allclose(gradient.output_value[off], value, rtol=0, atol=1e-11)
    np.testing.assert_allclose(gradient.key_query[off], key, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("dim", "length", "value", "key"), [(5, 100, 2.785162, 7.223343), (2, 20, 1.883863, 2.076094)]
)
def test_printed_off_diagonal_gradients(dim: int, length: int, value: float, key: float) -> None:
    actual = off_diagonal_gradients(dim=dim, length=length, key_query=0.7, output_value=1.1)
    np.testing.assert_allclose(actual, (value, key), rtol=0, atol=SIX)


@pytest.mark.parametrize("name", ["gaussian", "sparse", "rademacher", "uniform"])
def test_symmetric_distributions_have_no_off_diagonal_gradients(name: str) -> None:
    engine = population_loss(initial_states(name), dim=5, length=100)
    _, gradient = engine.loss_and_gradient(diagonal(5, key_query=0.7, output_value=1.1))
    for entries in (gradient.output_value, gradient.key_query):
        assert (entries[~np.eye(5, dtype=bool)] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 1}, "dim=1: must be 2 or greater"),
        ({"dim": 0}, "dim=0: must be 1 or greater"),
        ({"length": 2}, "length=2: must be 3 or greater"),
    ],
)
def test_off_diagonals_of_one_coordinate_are_refused(sizes: dict, message: str) -> None:
    settings = {"dim": 3, "length": 5, "key_query": 1.0, "output_value": 1.0} | sizes
    with pytest.raises(ConfigError, match=message):
        off_diagonal_gradients(**settings)


def test_a_closed_form_needs_no_symmetry() -> None:
    # Its own masked training agrees with masked training on the population, where plain training does not.
    initial = lopsided_atoms(2)
    closed, exact = (build(initial, dim=2, length=6) for build in (ClosedForm.of, population_loss))
    start = diagonal(2, key_query=0.4, output_value=0.6)
    settings = {"learning_rate": stability_bound(closed, start) / 5, "steps": 50}
    ours = descend(closed, start, **settings)
    masked = descend(exact, start, **settings, off_diagonal="masked")
    plain = descend(exact, start, **settings)
    np.testing.assert_allclose(ours.loss, masked.loss, rtol=1e-12)
    assert plain.loss[-1] < masked.loss[-1] - 1e-3


def test_two_magnitudes_interpolate_between_recovery_and_none() -> None:
    # |x| in {0, 1} or {1} leaves nothing unexplained; anything between leaves something.
    left = [
        one_step(two_magnitudes(r, 0.5), dim=3, length=20).unexplained_limit for r in (0, 0.5, 1)
    ]
    assert left[0] == pytest.approx(0.0, abs=1e-15)
    assert left[2] == pytest.approx(0.0, abs=1e-15)
    # k0, k1, k2 = 5/8, 17/32, 65/128.
    assert left[1] == pytest.approx(1 - (17 / 32) ** 2 / (5 / 8 * 65 / 128), rel=1e-13)


def test_theories_are_values() -> None:
    theory = OneStep(dim=2, length=4, k0=1.0, k1=1.0, k2=1.0, k3=1.0)
    assert theory.curvature == 2 + harmonic(4)
    assert math.isclose(theory.product, 2 / 3.5)
