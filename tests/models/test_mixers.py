"""Every mixer that a configuration can name: its table, its definition, its training."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from slow_sequence_model import leave_the_start, slow_model

from mesaopt.config import FORGETTING_MIXERS, MixerName, ModelConfig, RunConfig, override
from mesaopt.errors import ConfigError
from mesaopt.layers import MesaLayer
from mesaopt.models import SequenceModel, SideBySide
from mesaopt.models.mixers import MIXERS, make_mixer
from mesaopt.training import load_run, train

NAMES = get_args(MixerName)


def stack_of(name: MixerName) -> ModelConfig:
    """Two layers of a mixer, with every setting that reaches it."""
    return ModelConfig(
        mixers=(name, name),
        token_dim=6,
        output_dim=2,
        num_heads=2,
        head_dim=3,
        positions="first_layer",
        unit_queries_keys="after_first",
        forget_cap=0.9 if name in FORGETTING_MIXERS else None,
        initial_std=0.4,
    )


def test_every_name_has_a_row() -> None:
    assert set(MIXERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_its_definition(name: MixerName) -> None:
    config, random = stack_of(name), torch.Generator().manual_seed(0)
    model = SequenceModel(config, seed=1).double()
    leave_the_start(model, random)
    tokens = torch.randn(2, 9, 6, generator=random, dtype=torch.float64)
    wanted = [torch.from_numpy(slow_model(config, model, each.numpy())) for each in tokens]
    # float64, two layers, condition numbers below 1e4 and values of 1 to 1e3.
    torch.testing.assert_close(model(tokens), torch.stack(wanted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_cap_needs_a_forget_gate(name: MixerName) -> None:
    forgets = make_mixer(ModelConfig(mixers=(name,)), 0).head_inputs(torch.zeros(1, 2, 40))
    assert (forgets.log_decay is not None) == (name in FORGETTING_MIXERS)
    config = ModelConfig(mixers=(name,))
    if name in FORGETTING_MIXERS:
        capped = replace(config, mixers=("linear_attention", name), forget_cap=0.9)
        assert [make_mixer(capped, i).frame.forget_cap for i in (0, 1)] == [None, 0.9]
        for cap in (0.0, 1.1):
            with pytest.raises(ConfigError, match="forget_cap=.*: must be above 0 and at most 1"):
                replace(config, forget_cap=cap)
    else:
        with pytest.raises(ConfigError, match=r"forget_cap=0.9: must be None: a forget gate is in"):
            replace(config, forget_cap=0.9)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_pure_function_of_the_seed(name: MixerName) -> None:
    torch.manual_seed(5)
    first = SequenceModel(stack_of(name), seed=3).state_dict()
    torch.manual_seed(6)
    again = SequenceModel(stack_of(name), seed=3).state_dict()
    other = SequenceModel(stack_of(name), seed=4).state_dict()
    for weight in first:
        assert torch.equal(first[weight], again[weight]), weight
        drawn = weight.endswith("weight") and "head_norm" not in weight
        assert drawn != torch.equal(first[weight], other[weight]), weight


def test_mesanet2025_is_the_layer_of_that_name() -> None:
    config = ModelConfig(mixers=("mesanet2025",), forget_cap=0.9)
    found = make_mixer(config, 0)
    wanted = MesaLayer.mesanet2025(config.width, config.num_heads, config.key_width, forget_cap=0.9)
    assert isinstance(found, MesaLayer)
    assert (found.frame, found.ridge_floor, found.ridge_mode) == (
        wanted.frame,
        wanted.ridge_floor,
        wanted.ridge_mode,
    )
    wanted.load_state_dict(found.state_dict())
    x = torch.randn(2, 9, 40)
    assert torch.equal(found(x), wanted(x))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_by_name_and_its_checkpoint_loads(
    name: MixerName, short_config: RunConfig, tmp_path: Path
) -> None:
    changes = ["train.steps=2", "train.evaluate_every=1", f"model.mixers=['{name}']"]
    config = override(short_config, changes)
    run = train(config, tmp_path / "run", device="cpu")
    again = load_run(tmp_path / "run")
    assert again.config == config
    assert [line["step"] for line in again.metrics] == [0, 1, 2]
    start = SequenceModel(config.model, seed=config.seed).state_dict()
    for weight, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[weight]), weight
        assert value.isfinite().all(), weight
        assert not torch.equal(value, start[weight]), weight


@pytest.mark.parametrize("name", NAMES)
def test_seeds_run_side_by_side(name: MixerName) -> None:
    models = [SequenceModel(stack_of(name), seed=seed).double() for seed in (0, 1)]
    for seed, model in enumerate(models):
        leave_the_start(model, torch.Generator().manual_seed(seed))
    tokens = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    wanted = torch.stack([model(own) for model, own in zip(models, tokens, strict=True)])
    # float64 at values of about 1: the same sums, perhaps in another order.
    torch.testing.assert_close(SideBySide(models)(tokens), wanted, rtol=1e-10, atol=1e-12)
