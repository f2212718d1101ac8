"""What takes a seed depends on the seed alone, and leaves torch's global generator as it was."""

import math
from collections.abc import Callable, Mapping
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesaopt.analysis.linearization import distil, linearize
from mesaopt.config import (
    AutoEncoderConfig,
    LanguageModelConfig,
    LinearSystemConfig,
    MergedAttentionConfig,
    MixerName,
    ModelConfig,
    NetworkConfig,
)
from mesaopt.models import make_model
from mesaopt.tasks import LinearSystem

TASK = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
SMALL = ModelConfig(
    token_dim=2, output_dim=2, embed_dim=4, readout="linear", head_dim=4, num_heads=1
)


def weights_of(config: ModelConfig | MergedAttentionConfig) -> torch.Tensor:
    state = make_model(config, seed=3).state_dict().values()
    return torch.cat(
        [torch.view_as_real(w).flatten() if w.is_complex() else w.flatten() for w in state]
    )


def linearized() -> torch.Tensor:
    return linearize(make_model(SMALL), TASK, steps=2, num_sequences=256).ratios


def distilled() -> torch.Tensor:
    x = TASK.sample(8, seed=0, dtype=torch.float32).tokens
    return distil(x, 2 * x, num_heads=1, head_dim=2, steps=2).query.weight.detach()


CASES: dict[str, Callable[[], torch.Tensor]] = {
    **{
        name: lambda name=name: weights_of(ModelConfig(mixers=(name,), mlp_dim=4))
        for name in get_args(MixerName)
    },
    "merged": lambda: weights_of(MergedAttentionConfig(initial="normal")),
    "linearize": linearized,
    "distil": distilled,
    "reset": lambda: make_model(SMALL).reset_parameters(5) or torch.zeros(()),
}


@pytest.mark.parametrize("name", CASES)
def test_only_the_seed_counts_and_the_global_generator_is_left_alone(name: str) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(CASES[name]())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


# Every kind of model, with every part that draws numbers or has first values of its own.
WORDS = {"vocabulary": 11, "width": 6, "num_heads": 2}
KINDS: dict[str, NetworkConfig] = {
    **{
        name: ModelConfig(mixers=(name,), token_dim=6, output_dim=2, embed_dim=4, mlp_dim=4)
        for name in get_args(MixerName)
    },
    "language": LanguageModelConfig(**WORDS, mixers=("mesanet2025", "softmax_attention")),
    "shifted": LanguageModelConfig(**WORDS, mixers=("mesa",), key_shift=True, tied=False),
    "auto-encoder": AutoEncoderConfig(**WORDS),
    "one layer": MergedAttentionConfig(),
    "one layer, drawn": MergedAttentionConfig(
        initial="normal", blocks="core", off_diagonal="masked"
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def values_of(model: torch.nn.Module) -> Mapping[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def assert_same(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    for name, value in values_of(wanted).items():
        assert torch.equal(values_of(found)[name].to(value.dtype), value), name


@every_kind
def test_a_model_built_without_memory_gets_all_first_values(kind: str) -> None:
    with torch.device("meta"):
        model = make_model(KINDS[kind])
    assert all(value.is_meta for value in values_of(model).values())
    model.to_empty(device="cpu")
    for value in values_of(model).values():
        value.data.fill_(math.nan)
    model.reset_parameters(3)
    assert_same(model, make_model(KINDS[kind], seed=3))


@every_kind
def test_the_default_device_and_the_type_of_the_weights_change_no_draw(kind: str) -> None:
    model = make_model(KINDS[kind])
    if not isinstance(KINDS[kind], MergedAttentionConfig):
        model.double()
    with torch.device("meta"):
        model.reset_parameters(3)
    assert_same(model, make_model(KINDS[kind], seed=3))


@every_kind
def test_the_default_type_changes_no_draw(kind: str) -> None:
    wanted = make_model(KINDS[kind], seed=3)
    torch.set_default_dtype(torch.float64)
    try:
        found = make_model(KINDS[kind], seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in values_of(wanted).items():
        # Ridges and gates start from numbers that are computed in the type of the weights.
        assert torch.allclose(values_of(found)[name].to(value.dtype), value, rtol=1e-6), name


class DrawnHere(TorchDispatchMode):
    """Refuse numbers that a generator draws on another device than its own, as CUDA does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found, generator = func(*args, **(kwargs or {})), (kwargs or {}).get("generator")
        assert generator is None or found.device == generator.device
        return found


@every_kind
def test_numbers_are_drawn_on_the_device_of_their_generator(kind: str) -> None:
    model = make_model(KINDS[kind]).to("meta")
    with DrawnHere():
        model.reset_parameters(3)
