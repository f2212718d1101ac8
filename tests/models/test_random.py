"""What takes a seed depends on the seed alone, and leaves torch's global generator as it was."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch

from mesaopt.analysis.linearization import distil, linearize
from mesaopt.config import LinearSystemConfig, MergedAttentionConfig, MixerName, ModelConfig
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
