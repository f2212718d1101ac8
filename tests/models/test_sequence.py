from dataclasses import replace
from typing import get_args

import pytest
import torch
from compiling import run_alone
from hypothesis import given
from hypothesis import strategies as st
from slow_sequence_model import leave_the_start, slow_model

from mesaopt import recipes
from mesaopt.config import FORGETTING_MIXERS, MixerName, ModelConfig
from mesaopt.models import SequenceModel

PARAMETERS = {
    "lsa-1": 6400,
    "lsa-2": 25_600,
    "lsa-4": 51_200,
    "lsa-6": 76_800,
    "mesa-1": 12_804,
    "tf-7": 96_800,
    "hybrid-mesa": 32_804,
    "full-mesa-published": 32_804,
    "full-mesa": 32_808,  # four ridges more
    "tf-7-partial": 576_800,
    "tf-7-nonlinear": 397_200,
    "hybrid-mesa-nonlinear": 121_204,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = SequenceModel(recipes.MODELS[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", recipes.MODELS)
def test_every_published_model_runs_and_has_finite_gradients(name: str) -> None:
    config = recipes.MODELS[name]
    model = SequenceModel(config)
    y = model(torch.rand(2, 9, config.token_dim))
    assert y.shape == (2, 9, config.output_dim)
    y.square().sum().backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name


def capped(config: ModelConfig, cap: float | None) -> ModelConfig:
    """Cap forgetting where there is a mixer that forgets."""
    return replace(config, forget_cap=None if FORGETTING_MIXERS.isdisjoint(config.mixers) else cap)


uncapped_configs = st.builds(
    ModelConfig,
    mixers=st.lists(st.sampled_from(get_args(MixerName)), min_size=1, max_size=3).map(tuple),
    token_dim=st.just(6),
    output_dim=st.just(2),
    embed_dim=st.sampled_from([None, 8]),
    readout=st.sampled_from(["first_slot", "linear"]),
    num_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([None, 3]),
    positions=st.sampled_from(["none", "first_layer"]),
    unit_queries_keys=st.sampled_from(["none", "after_first"]),
    unit_queries_values=st.sampled_from(["none", "after_first"]),
    mlp_dim=st.sampled_from([None, 5]),
    initial_std=st.just(0.4),
    activation_clip=st.sampled_from([None, 1.0]),
)
configs = st.builds(capped, uncapped_configs, st.sampled_from([None, 0.9]))


@given(config=configs, seed=st.integers(0, 2**20))
def test_every_stack_computes_its_definition(config: ModelConfig, seed: int) -> None:
    model = SequenceModel(config, seed=seed).double()
    random = torch.Generator().manual_seed(seed)
    leave_the_start(model, random)
    tokens = torch.randn(2, 9, 6, generator=random, dtype=torch.float64)
    found = model(tokens)
    wanted = [torch.from_numpy(slow_model(config, model, each.numpy())) for each in tokens]
    # float64, three layers, condition numbers below 1e4 and values of 1 to 1e3.
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-9, atol=1e-9)


@given(config=configs, cut=st.integers(1, 8))
def test_predictions_do_not_depend_on_what_comes_later(config: ModelConfig, cut: int) -> None:
    model = SequenceModel(config).double()
    tokens = torch.randn(2, 9, 6, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, cut:] += 1
    torch.testing.assert_close(model(changed)[:, :cut], model(tokens)[:, :cut])


def test_positions_reach_queries_and_keys_of_the_first_layer_alone() -> None:
    config = ModelConfig(mixers=("softmax_attention",) * 2, positions="first_layer")
    first, second = SequenceModel(config).mixers
    shapes = {name: tuple(p.shape) for name, p in first.named_parameters()}
    assert shapes["query.weight"] == shapes["key.weight"] == (80, 80)
    assert shapes["value.weight"] == (80, 40)
    assert all(tuple(p.shape) == (80, 40) for n, p in second.named_parameters() if "out" not in n)


def test_positions_know_no_longest_sequence_and_change_equal_tokens() -> None:
    config = ModelConfig(positions="first_layer", initial_std=0.3, activation_clip=None)
    model = SequenceModel(replace(config, mixers=("softmax_attention",)))
    same = torch.ones(1, 1000, 40)
    inputs = model.mixers[0].head_inputs(same)
    for x in (inputs.q, inputs.k):
        assert (x[:, 1:] - x[:, :1]).abs().amax((0, 2, 3)).min() > 0.1, "every place is another"
    assert (inputs.v == inputs.v[:, :1]).all()
    assert model(same).isfinite().all()


def test_weights_are_a_pure_function_of_the_seed() -> None:
    config = ModelConfig(mixers=("linear_attention", "mesa"))
    first, second = (SequenceModel(config, seed=3).state_dict() for _ in range(2))
    other = SequenceModel(config, seed=4).state_dict()
    for name in first:
        assert torch.equal(first[name], second[name])
        if "inverse_ridge" not in name:
            assert not torch.isin(first[name], other[name]).any()
            # 3200 draws: the standard error of their deviation is 1.3 %.
            assert abs(first[name].std().item() / config.initial_std - 1) < 0.05
    assert (first["blocks.1.mixer.inverse_ridge"] == 1).all()


def test_the_residual_stream_is_clipped_after_every_layer() -> None:
    config = ModelConfig(mixers=("linear_attention",) * 2, activation_clip=0.5, initial_std=10.0)
    model = SequenceModel(config)
    tokens = torch.randn(2, 7, 40)
    seen = []
    model.mixers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = model(tokens)
    for x in (seen[0], out):
        assert x.abs().max() == 0.5
    free = SequenceModel(replace(config, activation_clip=None))(tokens)
    assert free.abs().max() > 0.5


def test_the_first_slot_is_read() -> None:
    model = SequenceModel(ModelConfig(activation_clip=None))
    for weight in model.parameters():
        weight.data.zero_()
    tokens = torch.randn(2, 7, 40)
    assert torch.equal(model(tokens), tokens[..., :10])


def test_input_and_output_layers() -> None:
    model = SequenceModel(ModelConfig(token_dim=10, embed_dim=24, readout="linear", head_dim=6))
    assert model.embedding.weight.shape == (24, 10)
    assert model.readout.weight.shape == (10, 24)
    assert model(torch.randn(2, 7, 10)).shape == (2, 7, 10)


COMPILE = """
import torch
from compiling import check_lengths
from mesaopt import recipes
from mesaopt.models import SequenceModel

config = recipes.MODELS["hybrid-mesa"]
model = SequenceModel(config).double()
check_lengths(
    model,
    lambda length: [torch.randn(2, length, config.token_dim, dtype=torch.float64)],
    # Two layers with systems of condition numbers below 1e3.
    lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10),
    list(model.parameters()),
)
"""


@pytest.mark.slow
def test_a_model_compiles_once_for_all_lengths() -> None:
    run_alone(COMPILE)
