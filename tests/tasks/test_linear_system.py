import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import LinearSystemConfig
from mesaopt.tasks import LinearSystem, squared_error, tokens_from_states


@given(
    dim=st.integers(1, 7),
    length=st.integers(1, 9),
    clip=st.sampled_from([0.3, 10.0]),
    transition=st.sampled_from(["orthogonal", "contracting", "fixed"]),
)
def test_states_follow_the_system(dim: int, length: int, clip: float, transition: str) -> None:
    config = LinearSystemConfig(
        dim=dim, length=length, noise_std=0.0, state_clip=clip, transition=transition
    )
    batch = LinearSystem(config).sample(3, seed=1, dtype=torch.float64)
    assert batch.states.shape == (3, length + 1, dim)
    for t in range(length):
        after = torch.einsum("bij,bj->bi", batch.transition, batch.states[:, t])
        # Contracting matrices of seed 1 have entries up to a few hundred: so many more roundings.
        tolerance = 1e-14 * max(1.0, batch.transition.abs().max().item())
        torch.testing.assert_close(
            batch.states[:, t + 1], after.clamp(-clip, clip), atol=tolerance, rtol=0
        )
    assert torch.equal(batch.targets, batch.states[:, 1:])
    assert torch.equal(batch.observed, batch.states[:, :-1])


def test_the_distributions_of_start_and_noise() -> None:
    task = LinearSystem(LinearSystemConfig(length=2))
    batch = task.sample(4000, seed=0, dtype=torch.float64)
    start = batch.states[:, 0]
    assert start.abs().max() <= 1
    assert start.min() < -0.99
    assert start.max() > 0.99
    # 40,000 draws: the standard error of a uniform variance of 1/3 is 0.0015.
    assert abs(start.var().item() - 1 / 3) < 0.006
    noise = batch.states[:, 1] - torch.einsum("bij,bj->bi", batch.transition, start)
    assert abs(noise.std().item() / 0.01 - 1) < 0.015  # the standard error is 0.0035
    normal = LinearSystem(LinearSystemConfig(start="normal")).sample(4000, seed=0).states[:, 0]
    assert abs(normal.var().item() - 1) < 0.03  # the standard error is 0.007


def test_predicting_zero_costs_what_was_published() -> None:
    batch = LinearSystem(LinearSystemConfig()).sample(10_000, seed=0, split="test")
    loss = squared_error(torch.zeros_like(batch.targets), batch.targets)
    # 10 coordinates of variance 1/3, halved, plus 10 * 0.01^2 / 2 for every step of noise; the standard
    # error over 10,000 sequences is 0.0047.
    steps = torch.arange(1, 51)
    torch.testing.assert_close(loss.mean(0), 10 / 6 + 5e-4 * steps, atol=0.02, rtol=0)
    assert 1.66 < loss.mean().item() < 1.70


def test_tokens_are_slots_side_by_side() -> None:
    states = torch.arange(1.0, 7.0).view(1, 3, 2)
    tokens = tokens_from_states(states, ("zero", "current", "current", "previous"))
    expected = [[0, 0, 1, 2, 1, 2, 0, 0], [0, 0, 3, 4, 3, 4, 1, 2], [0, 0, 5, 6, 5, 6, 3, 4]]
    assert tokens[0].tolist() == expected


@given(slots=st.lists(st.sampled_from(["zero", "current", "previous", 2, 3, 9]), min_size=1))
def test_a_slot_shows_the_state_so_many_steps_back(slots: list) -> None:
    states = torch.arange(1.0, 11.0).view(1, 5, 2)
    tokens = tokens_from_states(states, tuple(slots)).view(5, len(slots), 2)
    for place, slot in enumerate(slots):
        delay = {"zero": 5, "current": 0, "previous": 1}.get(slot, slot)
        for t in range(5):
            expected = states[0, t - delay] if t >= delay else torch.zeros(2)
            assert torch.equal(tokens[t, place], expected)


def test_one_matrix_for_all_sequences_of_all_seeds() -> None:
    config = LinearSystemConfig(transition="fixed", teacher_seed=5)
    first, second = (LinearSystem(config).sample(3, seed=seed).transition for seed in (0, 1))
    assert torch.equal(first, second)
    assert (first == first[:1]).all()
    # Each entry is a sum of 10 products, rounded to float32.
    torch.testing.assert_close(first[0] @ first[0].T, torch.eye(10), atol=1e-6, rtol=0)
    other = LinearSystem(LinearSystemConfig(transition="fixed")).sample(1, seed=0).transition
    assert not torch.isin(first, other).any()


def test_shapes_are_checked_while_testing() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        tokens_from_states(torch.zeros(3, 2), ("current",))
