import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.theory import gradient_descent, ridge_least_squares


def sequence(length: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, dim))


@given(
    length=st.integers(1, 8),
    dim=st.integers(1, 4),
    steps=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_gradient_descent_is_the_explicit_loop(
    length: int, dim: int, steps: int, seed: int
) -> None:
    s, phi_0 = sequence(length, dim, seed), sequence(dim, dim, seed + 1)
    ours = gradient_descent(
        torch.from_numpy(s)[None],
        step_size=0.03,
        num_steps=steps,
        initial_map=torch.from_numpy(phi_0),
    )[0]
    for t in range(length):
        phi = phi_0.copy()
        for _ in range(steps):
            pairs = zip(s[:t], s[1 : t + 1], strict=True)
            phi -= 0.03 * sum((np.outer(phi @ x - y, x) for x, y in pairs), np.zeros((dim, dim)))
        np.testing.assert_allclose(ours[t].numpy(), phi @ s[t], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("pairs", "dropped"), [("all", 0), ("official", 1)])
def test_least_squares_is_scipy_on_the_prefix(pairs: str, dropped: int) -> None:
    s = sequence(9, 3, 0)
    ours = ridge_least_squares(torch.from_numpy(s)[None], ridge=0.1, pairs=pairs)[0].numpy()
    for t in range(9):
        known = max(t - dropped, 0)
        inputs = np.vstack([s[:known], np.sqrt(0.1) * np.eye(3)])  # ridge as three more pairs
        targets = np.vstack([s[1 : known + 1], np.zeros((3, 3))])
        phi = scipy.linalg.lstsq(inputs, targets)[0].T
        np.testing.assert_allclose(ours[t], phi @ s[t], rtol=1e-9, atol=1e-11)


def complex_sequence(length: int, dim: int, seed: int) -> np.ndarray:
    return sequence(length, dim, seed) + 1j * sequence(length, dim, seed + 1000)


@given(length=st.integers(1, 8), dim=st.integers(1, 4), seed=st.integers(0, 99))
def test_complex_gradient_descent_is_the_explicit_loop(length: int, dim: int, seed: int) -> None:
    s, phi_0 = complex_sequence(length, dim, seed), complex_sequence(dim, dim, seed + 1)
    start = {"step_size": 0.03, "num_steps": 2, "initial_map": torch.from_numpy(phi_0)}
    ours = {
        objective: gradient_descent(torch.from_numpy(s)[None], objective=objective, **start)[0]
        for objective in ("sum", "mean")
    }
    for t in range(length):
        for objective, step_size in (("sum", 0.03), ("mean", 0.03 / max(t, 1))):
            phi = phi_0.copy()
            for _ in range(2):
                pairs = zip(s[:t], s[1 : t + 1], strict=True)
                slopes = (np.outer(phi @ x - y, x.conj()) for x, y in pairs)
                phi -= step_size * sum(slopes, np.zeros((dim, dim)))
            found = ours[objective][t].numpy()
            np.testing.assert_allclose(found, phi @ s[t], rtol=1e-10, atol=1e-12)


def test_complex_least_squares_is_scipy_on_the_prefix() -> None:
    s = complex_sequence(9, 3, 0)
    ours = ridge_least_squares(torch.from_numpy(s)[None], ridge=0.1)[0].numpy()
    for t in range(9):
        inputs = np.vstack([s[:t], np.sqrt(0.1) * np.eye(3)])  # ridge as three more pairs
        targets = np.vstack([s[1 : t + 1], np.zeros((3, 3))])
        phi = scipy.linalg.lstsq(inputs, targets)[0].T
        np.testing.assert_allclose(ours[t], phi @ s[t], rtol=1e-9, atol=1e-11)
    single = torch.from_numpy(s)[None].to(torch.complex64)
    in_double = ridge_least_squares(single.to(torch.complex128))
    assert torch.equal(ridge_least_squares(single), in_double.to(torch.complex64))


def test_the_official_baseline_knows_nothing_at_position_two() -> None:
    s = torch.from_numpy(sequence(4, 2, 0))[None]
    assert (ridge_least_squares(s, pairs="official")[0, :2] == 0).all()
    assert (ridge_least_squares(s)[0, 1] != 0).all()


def test_float32_is_solved_in_float64() -> None:
    s = torch.from_numpy(sequence(30, 5, 0))[None].float()
    in_double = ridge_least_squares(s.double(), ridge=1e-3)
    assert torch.equal(ridge_least_squares(s, ridge=1e-3), in_double.float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: gradient_descent(s, step_size=0.0), "step_size=0.0"),
        (lambda s: gradient_descent(s, step_size=0.1, num_steps=0), "num_steps=0"),
        (lambda s: ridge_least_squares(s, ridge=0.0), "ridge=0.0: must be greater than 0"),
    ],
)
def test_values_out_of_range_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 3, 2))
