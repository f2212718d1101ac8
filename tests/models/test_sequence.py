from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt import recipes
from mesaopt.config import MixerName, ModelConfig
from mesaopt.layers import MesaLayer
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


def slow_attention(
    mixer: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, inverse_ridge: float
) -> np.ndarray:
    """One head of one sequence, [time, key] and [time, value], by the definitions."""
    outputs = np.zeros_like(v)
    for t in range(len(q)):
        past_k, past_v = k[: t + 1], v[: t + 1]
        if mixer == "linear_attention":
            weights = past_k @ q[t]
        elif mixer == "softmax_attention":
            weights = np.exp(past_k @ q[t] / np.sqrt(q.shape[1]))
            weights /= weights.sum()
        else:
            gram = past_k.T @ past_k + np.eye(q.shape[1]) / inverse_ridge
            weights = past_k @ np.linalg.solve(gram, q[t])
        outputs[t] = weights @ past_v
    return outputs


def slow_positions(length: int, width: int) -> np.ndarray:
    table = np.zeros((length, width))
    for t in range(length):
        for i in range(width // 2):
            angle = t / 10_000 ** (2 * i / width)
            table[t, 2 * i], table[t, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def slow_gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def slow_model(config: ModelConfig, model: SequenceModel, tokens: np.ndarray) -> np.ndarray:
    """A sequence [time, token] through the model, with loops and in NumPy."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = tokens if config.embed_dim is None else tokens @ w["embedding.weight"].T
    for layer, mixer in enumerate(config.mixers):
        placed = x
        if layer == 0 and config.positions == "first_layer":
            placed = np.concatenate([x, slow_positions(*x.shape)], axis=1)
        inputs = {"query": placed, "key": placed, "value": x}
        q, k, v = (inputs[n] @ w[f"blocks.{layer}.mixer.{n}.weight"].T for n in inputs)
        heads = []
        for h, columns in enumerate(np.split(np.arange(q.shape[1]), config.num_heads)):
            a, b = q[:, columns], k[:, columns]
            if layer > 0 and config.unit_queries_keys == "after_first":
                a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
            ridge = w[f"blocks.{layer}.mixer.inverse_ridge"][h] if mixer == "mesa" else 1.0
            heads.append(slow_attention(mixer, a, b, v[:, columns], ridge))
        x = x + np.concatenate(heads, axis=1) @ w[f"blocks.{layer}.mixer.output.weight"].T
        if config.mlp_dim is not None:
            hidden = slow_gelu(x @ w[f"blocks.{layer}.mlp.0.weight"].T)
            x = x + hidden @ w[f"blocks.{layer}.mlp.2.weight"].T
        if config.activation_clip is not None:
            x = np.clip(x, -config.activation_clip, config.activation_clip)
    if config.readout == "linear":
        return x @ w["readout.weight"].T
    return x[:, : config.output_dim]


configs = st.builds(
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
    mlp_dim=st.sampled_from([None, 5]),
    initial_std=st.just(0.4),
    activation_clip=st.sampled_from([None, 1.0]),
)


@given(config=configs, seed=st.integers(0, 2**20))
def test_every_stack_computes_its_definition(config: ModelConfig, seed: int) -> None:
    model = SequenceModel(config, seed=seed).double()
    random = torch.Generator().manual_seed(seed)
    for mixer in model.mixers:
        if isinstance(mixer, MesaLayer):  # another ridge for every head
            mixer.inverse_ridge.data.uniform_(0.5, 2.0, generator=random)
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
    query, key = (model.mixers[0]._read(same, None)[0][i] for i in (0, 1))
    for x in (query, key):
        assert (x[:, 1:] - x[:, :1]).abs().amax((0, 2, 3)).min() > 0.1, "every place is another"
    values = model.mixers[0]._read(same, None)[0].v
    assert (values == values[:, :1]).all()
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
