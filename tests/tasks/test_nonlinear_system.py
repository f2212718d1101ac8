import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import NonlinearSystemConfig
from mesaopt.tasks import NonlinearSystem

TASK = NonlinearSystem(NonlinearSystemConfig())


@given(dim=st.integers(1, 6), hidden_dim=st.integers(1, 9), rule=st.sampled_from(["l2", "none"]))
def test_states_follow_the_teacher_and_the_rotation(dim: int, hidden_dim: int, rule: str) -> None:
    config = NonlinearSystemConfig(
        dim=dim, hidden_dim=hidden_dim, length=4, noise_std=0.0, normalisation=rule
    )
    task = NonlinearSystem(config)
    batch = task.sample(3, seed=1, dtype=torch.float64)
    turned = task.features(batch.observed) @ batch.transition.mT
    # Sums of at most 9 products; raw states grow, so the tolerance is relative to the largest one.
    scale = batch.states.abs().amax().clamp(min=1).item()
    torch.testing.assert_close(batch.targets, turned, atol=1e-14 * scale, rtol=0)


def test_the_teacher_is_a_network_of_one_hidden_layer() -> None:
    states = torch.linspace(-2, 2, 30, dtype=torch.float64).view(3, 10)
    hidden = torch.nn.functional.gelu(states @ torch.from_numpy(TASK._first).T, approximate="tanh")
    # Forty products of numbers up to 20, computed in another order.
    torch.testing.assert_close(
        TASK.teacher(states), hidden @ torch.from_numpy(TASK._second).T, atol=1e-12, rtol=0
    )


def test_features_are_the_teacher_over_its_norm_or_the_teacher_itself() -> None:
    states = torch.linspace(-2, 2, 30).view(3, 10)
    out = TASK.teacher(states.double())
    unit = out / out.norm(dim=-1, keepdim=True)
    assert TASK.features(states).dtype == torch.float32
    # A rounding to float32 of numbers below 1.
    torch.testing.assert_close(TASK.features(states).double(), unit, atol=6e-8, rtol=0)
    raw = NonlinearSystem(NonlinearSystemConfig(normalisation="none"))
    assert torch.equal(raw.features(states), TASK.teacher(states))


def test_the_teacher_is_one_for_all_seeds_and_another_for_another_teacher_seed() -> None:
    states = torch.ones(10)
    assert torch.equal(NonlinearSystem(TASK.config).teacher(states), TASK.teacher(states))
    other = NonlinearSystem(NonlinearSystemConfig(teacher_seed=1))
    assert not torch.isin(other.teacher(states), TASK.teacher(states)).any()
    small = NonlinearSystem(NonlinearSystemConfig(teacher_std=0.11))
    weights = torch.cat([torch.from_numpy(w).flatten() for w in (TASK._first, TASK._second)])
    # The standard error of the standard deviation of 800 normal numbers is 1 / sqrt(1600) of it.
    assert abs(weights.std().item() / 1.1 - 1) < 5 / 40
    assert torch.equal(torch.from_numpy(small._first) * 10, torch.from_numpy(small._first * 10))
    assert abs(small._first / TASK._first - 0.1).max() < 1e-15


def test_the_distribution_of_the_first_state() -> None:
    start = TASK.sample(2000, seed=0, dtype=torch.float64).states[:, 0]
    assert start.abs().max() <= 0.25
    square = start.square()
    assert abs(square.mean() - 0.25**2 / 3) < 5 * square.std() / square.numel() ** 0.5
    config = NonlinearSystemConfig(start="normal")
    square = NonlinearSystem(config).sample(2000, seed=0).states[:, 0].square()
    assert abs(square.mean() - 1) < 5 * square.std() / square.numel() ** 0.5


def test_states_that_outgrow_the_type_are_refused() -> None:
    task = NonlinearSystem(NonlinearSystemConfig(normalisation="none"))
    assert task.sample(2, seed=0, dtype=torch.float64).states.abs().max() > 1e40
    with pytest.raises(ValueError, match=r"dtype=torch.float32: states outgrow it in length=50"):
        task.sample(2, seed=0)
