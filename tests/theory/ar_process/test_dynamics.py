"""Training on the exact population: the printed learning curves, limits and shapes."""

from typing import Any

import numpy as np
import pytest
from one_layer_oracle import Atoms, beyond_one_power

from mesaopt.errors import ConfigError, InitialisationWarning, RunError, StabilityWarning
from mesaopt.tasks import initial_states
from mesaopt.theory.ar_process import (
    ClosedForm,
    LastToken,
    QuadraticLoss,
    Trajectory,
    Weights,
    descend,
    diagonal,
    flow,
    normal,
    one_step,
    population_loss,
    stability_bound,
)

SIX = 5.001e-7  # half a unit of the last digit printed
STARTS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))  # (a0, b0)
EPOCHS = [10, 25, 50, 100, 200]

# Initial states, scale, learning rate, and the product after EPOCHS from every start; dim 5, T = 100.
CURVES = {
    "gaussian 0.5": (
        ("gaussian", 0.5, 1e-3),
        (0.014313, 0.024394, 0.057961, 0.258948, 0.732561),
        (0.758126, 0.763878, 0.766830, 0.767585, 0.767620),
        (1.673921, 1.104589, 0.871131, 0.781865, 0.767951),
    ),
    "gaussian 1": (
        ("gaussian", 1.0, 1e-4),
        (0.017177, 0.036600, 0.097138, 0.183020, 0.191883),
        (0.203130, 0.191950, 0.191905, 0.191905, 0.191905),
        (0.321925, 0.228489, 0.198858, 0.192229, 0.191906),
    ),
    "gaussian 2": (
        ("gaussian", 2.0, 2e-6),
        (0.011568, 0.014220, 0.019322, 0.030415, 0.044142),
        (0.052450, 0.047980, 0.047976, 0.047976, 0.047976),
        (0.132988, 0.091940, 0.068160, 0.054160, 0.048809),
    ),
    "sparse 0.5": (
        ("sparse", 0.5, 3e-2),
        (0.020530, 0.060050, 0.340301, 3.151545, 3.999472),
        (1.545994, 2.739740, 3.760113, 3.995025, 3.999998),
        (4.0, 4.0, 4.0, 4.0, 4.0),
    ),
    "sparse 1": (
        ("sparse", 1.0, 1e-3),
        (0.014676, 0.025979, 0.065841, 0.331430, 0.963200),
        (0.850705, 0.933653, 0.983628, 0.999047, 0.999997),
        (1.967012, 1.363898, 1.108101, 1.013350, 1.000242),
    ),
    "sparse 2": (
        ("sparse", 2.0, 1e-4),
        (0.017957, 0.041032, 0.121139, 0.239657, 0.249983),
        (0.271137, 0.250245, 0.250000, 0.250000, 0.250000),
        (0.425123, 0.295175, 0.257759, 0.250295, 0.250000),
    ),
    "full-one masked": (
        ("full_one", 1.0, 5e-4),
        (0.025570, 0.098288, 0.503817, 0.822676, 0.825826),
        (0.811072, 0.824614, 0.825807, 0.825826, 0.825826),
        (1.103525, 0.871618, 0.829118, 0.825845, 0.825826),
    ),
    "full-one": (
        ("full_one", 1.0, 5e-4),
        (0.025589, 0.098527, 0.501891, 0.846213, 0.853626),
        (0.822999, 0.848551, 0.852945, 0.853569, 0.853634),
        (1.141571, 0.905960, 0.858987, 0.853752, 0.853632),
    ),
}


def all_starts(dim: int) -> Weights:
    starts = [diagonal(dim, key_query=a, output_value=b) for a, b in STARTS]
    return Weights(
        np.stack([w.output_value for w in starts]), np.stack([w.key_query for w in starts])
    )


@pytest.mark.parametrize("name", CURVES)
def test_printed_learning_curves(name: str) -> None:
    (start, scale, rate), *products = CURVES[name]
    engine = population_loss(initial_states(start, scale=scale), dim=5, length=100)
    off_diagonal = "masked" if "masked" in name else "trained"
    run = descend(engine, all_starts(5), learning_rate=rate, steps=200, off_diagonal=off_diagonal)
    np.testing.assert_allclose(run.product[EPOCHS].T, products, rtol=0, atol=SIX)
    if start == "full_one" and off_diagonal == "trained":
        shapes = np.array(SHAPES)
        for i, weights in enumerate(layers(run.last)):
            actual = (
                weights.value_block[2, 2],
                weights.value_block[1, 3],
                weights.key_block[2, 2],
                weights.key_block[1, 3],
            )
            np.testing.assert_allclose(actual, shapes[i], rtol=0, atol=5.001e-6)
    else:
        assert (run.last.off_diagonal == 0).all()
        closed = ClosedForm.of(initial_states(start, scale=scale), dim=5, length=100)
        same = descend(closed, all_starts(5), learning_rate=rate, steps=200)
        # 200 steps of which each rounds to 1e-13 at worst; the flow contracts.
        np.testing.assert_allclose(run.product, same.product, rtol=1e-11)
        np.testing.assert_allclose(run.loss, same.loss, rtol=1e-11, atol=1e-10)


