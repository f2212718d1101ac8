import re
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mesaopt import recipes
from mesaopt.config import LanguageModelConfig, MixerName, ModelConfig
from mesaopt.errors import ConfigError, SolveError
from mesaopt.layers import (
    Frame,
    LinearSelfAttention,
    MergedLinearSelfAttention,
    MesaLayer,
    SelfAttention,
    SoftmaxSelfAttention,
)
from mesaopt.models import LanguageModel, SequenceModel, SideBySide, join, separate

# One model of every kind of part: positions, norms, hidden layers, both ways to read out.
KINDS = {
    mixer: ModelConfig(mixers=(mixer, mixer), initial_std=0.2) for mixer in get_args(MixerName)
} | {
    "plain": ModelConfig(
        mixers=("softmax_attention", "mesa"),
        embed_dim=12,
        readout="linear",
        positions="first_layer",
        unit_queries_keys="after_first",
        mlp_dim=7,
        initial_std=0.2,
        activation_clip=1.0,
    ),
}


def check_side_by_side(models: list[nn.Module], tokens: torch.Tensor) -> None:
    """Compare values and gradients with those of the models one by one, in float64."""
    together = SideBySide(models)
    outputs = [model(own) for model, own in zip(models, tokens, strict=True)]
    torch.stack([out.square().mean() for out in outputs]).sum().backward()
    found = together(tokens)
    torch.stack([own.square().mean() for own in found]).sum().backward()
    # float64 at values of about 1: the same sums, perhaps in another order.
    torch.testing.assert_close(found, torch.stack(outputs), rtol=1e-10, atol=1e-12)
    gradients = {name: p.grad for name, p in together.joined.named_parameters()}
    for model, ours in zip(models, separate(gradients, len(models)), strict=True):
        wanted = {name: p.grad for name, p in model.named_parameters()}
        assert list(ours) == list(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_models_side_by_side_are_the_models(kind: str, count: int) -> None:
    config = KINDS[kind]
    models: list[nn.Module] = [SequenceModel(config, seed=i).double() for i in range(count)]
    tokens = torch.randn(count, 4, 9, config.token_dim, dtype=torch.float64)
    check_side_by_side(models, tokens)


def test_convolutions_gates_and_norms_of_heads_stay_with_their_model() -> None:
    frame = Frame.mesanet2025(forget_cap=0.9)
    gates = ("log_decay", "beta")
    models: list[nn.Module] = [
        MesaLayer(width=6, num_heads=2, head_dim=3, frame=frame, gates=gates).double()
        for _ in range(3)
    ]
    check_side_by_side(models, torch.randn(3, 2, 7, 6, dtype=torch.float64))


FRAMES = {
    "shifted keys": Frame(key_shift=True),
    "values as they are": Frame(convolution=3, convolve_values=False),
    "all convolved": Frame(convolution=3),
    "everything else": Frame(positions=True, features=2, unit_values=True, head_norm=True),
}


@pytest.mark.parametrize("shared", [1, 2], ids="{} key-value heads".format)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("layer", [LinearSelfAttention, SoftmaxSelfAttention, MesaLayer])
def test_layers_side_by_side_are_the_layers_in_every_frame(
    layer: type[SelfAttention], frame: str, shared: int
) -> None:
    settings = {"num_key_value_heads": shared, "frame": FRAMES[frame]}
    layers: list[nn.Module] = [
        layer(width=6, num_heads=2, head_dim=3, **settings).double() for _ in range(3)
    ]
    check_side_by_side(layers, torch.randn(3, 2, 7, 6, dtype=torch.float64))


def test_joined_layers_go_on_and_take_packed_sequences() -> None:
    frame = Frame(convolution=3, convolve_values=False)
    layers = [
        LinearSelfAttention(6, 2, 3, num_key_value_heads=1, frame=frame).double() for _ in range(2)
    ]
    joined = SideBySide(layers).joined
    x = torch.randn(2, 1, 9, 6, dtype=torch.float64)
    wide, ends = torch.cat(list(x), dim=-1), torch.tensor([0, 4, 9])
    alone = [layer(own, cu_seqlens=ends) for layer, own in zip(layers, x, strict=True)]
    wanted = torch.cat(alone, dim=-1)
    torch.testing.assert_close(joined(wide, cu_seqlens=ends), wanted, rtol=1e-10, atol=1e-12)
    start, state = joined.extend(wide[:, :5])
    whole = torch.cat([start, joined.extend(wide[:, 5:], state)[0]], dim=1)
    torch.testing.assert_close(whole, joined(wide), rtol=1e-10, atol=1e-12)


class Scaled(nn.Module):
    """A model of a user, with a setting that its text does not show."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale, self.map = scale, nn.Linear(4, 4)


MISFITS: dict[str, tuple[Callable[[], list[nn.Module]], str]] = {
    "none": (list, "models: there is none: must be one or more"),
    "kinds": (
        lambda: [nn.Linear(4, 4), LinearSelfAttention(4, 1, 4)],
        "models[1]: must be of the same configuration as models[0]",
    ),
    "shapes": (
        lambda: [nn.Linear(4, 4), nn.Linear(4, 2)],
        "models[1]: must be of the same configuration as models[0]",
    ),
    "types": (
        lambda: [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).double()],
        "models[2]: must be of the same configuration as models[0]",
    ),
    "settings of a layer": (
        lambda: [SoftmaxSelfAttention(4, 1, 4, window=window) for window in (1, 2)],
        "models[1]: must be of the same configuration as models[0]",
    ),
    "settings of a model": (
        lambda: [SequenceModel(ModelConfig(activation_clip=clip)) for clip in (1.0, 2.0)],
        "models[1]: must be of the same configuration as models[0]",
    ),
    "settings that are not shown": (
        lambda: [Scaled(1.0), Scaled(3.0)],
        "models[1]: must be of the same configuration as models[0]",
    ),
    "embeddings": (
        lambda: [LanguageModel(LanguageModelConfig()) for _ in range(2)],
        "models[0].embedding is an Embedding: must be a torch.nn.Linear or a SelfAttention",
    ),
    "merged weights": (
        lambda: [MergedLinearSelfAttention(4, 3) for _ in range(2)],
        "models[0] is a MergedLinearSelfAttention: must be a torch.nn.Linear or a SelfAttention",
    ),
    "running means": (
        lambda: [nn.Sequential(nn.BatchNorm1d(4, affine=False))],
        "models[0].0 is a BatchNorm1d: must be a torch.nn.Linear or a SelfAttention",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_models_that_cannot_be_joined_are_refused(name: str) -> None:
    make, message = MISFITS[name]
    with pytest.raises((ConfigError, TypeError), match=f"^{re.escape(message)}"):
        SideBySide(make())


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (3, 3, 7, 4), (2, 7, 4)], ids=str)
def test_tokens_of_more_or_fewer_models_are_refused(shape: tuple[int, ...]) -> None:
    together = SideBySide([nn.Linear(4, 4), nn.Linear(4, 4)])
    wanted = f"tokens has shape {shape}: must be [2, batch, time, token]"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        together(torch.zeros(shape))


def test_the_models_are_left_as_they_are() -> None:
    models = [SequenceModel(KINDS["mesa"], seed=seed) for seed in (0, 1)]
    tokens = torch.randn(2, 2, 5, 40)
    together = SideBySide(models)
    before = together(tokens)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.zero_()
    assert torch.equal(together(tokens), before)
    assert models[0].mixers[0].num_heads == KINDS["mesa"].num_heads


@pytest.mark.parametrize("name", recipes.MODELS)
def test_states_of_every_published_model_fit_both_ways(name: str) -> None:
    config = recipes.MODELS[name]
    models = [SequenceModel(config, seed=seed) for seed in (5, 6)]
    states = [model.state_dict() for model in models]
    together = SideBySide(models)
    for found, wanted in zip(together.states(), states, strict=True):
        assert list(found) == list(wanted)
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    together.load_states(states[::-1])
    name = "blocks.0.mixer.key.weight"
    assert torch.equal(together.states()[0][name], states[1][name])


@given(count=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_joining_undoes_separating(count: int, rows: int, columns: int) -> None:
    parts = [
        {"matrix": torch.randn(rows, columns), "vector": torch.randn(rows), "step": torch.tensor(7)}
        for _ in range(count)
    ]
    for found, wanted in zip(separate(join(parts), count), parts, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_checks_of_the_operators_stay() -> None:
    models = [SequenceModel(KINDS["mesa"], seed=seed) for seed in (0, 1)]
    models[1].mixers[1].inverse_ridge.data[2] = -1.0
    with pytest.raises((SolveError, ValueError), match="ridge"):
        SideBySide(models)(torch.randn(2, 2, 5, 40))
