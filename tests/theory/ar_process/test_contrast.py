import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.errors import ConfigError
from mesaopt.tasks import generalised_gaussian, initial_states
from mesaopt.theory.ar_process import (
    descent_limit,
    descent_predictions,
    mesa_predictions,
    one_step,
    unexplained,
)


def states_of(seed: int, batch: int, length: int, dim: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((batch, length, 2 * dim)).view(np.complex128)


def pairs_at(states: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """S_t and H_t of a context of t states, summed by definition."""
    inputs, targets = states[:, : t - 1], states[:, 1:t]
    cross = np.einsum("zij,zik->zjk", targets, inputs.conj())
    return cross, np.einsum("zij,zik->zjk", inputs, inputs.conj())


sizes = {"length": st.integers(3, 9), "dim": st.integers(1, 4), "seed": st.integers(0, 99)}


@given(num_steps=st.integers(1, 4), **sizes)
def test_descent_is_the_steps_taken_one_by_one(
    num_steps: int, length: int, dim: int, seed: int
) -> None:
    states = states_of(seed, 2, length, dim)
    predicted = descent_predictions(states, step_size=0.1, num_steps=num_steps)
    assert predicted.shape == (2, length - 2, dim)
    for t in range(2, length):
        cross, gram = (x / (t - 1) for x in pairs_at(states, t))
        learned = np.zeros_like(cross)
        for _ in range(num_steps):
            learned = learned + 0.1 * (cross - learned @ gram)
        wanted = np.einsum("zjk,zk->zj", learned, states[:, t - 1])
        # A few dozen roundings of numbers that the steps may enlarge tenfold.
        np.testing.assert_allclose(predicted[:, t - 2], wanted, rtol=1e-11, atol=1e-12)


@given(ridge=st.sampled_from([1e-3, 0.1, 10.0]), **sizes)
def test_the_real_operator_solves_the_complex_regression(
    ridge: float, length: int, dim: int, seed: int
) -> None:
    states = states_of(seed, 2, length, dim)
    predicted = mesa_predictions(states, ridge=ridge)
    for t in range(2, length):
        cross, gram = pairs_at(states, t)
        solved = np.linalg.solve(gram + ridge * np.eye(dim), states[:, t - 1, :, None])
        # The condition number is some 1e5 at ridge 1e-3.
        np.testing.assert_allclose(predicted[:, t - 2], (cross @ solved)[..., 0], atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "uniform", "rademacher"])
def test_one_step_has_the_limit_of_the_closed_form(name: str) -> None:
    closed = one_step(initial_states(name, scale=0.7), dim=1, length=100)
    limit = descent_limit(initial_states(name, scale=0.7), num_steps=1)
    assert limit.step_size == pytest.approx(closed.limit, rel=1e-6)
    assert limit.unexplained == pytest.approx(closed.unexplained_limit, abs=1e-12)


def test_more_steps_leave_less_and_never_nothing() -> None:
    shares = [descent_limit(generalised_gaussian(2.0), num_steps=n).unexplained for n in (1, 2, 4)]
    assert shares[0] > shares[1] > shares[2] > 0.1


def test_the_limit_is_the_best_of_its_neighbours() -> None:
    random = np.random.default_rng(0)
    square = random.uniform(0, 1, 400_000) ** 2  # of a uniform distribution
    best = descent_limit(initial_states("uniform"), num_steps=3)

    def share(step_size: float) -> float:
        return float((square * (1 - step_size * square) ** 6).mean() / square.mean())

    assert share(best.step_size) == pytest.approx(best.unexplained, rel=0.02)  # 400,000 draws
    assert share(best.step_size) < min(share(0.8 * best.step_size), share(1.2 * best.step_size))


def test_the_share_left_is_that_of_the_energy() -> None:
    states = states_of(3, 50, 6, 2)
    share, error = unexplained(lambda x: 0.5 * x[:, 2:], lambda: [states[:20], states[20:]])
    np.testing.assert_allclose(share, 0.25)
    np.testing.assert_allclose(error, 0, atol=1e-15)
    nothing, _ = unexplained(lambda x: np.zeros_like(x[:, 2:]), lambda: [states])
    np.testing.assert_allclose(nothing, 1)


def test_settings_out_of_range_are_refused() -> None:
    states = states_of(0, 1, 4, 1)
    with pytest.raises(ConfigError, match="num_steps=0: must be 1 or greater"):
        descent_predictions(states, step_size=0.1, num_steps=0)
    with pytest.raises(ConfigError, match="ridge=0.0: must be greater than 0"):
        mesa_predictions(states, ridge=0.0)
    with pytest.raises(ConfigError, match="num_steps=0: must be 1 or greater"):
        descent_limit(initial_states("gaussian"), num_steps=0)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(
    "predict",
    [mesa_predictions, lambda states: descent_predictions(states, step_size=0.1, num_steps=1)],
)
def test_sequences_without_a_pair_and_a_target_are_refused(predict, length: int) -> None:
    with pytest.raises(ConfigError, match=f"length={length}: must be 3 or greater"):
        predict(np.ones((2, length, 3)))


@pytest.mark.parametrize("name", ["gaussian", "full_one", "uniform"])
def test_more_steps_never_leave_more(name: str) -> None:
    initial = initial_states(name)
    shares = [descent_limit(initial, num_steps=steps).unexplained for steps in range(1, 11)]
    assert np.diff(shares).max() < 1e-6  # the promised precision
    assert min(shares) > -1e-6


@pytest.mark.parametrize(("name", "steps"), [("uniform", 20), ("uniform", 40), ("full_one", 30)])
def test_a_share_that_rounding_hides_is_refused(name: str, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_steps={steps}: rounding hides the share"):
        descent_limit(initial_states(name), num_steps=steps)
