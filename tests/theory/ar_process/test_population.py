"""The exact engine against the average over every sequence there is, and against the closed form."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer_oracle import (
    Atoms,
    all_sequences,
    beyond_one_power,
    diagonal_weights,
    finite_twin,
    layer_loss,
    lopsided_atoms,
    random_weights,
)

from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates, generalised_gaussian, initial_states, two_magnitudes
from mesaopt.theory.ar_process import (
    ClosedForm,
    QuadraticLoss,
    diagonal,
    one_step,
    population_loss,
    tied_loss,
)

NAMES = ("full_one", "gaussian", "sparse", "rademacher", "uniform")
every_block = pytest.mark.parametrize("blocks", ["core", "all"])
every_context = pytest.mark.parametrize("contexts", ["all", "last"])


def compare(
    initial: InitialStates, twin: Atoms, length: int, blocks: str, contexts: str, seed: int = 0
) -> None:
    engine = population_loss(initial, dim=twin.dim, length=length, blocks=blocks, contexts=contexts)
    weights = random_weights(twin.dim, blocks, seed=seed)
    states, probabilities = all_sequences(twin, length)
    wanted = layer_loss(states, weights, contexts=contexts, probabilities=probabilities)
    # A mean of up to 1e5 losses, all positive: pairwise sums of them keep 1e-14 of themselves.
    assert float(engine.loss_and_gradient(weights)[0]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@every_block
@every_context
@pytest.mark.parametrize(("dim", "length"), [(1, 6), (2, 3), (2, 4), (2, 5)])
def test_it_is_the_average_over_all_sequences(
    name: str, blocks: str, contexts: str, dim: int, length: int
) -> None:
    initial, twin = initial_states(name, scale=0.8), finite_twin(name, dim, 0.8)
    compare(initial, twin, length, blocks, contexts)


@pytest.mark.parametrize("name", ["full_one", "sparse", "rademacher"])
@every_block
def test_it_is_the_average_over_all_sequences_in_three_dimensions(name: str, blocks: str) -> None:
    compare(initial_states(name), finite_twin(name, 3, 1.0), 4, blocks, "all", seed=1)


@pytest.mark.parametrize(
    "initial", [lopsided_atoms(2), beyond_one_power()], ids=lambda initial: initial.name
)
@every_block
@every_context
def test_distributions_without_symmetry_are_the_average_too(
    initial: Atoms, blocks: str, contexts: str
) -> None:
    compare(initial, initial, 5, blocks, contexts, seed=2)


@pytest.mark.parametrize("name", ["full_one", "lopsided"])
@every_block
def test_longer_sequences_are_the_average_too(name: str, blocks: str) -> None:
    twin = lopsided_atoms(2) if name == "lopsided" else finite_twin(name, 2, 1.0)
    compare(twin, twin, 9, blocks, "all", seed=3)


def test_the_average_can_tell_wrong_weights_of_contexts() -> None:
    """Check the oracle itself: a context that is counted twice changes its loss."""
    twin = finite_twin("rademacher", 2, 1.0)
    weights = random_weights(2)
    losses = [
        float(population_loss(twin, dim=2, length=n).loss_and_gradient(weights)[0]) for n in (4, 5)
    ]
    last = population_loss(twin, dim=2, length=5, contexts="last").loss_and_gradient(weights)[0]
    assert float(last) == pytest.approx(losses[1] - losses[0], rel=1e-12)


@every_block
def test_contexts_add_up(blocks: str) -> None:
    initial, weights = lopsided_atoms(2), random_weights(2, blocks)
    parts = [
        population_loss(initial, dim=2, length=n, blocks=blocks, contexts="last")
        for n in range(3, 9)
    ]
    whole = population_loss(initial, dim=2, length=8, blocks=blocks)
    total = sum(float(part.loss_and_gradient(weights)[0]) for part in parts)
    assert float(whole.loss_and_gradient(weights)[0]) == pytest.approx(total, rel=1e-13)


def test_all_blocks_hold_the_core() -> None:
    for initial in (initial_states("full_one"), lopsided_atoms(3)):
        core = population_loss(initial, dim=3, length=7)
        every = population_loss(initial, dim=3, length=7, blocks="all")
        weights = random_weights(3, batch=(4,))
        loss, gradient = core.loss_and_gradient(weights)
        whole_loss, whole = every.loss_and_gradient(weights.embedded())
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-12)
        np.testing.assert_allclose(whole.value_block, gradient.output_value, atol=1e-11)
        np.testing.assert_allclose(whole.key_block, gradient.key_query, atol=1e-11)


@pytest.mark.parametrize("name", ["full_one", "gaussian", "lopsided"])
def test_other_blocks_get_no_gradient_whatever_the_distribution(name: str) -> None:
    initial = lopsided_atoms(3) if name == "lopsided" else initial_states(name)
    engine = population_loss(initial, dim=3, length=9, blocks="all")
    gradient = engine.loss_and_gradient(random_weights(3).embedded())[1]
    assert np.abs(gradient.key_block).max() > 0.1
    gradient.value_block[...] = gradient.key_block[...] = 0
    assert not gradient.output_value.any()
    assert not gradient.key_query.any()


def test_statistics_are_those_of_a_norm() -> None:
    engine = population_loss(lopsided_atoms(2), dim=2, length=6, blocks="all")
    np.testing.assert_allclose(engine.gram, engine.gram.conj().T, atol=1e-13)
    values = np.linalg.eigvalsh(engine.gram)
    assert values.min() > -1e-13 * values.max()


scales = st.floats(0.3, 3)
distributions = st.one_of(
    st.builds(
        lambda name, scale: initial_states(name, scale=scale), st.sampled_from(NAMES), scales
    ),
    st.builds(generalised_gaussian, st.floats(0.7, 6), scales),
    st.builds(two_magnitudes, st.floats(0, 3), st.floats(0, 1), scales),
)


def agree(initial: InitialStates, dim: int, length: int, engine: QuadraticLoss, seed: int) -> None:
    closed = ClosedForm.of(initial, dim=dim, length=length)
    weights = diagonal_weights(dim, seed=seed)
    loss, gradient = closed.loss_and_gradient(weights)
    exact_loss, exact = engine.loss_and_gradient(weights)
    # Relative to the largest of the terms that cancel: all are sums of at most 1e5 rounded products.
    zero = float(closed.loss_and_gradient(diagonal(dim, key_query=0.0, output_value=0.0))[0])
    assert abs(loss - exact_loss) <= 1e-12 * (abs(float(loss)) + zero)
    masked = exact.masked()
    for ours, theirs in (
        (gradient.output_value, masked.output_value),
        (gradient.key_query, masked.key_query),
    ):
        terms = np.abs(weights.products).max() * closed.moments.sixth.max() * length * dim
        terms += closed.moments.fourth.max() * length
        assert np.abs(ours - theirs).max() <= 1e-12 * terms
    ours, theirs = tied_loss(closed), tied_loss(engine)
    assert ours.curvature == pytest.approx(theirs.curvature, rel=1e-12)
    assert ours.slope == pytest.approx(theirs.slope, rel=1e-12)
    assert ours.optimum == pytest.approx(theirs.optimum, rel=1e-12)


@settings(max_examples=60)
@given(
    initial=distributions, dim=st.integers(1, 5), length=st.integers(3, 30), seed=st.integers(0, 99)
)
def test_the_closed_form_is_exact(initial: InitialStates, dim: int, length: int, seed: int) -> None:
    engine = population_loss(initial, dim=dim, length=length)
    agree(initial, dim, length, engine, seed)
    theory = one_step(initial, dim=dim, length=length)
    assert tied_loss(engine).optimum == pytest.approx(theory.product, rel=1e-12)
    assert tied_loss(engine).curvature == pytest.approx(theory.curvature, rel=1e-12)
    one = np.sqrt(theory.product)
    best = float(engine.loss_and_gradient(diagonal(dim, key_query=one, output_value=one))[0])
    assert best == pytest.approx(theory.minimal_loss, rel=1e-11, abs=1e-12 * engine.energy)
    last = population_loss(initial, dim=dim, length=length, contexts="last")
    at_last = float(last.loss_and_gradient(diagonal(dim, key_query=one, output_value=one))[0])
    wanted = theory.position_loss(length - 1)
    assert at_last == pytest.approx(wanted, rel=1e-11, abs=1e-12 * engine.energy)


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_is_exact_at_the_length_of_the_paper(name: str) -> None:
    initial = initial_states(name)
    agree(initial, 5, 100, population_loss(initial, dim=5, length=100), seed=1)


@pytest.mark.parametrize(("dim", "length"), [(1, 12), (2, 3), (3, 10), (4, 7)])
def test_the_closed_form_is_exact_for_coordinates_that_differ(dim: int, length: int) -> None:
    initial = lopsided_atoms(dim)
    agree(initial, dim, length, population_loss(initial, dim=dim, length=length), seed=2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 2}, "length=2: must be 3 or greater"),
        ({"length": 0}, "length=0: must be 3 or greater"),
        ({"dim": 0}, "dim=0: must be 1 or greater"),
    ],
)
@pytest.mark.parametrize("build", [population_loss, one_step, ClosedForm.of])
def test_sizes_out_of_range_are_refused(build: Any, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(initial_states("gaussian"), **({"dim": 2, "length": 5} | sizes))