# V on and off the diagonal, K on and off it, from every start after 200 epochs of full-one.
SHAPES = (
    (0.92540, -0.03040, 0.92244, -0.04850),
    (1.51956, -0.04899, 0.56176, -0.02957),
    (0.92202, -0.03029, 0.92582, -0.04868),
)


def layers(weights: Weights) -> list[Weights]:
    return [Weights(v, k) for v, k in zip(weights.output_value, weights.key_query, strict=True)]


def trained(engine: QuadraticLoss, dim: int, steps: int = 1500) -> Trajectory:
    starts = all_starts(dim)
    # The bound is one of the solution; from (2, 2) the first steps are several times steeper.
    return descend(engine, starts, learning_rate=stability_bound(engine, starts) / 8, steps=steps)


# dim, T, product, loss, mean ratio at the last token, off-diagonals over diagonals of V and K.
UNMASKED = [
    (5, 100, 0.853632, 38.17958, 0.851800, -0.032854, -0.052582),
    (5, 20, 0.664542, 17.09559, 0.651826, -0.06782, -0.08611),
    (2, 20, 0.886331, 2.36377, 0.881280, None, None),
]


@pytest.mark.parametrize(("dim", "length", "product", "loss", "ratio", "value", "key"), UNMASKED)
def test_printed_limits_of_plain_training_from_full_one(
    dim: int,
    length: int,
    product: float,
    loss: float,
    ratio: float,
    value: float | None,
    key: float | None,
) -> None:
    initial = initial_states("full_one")
    run = trained(population_loss(initial, dim=dim, length=length), dim)
    np.testing.assert_allclose(run.product[-1], np.full(3, product), rtol=0, atol=SIX)
    np.testing.assert_allclose(run.loss[-1], np.full(3, loss), rtol=0, atol=5.001e-6)
    last = population_loss(initial, dim=dim, length=length, contexts="last")
    # Targets have modulus one: prediction/target is prediction times conj(target).
    test = LastToken(last, last.cross.T)
    np.testing.assert_allclose(test.ratio(run.last), np.full(3, ratio), rtol=0, atol=SIX)
    off = ~np.eye(dim, dtype=bool)
    for weights in layers(run.last):
        for block, wanted in ((weights.value_block, value), (weights.key_block, key)):
            # (b - beta) I + beta 11^T: one number on the diagonal, one off it; symmetric steps keep it.
            assert np.ptp(np.diagonal(block)) < 1e-12
            assert np.ptp(block[off]) < 1e-12
            assert block[0, 1] / block[0, 0] < -0.01
            if wanted is not None:
                tolerance = SIX if length == 100 else 5.001e-6
                assert block[0, 1] / block[0, 0] == pytest.approx(wanted, abs=tolerance)
    masked = one_step(initial, dim=dim, length=length)
    assert product > masked.product
    assert loss < masked.minimal_loss


def test_off_diagonals_shrink_with_the_length() -> None:
    actual = []
    for length in (20, 50, 100, 200):
        engine = population_loss(initial_states("full_one"), dim=3, length=length)
        last = layers(trained(engine, 3, steps=500).last)[0]
        actual.append(last.value_block[0, 1] / last.value_block[0, 0])
    np.testing.assert_allclose(actual, (-0.102, -0.062, -0.041, -0.025), rtol=0, atol=5.01e-4)


def test_plain_training_on_rademacher_is_masked_training_on_full_one() -> None:
    plain = trained(population_loss(initial_states("rademacher"), dim=5, length=100), 5, steps=500)
    theory = one_step(initial_states("full_one"), dim=5, length=100)
    assert (plain.weights.off_diagonal == 0).all()
    # The slowest mode of 500 steps at half the bound is far below rounding.
    np.testing.assert_allclose(plain.product[-1], np.full(3, 0.825826), rtol=0, atol=SIX)
    np.testing.assert_allclose(plain.product[-1], np.full(3, theory.product), rtol=1e-10)
    np.testing.assert_allclose(plain.loss[-1], np.full(3, theory.minimal_loss), rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "uniform", "sparse"])
