import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import tokens_from_states
from mesaopt.theory import (
    gradient_descent,
    neumann_inverse,
    polynomial_prediction,
    preconditioned_descent,
    proposition_1,
    proposition_2,
    proposition_2_slots,
)

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


def deep_model(
    dim: int, coefficients: list[float], num_heads: int = 1, head_dim: int | None = None
) -> SequenceModel:
    slots = proposition_2_slots(len(coefficients) - 1)
    config = ModelConfig(
        mixers=("linear_attention",) * len(coefficients),
        token_dim=len(slots) * dim,
        output_dim=dim,
        num_heads=num_heads,
        head_dim=head_dim or dim,
        activation_clip=None,
    )
    model = SequenceModel(config).double()
    sizes = {"num_heads": num_heads, "head_dim": head_dim}
    weights = proposition_2(dim, coefficients=coefficients, dtype=torch.float64, **sizes)
    model.load_state_dict(weights)
    return model


@given(
    dim=st.integers(1, 6),
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    length=st.integers(1, 20),
    heads=st.sampled_from([(1, None), (2, 7)]),
    seed=st.integers(0, 99),
)
def test_any_polynomial_is_a_stack_of_linear_attention(
    dim: int, coefficients: list[float], length: int, heads: tuple, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    states = torch.rand(2, length, dim, generator=random, dtype=torch.float64) * 2 - 1
    model = deep_model(dim, coefficients, *heads)
    slots = proposition_2_slots(len(coefficients) - 1)
    with torch.no_grad():
        ours = model(tokens_from_states(states, slots))
    explicit = polynomial_prediction(states, coefficients)
    # What terms of alternating sign add up to may be small: the bound is relative to their sizes.
    size = polynomial_prediction(states.abs(), [abs(c) for c in coefficients]).max() + 1e-300
    assert ((ours - explicit).abs().max() / size).item() < BOUNDS[torch.float64]


def test_a_neumann_series_fits_into_the_layers() -> None:
    states = torch.rand(4, 12, 3, dtype=torch.float64) * 2 - 1
    series = neumann_inverse(3, ridge=0.01, scale=0.1)
    model = deep_model(3, list(series.coefficients()))
    with torch.no_grad():
        ours = model(tokens_from_states(states, proposition_2_slots(3)))
    explicit = preconditioned_descent(states, series)
    assert ((ours - explicit).abs().max() / explicit.abs().max()).item() < BOUNDS[torch.float64]


def test_one_coefficient_is_proposition_1() -> None:
    one = proposition_1(3, step_size=0.1, num_slots=3, current_slot=1)
    two = proposition_2(3, coefficients=[0.1])
    assert one.keys() == two.keys()
    states = torch.rand(2, 9, 3) * 2 - 1
    tokens = tokens_from_states(states, proposition_2_slots(0))
    config = ModelConfig(token_dim=9, output_dim=3, num_heads=1, head_dim=3)
    predictions = []
    for weights in (one, two):
        model = SequenceModel(config)
        model.load_state_dict(weights)
        predictions.append(model(tokens))
    torch.testing.assert_close(*predictions, rtol=1e-6, atol=1e-6)  # ten roundings of 6e-8


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim=5: must be 10 or greater"):
        proposition_1(10, step_size=0.1, head_dim=5)
    with pytest.raises(ValueError, match="current_slot=3: must be between 1 and 2"):
        proposition_1(10, step_size=0.1, current_slot=3)
    with pytest.raises(ValueError, match="num_slots=2: must be 3 or greater"):
        proposition_1(10, step_size=0.1, num_slots=2)
    with pytest.raises(ValueError, match="dim=0: must be 1 or greater"):
        proposition_1(0, step_size=0.1)
    with pytest.raises(ValueError, match="num_heads=0: must be 1 or greater"):
        proposition_2(10, coefficients=[0.1], num_heads=0)
    with pytest.raises(ValueError, match=r"coefficients=\[\]: must be 1 or more finite"):
        proposition_2(10, coefficients=[])
    with pytest.raises(ValueError, match="degree=-1: must be 0 or greater"):
        proposition_2_slots(-1)
