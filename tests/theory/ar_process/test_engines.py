"""One contract that every engine of the loss passes: a new engine adds a Case."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from one_layer_oracle import (
    all_sequences,
    diagonal_weights,
    draw_sequences,
    in_chunks,
    layer_loss,
    lopsided_atoms,
    random_weights,
)

from mesaopt.errors import InitialisationWarning, RunError, StabilityWarning
from mesaopt.theory.ar_process import (
    ClosedForm,
    DirectLoss,
    Engine,
    QuadraticLoss,
    Trajectory,
    Weights,
    descend,
    diagonal,
    flow,
    population_loss,
    sampled_loss,
    stability_bound,
    tied_loss,
)

DIM, LENGTH = 2, 5
INITIAL = lopsided_atoms(DIM)
# Losses here are near 10, sums of at most 1e4 products of numbers up to 100, each rounded by 1.1e-16
# of itself: 1e-12 leaves a factor of ten.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def sequences() -> np.ndarray:
    return draw_sequences(INITIAL, 11, LENGTH, DIM, seed=3)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Engine]
    blocks: str
    oracle: Callable[[Weights], float]
    takes_any: bool = True
    """Weights need not be diagonal."""
    is_expected: bool = True
    """The loss is an expectation over all eigenvalues, and has their symmetries."""

    def weights(self, **settings: Any) -> Weights:
        make = random_weights if self.takes_any else diagonal_weights
        return make(DIM, self.blocks, **settings)


def expected(weights: Weights) -> float:
    states, probabilities = all_sequences(INITIAL, LENGTH)
    return layer_loss(states, weights, probabilities=probabilities)


def on_the_sample(weights: Weights) -> float:
    return layer_loss(sequences(), weights)


CASES = [
    Case(
        f"closed form {blocks}",
        lambda: ClosedForm.of(INITIAL, dim=DIM, length=LENGTH),
        blocks,
        expected,
        takes_any=False,
    )
    for blocks in ("core", "all")
]
for name in ("core", "all"):
    CASES += [
        Case(
            f"population {name}",
            lambda blocks=name: population_loss(INITIAL, dim=DIM, length=LENGTH, blocks=blocks),
            name,
            expected,
        ),
        Case(
            f"sampled {name}",
            lambda blocks=name: sampled_loss(in_chunks(sequences(), 4), blocks=blocks),
            name,
            on_the_sample,
            is_expected=False,
        ),
        Case(
            f"direct {name}",
            lambda blocks=name: DirectLoss(in_chunks(sequences(), 4), DIM, blocks),
            name,
            on_the_sample,
            is_expected=False,
        ),
    ]

every_engine = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def start_of(case: Case, a: float, b: float) -> Weights:
    return diagonal(DIM, key_query=a, output_value=b, blocks=case.blocks)


def rate(engine: Engine, start: Weights) -> float:
    # A tenth of the bound at the solution: steep directions off the diagonals are stable too.
    return stability_bound(engine, start) / 10


@every_engine
def test_it_is_an_engine_of_its_width(case: Case) -> None:
    engine = case.build()
    assert isinstance(engine, Engine)
    assert engine.dim == DIM


@every_engine
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_the_layer_run_token_by_token(case: Case, seed: int) -> None:
    weights = case.weights(seed=seed)
    loss, _ = case.build().loss_and_gradient(weights)
    np.testing.assert_allclose(loss, case.oracle(weights), **CLOSE)


@every_engine
def test_the_loss_without_weights_is_half_the_energy_of_the_targets(case: Case) -> None:
    loss, gradient = case.build().loss_and_gradient(start_of(case, 0.0, 0.0))
    np.testing.assert_allclose(loss, case.oracle(start_of(case, 0.0, 0.0)), **CLOSE)
    assert not gradient.output_value.any()
    assert not gradient.key_query.any()


@every_engine
def test_the_gradient_is_the_difference_quotient_of_the_loss(case: Case) -> None:
    engine, weights = case.build(), case.weights(seed=4)
    _, gradient = engine.loss_and_gradient(weights)
    step = 0.5  # the loss is a parabola in any one entry: central differences are exact at any step
    for name in ("output_value", "key_query"):
        actual = getattr(gradient, name)
        for place in np.ndindex(actual.shape):
            if not case.takes_any and getattr(weights, name)[place] == 0:
                assert actual[place] == 0
                continue
            for unit, part in ((1.0, actual[place].real), (1j, actual[place].imag)):
                sides = []
                for sign in (1, -1):
                    entries = {
                        side: getattr(weights, side).copy()
                        for side in ("output_value", "key_query")
                    }
                    entries[name][place] += sign * step * unit
                    sides.append(float(engine.loss_and_gradient(Weights(**entries))[0]))
                # Losses up to 100 with errors of 1e-12 of themselves, over a step of 1.
                assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(part, abs=1e-10)


@every_engine
def test_leading_axes_give_the_numbers_of_single_calls(case: Case) -> None:
    engine, weights = case.build(), case.weights(batch=(2, 3), seed=5)
    loss, gradient = engine.loss_and_gradient(weights)
    assert loss.shape == (2, 3)
    assert gradient.output_value.shape == weights.output_value.shape
    assert gradient.key_query.shape == weights.key_query.shape
    for place in np.ndindex(2, 3):
        alone = Weights(weights.output_value[place], weights.key_query[place])
        one_loss, one = engine.loss_and_gradient(alone)
        np.testing.assert_allclose(loss[place], one_loss, **CLOSE)
        np.testing.assert_allclose(gradient.output_value[place], one.output_value, **CLOSE)
        np.testing.assert_allclose(gradient.key_query[place], one.key_query, **CLOSE)


@every_engine
def test_scale_and_phase_pass_from_one_matrix_to_the_other(case: Case) -> None:
    engine, weights, factor = case.build(), case.weights(seed=6), 1.7 * np.exp(0.8j)
    moved = Weights(weights.output_value * factor, weights.key_query / factor)
    ours, theirs = (engine.loss_and_gradient(w)[0] for w in (weights, moved))
    np.testing.assert_allclose(ours, theirs, **CLOSE)


@every_engine
def test_the_eigenvalues_have_no_preferred_phase(case: Case) -> None:
    # W -> e^{i phi} W turns e_t by e^{i phi (t-1)} D with D = diag(1, e^{-i phi}), x_{t+1} by e^{i phi t}.
    turn = np.exp(0.9j)
    weights = case.weights(seed=7)
    if case.blocks == "core":
        moved = Weights(weights.output_value / turn, weights.key_query * turn)
    else:
        d = np.repeat([1.0, 1 / turn], DIM)
        moved = Weights(weights.output_value * d / turn, d.conj()[:, None] * weights.key_query * d)
    engine = case.build()
    ours, theirs = (float(engine.loss_and_gradient(w)[0]) for w in (weights, moved))
    if case.is_expected or case.blocks == "core":
        assert ours == pytest.approx(theirs, rel=1e-12)
    else:  # a symmetry of the expectation, not of eleven sequences
        assert ours != pytest.approx(theirs, rel=1e-3)


@every_engine
def test_each_coordinate_of_diagonal_weights_has_a_phase_of_its_own(case: Case) -> None:
    engine, weights = case.build(), diagonal_weights(DIM, case.blocks, seed=8)
    phases = np.exp(1j * np.array([0.4, 2.5]))
    moved = Weights(weights.output_value.copy(), weights.key_query.copy())
    moved.value_block[...] /= phases
    moved.key_block[...] *= phases
    np.testing.assert_allclose(weights.products, moved.products, **CLOSE)
    ours, theirs = (float(engine.loss_and_gradient(w)[0]) for w in (weights, moved))
    if case.is_expected:
        assert ours == pytest.approx(theirs, rel=1e-12)
    else:
        assert ours != pytest.approx(theirs, rel=1e-6)


@every_engine
def test_descent_lowers_the_loss_at_every_step(case: Case) -> None:
    engine, start = case.build(), start_of(case, 0.3, 0.5)
    run = descend(engine, start, learning_rate=rate(engine, start), steps=30)
    assert run.loss.shape == run.product.shape == run.times.shape == (31,)
    assert (np.diff(run.loss) < 0).all()
    assert run.loss[-1] < run.loss[0] - 0.1
    np.testing.assert_array_equal(run.last.output_value, run.weights.output_value[30])
    first = start.moved(engine.loss_and_gradient(start)[1], -rate(engine, start))
    np.testing.assert_array_equal(run.weights.key_query[1], first.key_query)


@every_engine
def test_the_flow_lowers_the_loss_and_is_the_limit_of_small_steps(case: Case) -> None:
    engine, start = case.build(), start_of(case, 0.3, 0.5)
    step = rate(engine, start) / 100
    steps = 200
    run = flow(engine, start, np.array([0.0, steps * step / 2, steps * step]))
    assert (np.diff(run.loss) < 0).all()
    np.testing.assert_allclose(run.weights.output_value[0], start.output_value, rtol=1e-15)
    losses = [
        descend(engine, start, learning_rate=step * n, steps=steps // n).loss[-1] for n in (2, 1)
    ]
    # Euler's error is linear in the step, so that twice the finer less the coarser has none; what is
    # left is quadratic: the steps are a thousandth of the bound, and 1e-5 leaves a factor of ten.
    assert 2 * losses[1] - losses[0] == pytest.approx(run.loss[-1], rel=1e-5)


@every_engine
def test_masked_training_keeps_the_diagonals_only(case: Case) -> None:
    engine, start = case.build(), start_of(case, 0.3, 0.5)
    run = descend(engine, start, learning_rate=rate(engine, start), steps=5, off_diagonal="masked")
    off = ~np.eye(DIM, dtype=bool)
    assert (run.weights.value_block[..., off] == 0).all()
    assert (run.weights.key_block[..., off] == 0).all()
    assert run.last.off_diagonal == 0
    free = descend(engine, start, learning_rate=rate(engine, start), steps=5)
    assert (free.last.off_diagonal > 1e-3) == case.takes_any


@every_engine
def test_layers_are_trained_side_by_side(case: Case) -> None:
    engine = case.build()
    starts = [start_of(case, 0.3, 0.5), start_of(case, 0.6, 0.2)]
    both = Weights(*(np.stack([getattr(w, name) for w in starts]) for name in NAMES))
    settings = {"learning_rate": rate(engine, both), "steps": 4}
    run = descend(engine, both, **settings)
    assert run.loss.shape == (5, 2)
    for i, start in enumerate(starts):
        alone = descend(engine, start, **settings)
        np.testing.assert_allclose(run.last.key_query[i], alone.last.key_query, **CLOSE)
        np.testing.assert_allclose(run.product[:, i], alone.product, **CLOSE)


NAMES = ("output_value", "key_query")


@every_engine
@pytest.mark.parametrize("train", ["descend", "flow"])
def test_zero_weights_are_stuck_and_said_to_be(case: Case, train: str) -> None:
    engine, start = case.build(), start_of(case, 0.0, 0.0)

    def run_it() -> Trajectory:
        if train == "descend":
            return descend(engine, start, learning_rate=1e-3, steps=3)
        return flow(engine, start, np.array([1.0]))

    with pytest.warns(InitialisationWarning, match="a0 = b0 = 0.*stuck"):
        run = run_it()
    assert not run.last.output_value.any()
    assert run.loss[-1] == run.loss[0]


@every_engine
@pytest.mark.parametrize("phase", [1.0, 1j])
def test_opposite_weights_are_said_to_end_in_the_saddle(case: Case, phase: complex) -> None:
    engine = case.build()
    start = diagonal(DIM, key_query=0.3 * phase, output_value=-0.3 / phase, blocks=case.blocks)
    with pytest.warns(InitialisationWarning, match="a0 = -b0.*saddle"):
        descend(engine, start, learning_rate=1e-3, steps=1)
    with pytest.warns(InitialisationWarning, match="a0 = -b0.*saddle"):
        flow(engine, start, np.array([1e-3]))


@every_engine
def test_a_step_past_the_bound_is_warned_of_with_the_bound(case: Case) -> None:
    engine, start = case.build(), start_of(case, 0.3, 0.5)
    bound = stability_bound(engine, start)
    with pytest.warns(StabilityWarning) as caught:
        descend(engine, start, learning_rate=1.01 * bound, steps=1)
    assert f"past {bound:.3g}" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend(engine, start, learning_rate=0.99 * bound, steps=1)


@every_engine
def test_the_tied_loss_is_the_loss_on_multiples_of_the_identity(case: Case) -> None:
    engine = case.build()
    tied = tied_loss(engine, case.blocks)
    zero = float(engine.loss_and_gradient(start_of(case, 0.0, 0.0))[0])
    for c in (-0.7, tied.optimum, 1.9):
        loss, _ = engine.loss_and_gradient(start_of(case, 1.0, c))
        parabola = DIM / 2 * (tied.curvature * c**2 - 2 * tied.slope * c)
        np.testing.assert_allclose(loss, zero + parabola, **CLOSE)


@every_engine
def test_weights_of_another_width_are_refused(case: Case) -> None:
    engine = case.build()
    for dim in (1, 3):
        with pytest.raises(ValueError, match=f"dim={dim}.*must be 2"):
            engine.loss_and_gradient(diagonal(dim, key_query=1.0, output_value=1.0))


@every_engine
def test_weights_with_other_blocks_are_refused(case: Case) -> None:
    engine, other = case.build(), "all" if case.blocks == "core" else "core"
    weights = diagonal(DIM, key_query=1.0, output_value=1.0, blocks=other)
    if case.takes_any:
        with pytest.raises(ValueError, match=f"blocks='{other}': must be 2, '{case.blocks}'"):
            engine.loss_and_gradient(weights)
    else:  # the closed form reads the two blocks it knows
        assert np.isfinite(engine.loss_and_gradient(weights)[0])


@pytest.mark.parametrize("blocks", ["core", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_refuses_weights_off_the_diagonals(blocks: str, name: str) -> None:
    weights = diagonal(DIM, key_query=1.0, output_value=1.0, blocks=blocks)
    getattr(weights, name)[..., 0, 1] = 0.1
    with pytest.raises(ValueError, match="must be diagonal for the closed form"):
        ClosedForm.of(INITIAL, dim=DIM, length=LENGTH).loss_and_gradient(weights)


@every_engine
def test_steps_that_diverge_are_an_error_that_names_the_bound(case: Case) -> None:
    engine, start = case.build(), start_of(case, 1.0, 1.0)
    diverges = pytest.raises(RunError, match=r"no longer finite; learning_rate=50 .* bound")
    with pytest.warns(StabilityWarning), diverges:
        descend(engine, start, learning_rate=50.0, steps=20)


def test_quadratic_losses_say_which_blocks_they_are_of() -> None:
    for blocks in ("core", "all"):
        engine = population_loss(INITIAL, dim=DIM, length=LENGTH, blocks=blocks)
        assert isinstance(engine, QuadraticLoss)
        assert engine.blocks == blocks