def test_plain_training_reaches_the_minimal_loss(name: str) -> None:
    engine = population_loss(initial_states(name), dim=3, length=20)
    run = trained(engine, 3)
    theory = one_step(initial_states(name), dim=3, length=20)
    assert (run.weights.off_diagonal == 0).all()
    np.testing.assert_allclose(run.product[-1], np.full(3, theory.product), rtol=1e-9)
    wanted = np.full(3, theory.minimal_loss)
    np.testing.assert_allclose(run.loss[-1], wanted, rtol=1e-10, atol=1e-12)


def test_one_power_at_each_index_is_not_enough_to_stay_diagonal() -> None:
    initial = beyond_one_power()
    powers = np.array([[1, 1], [1, 2], [1, 3], [1, 5], [3, 1], [5, 1], [3, 3]])
    np.testing.assert_allclose(initial.moment(powers), [0, 0, 0, 0, 0, 0, 2.25], atol=1e-14)
    engine = population_loss(initial, dim=2, length=20)
    start = diagonal(2, key_query=0.1, output_value=0.1)
    run = descend(engine, start, learning_rate=stability_bound(engine, start) / 2, steps=500)
    last = run.last
    theory = one_step(initial, dim=2, length=20)
    assert theory.product == pytest.approx(0.232075, abs=SIX)
    assert run.product[-1] == pytest.approx(0.232138, abs=SIX)
    assert last.value_block[0, 1] == pytest.approx(-0.0042, abs=5.01e-5)
    assert last.key_block[0, 1] == pytest.approx(-0.0069, abs=5.01e-5)
    assert last.value_block[0, 0] == pytest.approx(0.482, abs=5.01e-4)
    assert run.loss[-1] < theory.minimal_loss
    masked = descend(
        engine,
        start,
        learning_rate=stability_bound(engine, start) / 2,
        steps=500,
        off_diagonal="masked",
    )
    assert masked.product[-1] == pytest.approx(theory.product, rel=1e-9)


def test_the_flow_from_opposite_weights_ends_in_the_saddle() -> None:
    engine = population_loss(initial_states("gaussian"), dim=2, length=20)
    start = diagonal(2, key_query=0.3, output_value=-0.3)
    theory = one_step(initial_states("gaussian"), dim=2, length=20)
    with pytest.warns(InitialisationWarning, match="saddle"):
        run = flow(engine, start, np.array([5.0]) / theory.slope)
    assert abs(run.product[-1]) < 0.09 * np.exp(-2 * 5)
    assert run.loss[-1] > theory.minimal_loss + 1


def test_one_bad_layer_among_several_is_warned_of() -> None:
    engine = ClosedForm.of(initial_states("gaussian"), dim=2, length=20)
    both = Weights(np.stack([np.eye(2), 0 * np.eye(2)]), np.stack([np.eye(2), 0 * np.eye(2)]))
    with pytest.warns(InitialisationWarning, match="stuck"):
        descend(engine, both, learning_rate=1e-4, steps=1)


def test_a_start_with_one_matrix_of_zeros_is_no_trap() -> None:
    initial, dim = initial_states("sparse"), 3
    engine = ClosedForm.of(initial, dim=dim, length=20)
    theory = one_step(initial, dim=dim, length=20)
    run = flow(
        engine, diagonal(dim, key_query=0.0, output_value=0.5), np.array([40.0]) / theory.slope
    )
    assert run.product[-1] == pytest.approx(theory.product, rel=1e-6)


def test_random_weights_find_the_structure_in_every_gauge() -> None:
    start = normal(2, std=0.05, random=np.random.default_rng(1), count=4)
    engine = population_loss(initial_states("gaussian"), dim=2, length=20, blocks="all")
    run = descend(engine, start, learning_rate=stability_bound(engine, start) / 2, steps=1500)
    theory = one_step(initial_states("gaussian"), dim=2, length=20)
    np.testing.assert_allclose(run.loss[-1], np.full(4, theory.minimal_loss), rtol=1e-6)
    np.testing.assert_allclose(run.last.products, np.full((4, 2), theory.product), rtol=1e-3)
    signs = {tuple(np.sign(np.diagonal(w.value_block))) for w in layers(run.last)}
    assert len(signs) > 1  # each coordinate has a sign of its own


