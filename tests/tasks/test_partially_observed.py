import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import PartiallyObservedConfig, stacked
from mesaopt.tasks import (
    PartiallyObserved,
    PartiallyObservedBatch,
    generator,
    make_task,
    squared_error,
    tokens_from_states,
)
from mesaopt.theory import ridge_least_squares


@given(dim=st.integers(1, 4), hidden_dim=st.integers(1, 6), clip=st.sampled_from([0.3, 10.0]))
def test_observations_follow_the_hidden_states(dim: int, hidden_dim: int, clip: float) -> None:
    config = PartiallyObservedConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        length=6,
        noise_std=0.0,
        observation_noise_std=0.0,
        state_clip=clip,
    )
    batch = PartiallyObserved(config).sample(3, seed=1, dtype=torch.float64)
    turned = (batch.hidden[:, :-1] @ batch.transition.mT).clamp(-clip, clip)
    # Sums of at most 6 products of numbers of order 1.
    torch.testing.assert_close(batch.hidden[:, 1:], turned, atol=1e-14, rtol=0)
    torch.testing.assert_close(
        batch.states, batch.hidden @ batch.observation.mT, atol=1e-14, rtol=0
    )
    assert batch.hidden.shape == (3, 7, hidden_dim)
    assert batch.transition.shape == (3, hidden_dim, hidden_dim)
    assert batch.observation.shape == (3, dim, hidden_dim)


def test_the_distributions_of_matrices_start_and_noise() -> None:
    count = 2000
    batch = make_task(PartiallyObservedConfig()).sample(count, seed=0, dtype=torch.float64)
    assert isinstance(batch, PartiallyObservedBatch)
    identity = torch.eye(15, dtype=torch.float64).expand(count, 15, 15)
    # Each entry is a sum of 15 products of numbers below 1, each rounded to 1.1e-16.
    torch.testing.assert_close(batch.transition @ batch.transition.mT, identity, atol=1e-14, rtol=0)
    start, noise = batch.hidden[:, 0], batch.states - batch.hidden @ batch.observation.mT
    assert start.abs().max() <= 1
    for x, variance in ((batch.observation, 0.25), (noise, 1e-4), (start, 1 / 3)):
        square = x.square()
        # Five standard errors; entries are independent.
        bound = 5 * square.std() / square.numel() ** 0.5
        assert abs(square.mean() - variance) < bound
    # Noise is not made of the numbers that the matrices are made of.
    first_numbers = generator(0, "partially_observed/train").standard_normal(noise.numel())
    pair = torch.stack([noise.transpose(0, 1).flatten(), torch.from_numpy(first_numbers)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / noise.numel() ** 0.5
    # Noise is not shared between sequences, positions or coordinates.
    assert len(noise.round(decimals=12).unique()) > 0.99 * noise.numel()


def test_one_observation_is_not_enough_and_three_are() -> None:
    config = PartiallyObservedConfig(noise_std=0.0, observation_noise_std=0.0)
    batch = PartiallyObserved(config).sample(20, seed=0, dtype=torch.float64)

    def last_loss(tokens: torch.Tensor) -> float:
        prediction = ridge_least_squares(tokens, ridge=1e-9)[..., :5]
        return squared_error(prediction, batch.targets[:, 2:])[:, -1].mean().item()

    # hidden_dim / dim = 3: a linear map takes three observations to the next one, and nothing is noisy.
    assert last_loss(tokens_from_states(batch.observed, stacked(3))[:, 2:]) < 1e-8
    assert last_loss(batch.observed[:, 2:]) > 0.1


def test_shapes_are_checked_while_testing() -> None:
    batch = PartiallyObserved(PartiallyObservedConfig(length=3)).sample(2, seed=0)
    with pytest.raises(jaxtyping.TypeCheckError):
        PartiallyObservedBatch(
            batch.tokens,
            batch.targets,
            batch.states,
            batch.transition,
            hidden=batch.hidden,
            observation=batch.observation.mT,
        )


def test_the_noises_of_states_and_of_observations_have_sizes_of_their_own() -> None:
    config = PartiallyObservedConfig(noise_std=0.02, observation_noise_std=0.3)
    batch = PartiallyObserved(config).sample(500, seed=0, dtype=torch.float64)
    hidden = batch.hidden[:, 1:] - batch.hidden[:, :-1] @ batch.transition.mT
    observed = batch.states - batch.hidden @ batch.observation.mT
    for noise, size in ((hidden, 0.02), (observed, 0.3)):
        # Five standard errors of the deviation of n normal numbers, 1 / sqrt(2 n) of it.
        assert noise.std().item() == pytest.approx(size, rel=5 / (2 * noise.numel()) ** 0.5)
