from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import FewShotConfig
from mesaopt.errors import ConfigError
from mesaopt.tasks import FewShot

TRIPLES = FewShotConfig(dim=3, length=20, layout="triples", prefix_length=4)


@st.composite
def configs(draw: st.DrawFn) -> FewShotConfig:
    length = draw(st.integers(1, 30))
    config = FewShotConfig(
        dim=draw(st.integers(1, 4)),
        length=length,
        layout=draw(st.sampled_from(["pairs", "triples"])),
        prefix_length=draw(st.integers(0, length - 1)),
        noise_std=0.0,
    )
    if config.num_pairs < 2:
        return config
    switch_after = draw(st.none() | st.integers(1, config.num_pairs - 1))
    return replace(config, switch_after=switch_after)


@given(config=configs())
def test_every_scored_token_is_an_input_and_its_target_the_answer(config: FewShotConfig) -> None:
    batch = FewShot(config).sample(3, seed=0, dtype=torch.float64)
    assert len(batch.positions) == config.num_pairs
    assert batch.positions[0] == config.prefix_length + 1
    inputs, answers = batch.tokens[:, batch.scored], batch.targets[:, batch.scored]
    switch = config.switch_after or config.num_pairs
    for matrix, part in (
        (batch.transition, slice(0, switch)),
        (batch.later_transition, slice(switch, None)),
    ):
        expected = inputs[:, part] @ matrix.mT
        torch.testing.assert_close(answers[:, part], expected, atol=1e-14, rtol=0)
    same = (batch.transition == batch.later_transition).all()
    # Of dimension 1 there are two orthogonal matrices, which may be equal by chance.
    assert same == (config.switch_after is None) or config.dim == 1


@given(config=configs())
def test_places_kept_free_hold_zeros_until_they_are_filled(config: FewShotConfig) -> None:
    task = FewShot(config)
    batch = task.sample(3, seed=0)
    free = torch.zeros(config.length + 1, dtype=torch.bool)
    free[task.prefix_places] = True
    free[task.separator_places] = True
    assert torch.equal((batch.states == 0).all(-1), free.expand(3, -1))
    prefix, separator = torch.ones(config.prefix_length, config.dim), 2 * torch.ones(config.dim)
    triples = config.layout == "triples"
    filled = task.fill(batch, prefix=prefix, separator=separator if triples else None)
    assert (filled.states[:, task.prefix_places] == 1).all()
    assert (filled.states[:, task.separator_places] == 2).all()
    assert torch.equal(filled.states[:, ~free], batch.states[:, ~free])
    assert torch.equal(filled.tokens, filled.states[:, :-1])
    assert torch.equal(filled.targets, filled.states[:, 1:])
    assert filled.positions == batch.positions
    assert (batch.states[:, free] == 0).all(), "the batch itself is as it was"


def test_the_published_lengths_fill_224_tokens_exactly() -> None:
    for config, num_pairs in (
        (FewShotConfig(), 112),
        (FewShotConfig(layout="triples"), 75),
        (FewShotConfig(layout="triples", prefix_length=20), 68),
    ):
        assert config.num_pairs == num_pairs
        assert FewShot(config).sample(2, seed=0).tokens.shape == (2, 224, 10)


def test_one_seed_makes_the_same_pairs_in_every_layout() -> None:
    layouts = [
        FewShotConfig(length=40),
        FewShotConfig(length=40, layout="triples"),
        FewShotConfig(length=40, layout="triples", prefix_length=7),
        FewShotConfig(length=40, prefix_length=7),
    ]
    batches = [FewShot(config).sample(3, seed=5) for config in layouts]
    plain = batches[0]
    for batch in batches[1:]:
        pairs = len(batch.positions)
        assert torch.equal(batch.tokens[:, batch.scored], plain.tokens[:, plain.scored][:, :pairs])
        assert torch.equal(
            batch.targets[:, batch.scored], plain.targets[:, plain.scored][:, :pairs]
        )
    switched = FewShot(replace(layouts[0], switch_after=6)).sample(3, seed=5)
    assert torch.equal(switched.tokens[:, :12], plain.tokens[:, :12])
    assert torch.equal(switched.tokens[:, 12::2], plain.tokens[:, 12::2])
    assert not torch.isin(switched.tokens[:, 13::2], plain.tokens[:, 13::2]).any()


def test_the_distributions_of_inputs_and_noise() -> None:
    batch = FewShot(FewShotConfig(length=20)).sample(2000, seed=0, dtype=torch.float64)
    inputs, answers = batch.tokens[:, 0::2], batch.tokens[:, 1::2]
    noise = answers - inputs @ batch.transition.mT
    assert inputs.abs().max() <= 1
    normal = FewShot(FewShotConfig(length=20, inputs="normal")).sample(2000, seed=0)
    for x, variance in ((inputs, 1 / 3), (noise, 1e-4), (normal.tokens[:, 0::2], 1.0)):
        square = x.square()
        # Five standard errors; all entries are independent.
        assert abs(square.mean() - variance) < 5 * square.std() / square.numel() ** 0.5
    # Noise is independent in every sequence: products across sequences average to zero.
    across = noise[0::2] * noise[1::2]
    assert abs(across.mean()) < 5 * across.std() / across.numel() ** 0.5


def test_gradients_reach_the_vectors() -> None:
    task = FewShot(TRIPLES)
    separator = torch.zeros(3, requires_grad=True)
    prefix = torch.zeros(4, 3, requires_grad=True)
    tokens = task.fill(task.sample(2, seed=0), separator=separator, prefix=prefix).tokens
    tokens.sum().backward()
    # Five separators among 16 tokens behind the prefix, in two sequences.
    assert separator.grad.tolist() == [10.0] * 3
    assert (prefix.grad == 2).all()


@pytest.mark.parametrize(
    ("config", "vectors", "message"),
    [
        (TRIPLES, {"separator": torch.zeros(2)}, r"separator has shape \(2,\): must be \(3,\)"),
        (TRIPLES, {"prefix": torch.zeros(5, 3)}, r"prefix has shape \(5, 3\): must be \(4, 3\)"),
        (
            FewShotConfig(dim=3, length=9),
            {"separator": torch.zeros(3)},
            "separator: must not be given for layout='pairs'",
        ),
        (
            FewShotConfig(dim=3, length=9),
            {"prefix": torch.zeros(1, 3)},
            r"prefix has shape \(1, 3\): must be \(0, 3\)",
        ),
    ],
)
def test_vectors_without_room_are_refused(config: FewShotConfig, vectors, message: str) -> None:
    task = FewShot(config)
    with pytest.raises(ValueError, match=message):
        task.fill(task.sample(2, seed=0), **vectors)


@pytest.mark.parametrize("switch_after", [0, 112, -1])
def test_a_switch_lies_between_two_pairs(switch_after: int) -> None:
    with pytest.raises(
        ConfigError, match=f"switch_after={switch_after}: must be between 1 and 111"
    ):
        FewShotConfig(switch_after=switch_after)


def test_noise_is_not_made_of_the_numbers_of_the_inputs() -> None:
    config = FewShotConfig(dim=3, length=40, inputs="normal", noise_std=1.0)
    batch = FewShot(config).sample(200, seed=0, dtype=torch.float64)
    inputs, answers = batch.tokens[:, batch.scored], batch.targets[:, batch.scored]
    noise = answers - inputs @ batch.transition.mT
    pair = torch.stack([noise.flatten(), inputs.flatten()])
    # The correlation of n independent pairs has a standard error of 1 / sqrt(n).
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / noise.numel() ** 0.5
