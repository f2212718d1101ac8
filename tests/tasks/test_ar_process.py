import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import ARProcessConfig, LinearSystemConfig
from mesaopt.errors import ConfigError
from mesaopt.tasks import ARProcess, Batch, LinearSystem, SampledStates, initial_states, make_task

TASK = ARProcess(ARProcessConfig(dim=3, length=7))


def test_a_batch_is_a_pure_function_of_seed_step_and_split() -> None:
    first = TASK.sample(4, seed=3, step=5)
    TASK.sample(7, seed=1)  # nothing is carried from one call to the next
    assert torch.equal(first.tokens, TASK.sample(4, seed=3, step=5).tokens)
    for other in (
        TASK.sample(4, seed=4, step=5),
        TASK.sample(4, seed=3, step=6),
        TASK.sample(4, seed=3, step=5, split="test"),
        TASK.sample(4, seed=3, step=5, split="validation"),
    ):
        assert not torch.isin(first.states.real, other.states.real).any()
        assert not torch.isin(first.transition.real, other.transition.real).diagonal(0, 1, 2).any()


@given(small=st.integers(1, 600), large=st.integers(1, 600), chunk_size=st.integers(1, 700))
def test_a_stream_depends_neither_on_its_length_nor_on_the_chunks(
    small: int, large: int, chunk_size: int
) -> None:
    small, large = min(small, large), max(small, large)
    whole = TASK.sample(large, seed=2, step=1, dtype=torch.complex128).states
    part = TASK.sample(small, seed=2, step=1, dtype=torch.complex128).states
    assert torch.equal(whole[:small], part)
    chunks = list(TASK.chunks(large, seed=2, step=1, chunk_size=chunk_size))
    assert torch.equal(torch.cat(chunks), whole)
    assert all(len(chunk) <= min(chunk_size, 256) for chunk in chunks)