def test_masks_leave_what_is_there_already() -> None:
    engine = population_loss(initial_states("full_one"), dim=2, length=6)
    start = Weights(np.array([[1.0, 0.3], [0.0, 1.0]]), np.array([[1.0, 0.0], [-0.2, 1.0]]))
    run = descend(engine, start, learning_rate=1e-3, steps=3, off_diagonal="masked")
    assert (run.weights.value_block[:, 0, 1] == 0.3).all()
    assert (run.weights.key_block[:, 1, 0] == -0.2).all()
    assert run.product[-1] != run.product[0]
    by_flow = flow(engine, start, np.array([0.003]), off_diagonal="masked")
    np.testing.assert_array_equal(by_flow.last.value_block[0, 1], 0.3)
    np.testing.assert_allclose(by_flow.product[-1], run.product[-1], rtol=1e-3)


def test_plain_flow_leaves_the_diagonal_on_full_one() -> None:
    engine = population_loss(initial_states("full_one"), dim=3, length=20)
    run = flow(engine, diagonal(3, key_query=0.5, output_value=1.5), np.array([3.0]))
    wanted = layers(trained(engine, 3).last)[1]
    # Steps of finite size change a^2 - b^2, but neither the product nor the shape.
    assert run.product[-1] == pytest.approx(wanted.products.mean(), rel=1e-7)
    for ours, theirs in (
        (run.last.value_block, wanted.value_block),
        (run.last.key_block, wanted.key_block),
    ):
        np.testing.assert_allclose(ours / ours[0, 0], theirs / theirs[0, 0], atol=1e-7)


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int]] = []
    engine = ClosedForm.of(initial_states("sparse"), dim=2, length=6)
    descend(
        engine,
        diagonal(2, key_query=0.1, output_value=0.1),
        learning_rate=1e-3,
        steps=3,
        progress=lambda progress: calls.append((progress.done, progress.total)),
    )
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_flow_may_begin_late_or_end_at_once() -> None:
    engine = ClosedForm.of(initial_states("sparse"), dim=2, length=6)
    start = diagonal(2, key_query=0.1, output_value=0.1)
    both = flow(engine, start, np.array([0.1, 0.2]))
    late = flow(engine, start, np.array([0.2]))
    np.testing.assert_allclose(late.product[-1], both.product[-1], rtol=1e-9)
    at_once = flow(engine, start, np.array([0.0]))
    np.testing.assert_allclose(at_once.product, [0.01], rtol=1e-15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be greater than 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be greater than 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf: must be .* finite"),
        ({"steps": 0}, "steps=0: must be 1 or greater"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    engine = ClosedForm.of(initial_states("sparse"), dim=2, length=6)
    settings = {"learning_rate": 1e-3, "steps": 2} | changes
    with pytest.raises(ConfigError, match=message):
        descend(engine, diagonal(2, key_query=0.1, output_value=0.1), **settings)


def test_a_single_atom_is_learned_like_full_one() -> None:
    # x_1 = (1, -1) is (1, 1) with a flipped sign: V and K turn with it, products do not.
    flipped = population_loss(Atoms([[1.0, -1.0]]), dim=2, length=10)
    plain = population_loss(initial_states("full_one"), dim=2, length=10)
    runs = [trained(engine, 2, steps=200) for engine in (flipped, plain)]
    np.testing.assert_allclose(runs[0].product, runs[1].product, rtol=1e-12)
    off = [run.last.value_block[:, 0, 1] for run in runs]
    np.testing.assert_allclose(off[0], -off[1], rtol=1e-10)


@pytest.mark.parametrize(("name", "std", "share"), [("gaussian", 1.0, 0.5), ("sparse", 1.0, 0.95)])
def test_a_rate_below_the_bound_can_diverge_and_the_bound_is_said_to_be_local(
    name: str, std: float, share: float
) -> None:
    engine = population_loss(initial_states(name), dim=3, length=8)
    start = normal(3, std=std, random=np.random.default_rng(0), blocks="core")
    bound = stability_bound(engine, start)
    settings = {"learning_rate": share * bound, "steps": 100}
    with pytest.raises(RunError, match=f"{bound:.3g} is the bound at the solution, not on the way"):
        descend(engine, start, **settings)
    with pytest.warns(StabilityWarning, match="a local bound: a smaller step can diverge too"):
        descend(engine, start, learning_rate=1.01 * bound, steps=1)
