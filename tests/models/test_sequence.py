from dataclasses import replace

import pytest
import torch

from mesaopt import recipes
from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel


@pytest.mark.parametrize(
    ("recipe", "parameters"), [("lsa-1", 6400), ("lsa-2-notebook", 25_600), ("mesa-1", 12_804)]
)
def test_parameter_counts_are_the_published_ones(recipe: str, parameters: int) -> None:
    model = SequenceModel(recipes.get(recipe).model)
    assert sum(p.numel() for p in model.parameters()) == parameters


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
    assert (first["mixers.1.inverse_ridge"] == 1).all()


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