def test_a_stream_holds_no_more_than_it_gives() -> None:
    drawn = []

    def start(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        drawn.append(count)
        return random.standard_normal((count, dim))

    chunks = ARProcess(ARProcessConfig(dim=2, length=3), start=start).chunks(10_000, seed=0)
    next(chunks)
    assert sum(drawn) == 256


@given(
    dim=st.integers(1, 5), length=st.integers(3, 12), start=st.sampled_from(["gaussian", "sparse"])
)
def test_states_follow_the_process(dim: int, length: int, start: str) -> None:
    task = ARProcess(ARProcessConfig(dim=dim, length=length, start=start))
    batch = task.sample(4, seed=1, dtype=torch.complex128)
    assert batch.states.shape == (4, length, dim)
    assert (batch.states[:, 0].imag == 0).all()
    turned = torch.einsum("bij,btj->bti", batch.transition, batch.states[:, :-1])
    # Angles up to 2 pi * 11 are rounded to 1e-14, and states are of order 3.
    torch.testing.assert_close(turned, batch.states[:, 1:], rtol=0, atol=2e-13)
    eigenvalues = batch.transition.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(eigenvalues.abs(), torch.ones(4, dim, dtype=torch.float64))
    assert torch.equal(batch.transition, torch.diag_embed(eigenvalues))


def test_tokens_targets_and_the_scored_positions() -> None:
    batch = TASK.sample(2, seed=0)
    states = batch.states
    assert torch.equal(batch.targets, states[:, 1:])
    assert torch.equal(batch.observed, states[:, :-1])
    assert batch.tokens.shape == (2, 6, 6)
    assert torch.equal(batch.tokens[:, 2], torch.cat([states[:, 2], states[:, 1]], dim=-1))
    assert (batch.tokens[:, 0, 3:] == 0).all(), "x_0 = 0"
    assert batch.positions == range(2, 7), "t = 2 ... T - 1"
    losses = batch.losses(torch.zeros_like(batch.targets))
    torch.testing.assert_close(losses, states[:, 2:].abs().square().sum(-1) / 2)


def test_the_papers_tokens_have_a_zero_in_front() -> None:
    config = ARProcessConfig(dim=3, length=7, token_slots=("zero", "current", "previous"))
    tokens = ARProcess(config).sample(2, seed=0).tokens
    assert (tokens[..., :3] == 0).all()
    assert torch.equal(tokens[..., 3:], TASK.sample(2, seed=0).tokens)


def test_complex64_is_the_complex128_batch_rounded() -> None:
    single, double = (TASK.sample(4, seed=0, dtype=d) for d in (torch.complex64, torch.complex128))
    assert single.states.dtype == single.transition.dtype == torch.complex64
    assert torch.equal(single.tokens, double.tokens.to(torch.complex64))
    assert torch.equal(TASK.sample(4, seed=0).tokens, single.tokens)


def test_the_distributions_of_start_and_eigenvalues() -> None:
    count, config = 20_000, ARProcessConfig(dim=2, length=3, start="uniform", start_scale=2.0)
    batch = ARProcess(config).sample(count, seed=0, dtype=torch.complex128)
    start = batch.states[:, 0].real
    assert start.abs().max() <= 2
    # The variance of a square is 16 (1/5 - 1/9); five standard errors over 40,000 draws.
    assert abs(start.square().mean().item() - 4 / 3) < 5 * (16 * 4 / 45 / (2 * count)) ** 0.5
    eigenvalues = batch.transition.diagonal(dim1=1, dim2=2)
    for power in (1, 2, 3):  # real and imaginary parts have variance 1/2
        mean = (eigenvalues**power).mean()
        assert torch.view_as_real(mean).abs().max() < 5 * (0.5 / (2 * count)) ** 0.5
    products = (eigenvalues[:, 0] * eigenvalues[:, 1].conj()).mean()
    assert torch.view_as_real(products).abs().max() < 5 * (0.5 / count) ** 0.5, "independent"
    across = (start[:, 0] * eigenvalues[:, 0].real).mean().abs()
    assert across < 5 * (4 / 3 / 2 / count) ** 0.5, "x_1 does not depend on W"


@pytest.mark.parametrize(
    ("start", "scale", "second_moment"),
    [("full_one", 1.0, 1.0), ("gaussian", 0.5, 0.25), ("sparse", 2.0, 4 / 5), ("rademacher", 1, 1)],
)
def test_predicting_zero_costs_half_the_second_moments(
    start: str, scale: float, second_moment: float
) -> None:
    task = ARProcess(ARProcessConfig(start=start, start_scale=scale))
    batch = task.sample(4000, seed=0)
    total = batch.losses(torch.zeros_like(batch.targets)).sum(1)
    assert total.shape == (4000,)
    expected = 98 * 5 / 2 * second_moment  # T - 2 predictions of d coordinates
    # Sums of 490 rounded squares of float32, besides the sampling error.
    bound = 5 * total.std().item() / 4000**0.5 + 1e-5 * expected
    assert abs(total.mean().item() - expected) < bound


def test_a_distribution_or_a_sampler_of_ones_own_goes_in() -> None:
    def threes(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        return np.full((count, dim), 3.0 + 1.0j)

    config = ARProcessConfig(dim=3, length=7)
    for start in (threes, SampledStates(threes)):
        batch = ARProcess(config, start=start).sample(5, seed=0)
        assert (batch.states[:, 0] == 3 + 1j).all()
    twice = ARProcess(config, start=initial_states("full_one", scale=2.0)).sample(5, seed=0)
    assert (twice.states[:, 0] == 2).all()
    wrong = ARProcess(config, start=lambda random, count, dim: np.ones((count, dim - 1)))
    with pytest.raises(ConfigError, match=r"the sampler returned shape .*: must be"):
        wrong.sample(5, seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TASK.sample(0, seed=0), "batch_size=0: must be 1 or greater"),
        (lambda: TASK.chunks(0, seed=0), "num_sequences=0: must be 1 or greater"),
        (lambda: TASK.chunks(5, seed=0, chunk_size=0), "chunk_size=0: must be 1 or greater"),
        (
            lambda: TASK.sample(2, seed=0, dtype=torch.float32),
            "dtype=torch.float32: must be torch.c",
        ),
        (lambda: TASK.sample(2, seed=-1), "seed=-1: must be between 0"),
        (lambda: TASK.chunks(2, seed=0, step=-1), "step=-1: must be between 0"),
    ],
)
def test_values_out_of_range_are_refused_at_the_call(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_settings_make_their_task() -> None:
    assert isinstance(make_task(ARProcessConfig()), ARProcess)
    assert isinstance(make_task(LinearSystemConfig()), LinearSystem)


@given(size=st.integers(1, 12))
def test_the_parts_of_a_batch_are_the_batch(size: int) -> None:
    batch = TASK.sample(10, seed=0)
    parts = list(batch.split(size))
    for name in ("tokens", "targets", "states", "transition"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert all(part.positions == batch.positions for part in parts)


def test_any_slice_can_say_what_is_scored() -> None:
    x = torch.arange(6.0).view(1, 6, 1)
    batch = Batch(x, x, torch.zeros(1, 7, 1), torch.zeros(1, 1, 1), scored=slice(1, None, 2))
    assert list(batch.positions) == [2, 4, 6]
    assert batch.losses(torch.zeros_like(x)).tolist() == [[0.5, 4.5, 12.5]]
    everywhere = Batch(x, x, torch.zeros(1, 7, 1), torch.zeros(1, 1, 1))
    assert everywhere.positions == range(1, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_batch() -> None:
    on_gpu = TASK.sample(4, seed=3, step=5, device="cuda")
    assert torch.equal(on_gpu.tokens.cpu(), TASK.sample(4, seed=3, step=5).tokens)


def test_shapes_are_checked_while_testing() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        TASK.sample(2, seed=0).losses(torch.zeros(2, 3))
