import pytest
import torch

from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import tokens_from_states
from mesaopt.theory import gradient_descent, proposition_1

# A prediction is a sum of up to 30 products of products, each rounded to half a unit in the last place
# (6e-8 and 1.1e-16); the bounds leave a factor of about ten.
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 10), (2, 20)])
@pytest.mark.parametrize("slots", [("current", "previous"), ("current", "current", "previous")])
@pytest.mark.parametrize("seed", range(5))
def test_the_weights_are_one_step_of_gradient_descent(
    dtype: torch.dtype, num_heads: int, head_dim: int, slots: tuple, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    states = torch.rand(4, 30, 10, generator=random, dtype=torch.float64).to(dtype) * 2 - 1
    phi = torch.randn(10, 10, generator=random, dtype=torch.float64).to(dtype) / 10**0.5
    model = SequenceModel(
        ModelConfig(
            token_dim=(len(slots) + 1) * 10,
            num_heads=num_heads,
            head_dim=head_dim,
            activation_clip=None,
        )
    ).to(dtype)
    weights = proposition_1(
        10,
        step_size=0.03,
        initial_map=phi,
        num_slots=len(slots) + 1,
        current_slot=len(slots) - 1,
        num_heads=num_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    model.load_state_dict(weights)
    tokens = torch.cat([states @ phi.T, tokens_from_states(states, slots)], dim=-1)
    with torch.no_grad():
        ours = model(tokens)
    explicit = gradient_descent(states, step_size=0.03, initial_map=phi)
    error = (ours - explicit).abs().max() / explicit.abs().max()
    assert error.item() < BOUNDS[dtype]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim=5: must be 10 or greater"):
        proposition_1(10, step_size=0.1, head_dim=5)
    with pytest.raises(ValueError, match="current_slot=3: must be between 1 and 2"):
        proposition_1(10, step_size=0.1, current_slot=3)
