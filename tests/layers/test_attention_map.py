"""Maps with a known answer; that every layer's map is its own is part of the contract."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_layers import DIM, HEADS, WIDTH, small_input, small_layer
from torch import Tensor

from mesaopt.layers import (
    Frame,
    LinearSelfAttention,
    MesaLayer,
    SelfAttention,
    SoftmaxSelfAttention,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # a few hundred operations in float64


def scores(layer: SelfAttention, x: Tensor) -> Tensor:
    inputs = layer.head_inputs(x)
    return torch.einsum("bthk,bshk->bhts", inputs.q, inputs.k)


@given(st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_rows_of_softmax_are_shares(time: int, seed: int, positions: bool) -> None:
    layer = small_layer(SoftmaxSelfAttention, seed, frame=Frame(positions=positions))
    maps = layer.attention_map(small_input(time=time, seed=seed))
    assert maps.shape == (2, HEADS, time, time)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, HEADS, time).double(), **ROUNDING)


def test_softmax_of_scores() -> None:
    layer, x = small_layer(SoftmaxSelfAttention), small_input()
    hidden = torch.ones(9, 9).triu(1).bool()
    wanted = (scores(layer, x) * DIM**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(layer.attention_map(x), wanted, **ROUNDING)


def test_scores_of_linear_attention() -> None:
    layer, x = small_layer(LinearSelfAttention), small_input()
    torch.testing.assert_close(layer.attention_map(x), scores(layer, x).tril(), **ROUNDING)


def test_mesa_weighs_by_the_inverse_of_the_keys_so_far() -> None:
    layer, x = small_layer(MesaLayer), small_input()
    inputs, maps = layer.head_inputs(x), layer.attention_map(x)
    eye = torch.eye(DIM, dtype=torch.float64)
    for head in range(HEADS):
        for t in (0, 4, 8):
            keys, query = inputs.k[0, : t + 1, head], inputs.q[0, t, head]
            gram = keys.T @ keys + layer.ridge[head] * eye
            wanted = keys @ torch.linalg.solve(gram, query)
            torch.testing.assert_close(maps[0, head, t, : t + 1], wanted, **ROUNDING)


def test_heads_read_projections_behind_norms() -> None:
    layer, x = small_layer(SoftmaxSelfAttention, frame=Frame(unit_keys=True)), small_input()
    inputs = layer.head_inputs(x)
    for unit, projection in ((inputs.q, layer.query), (inputs.k, layer.key)):
        plain = projection(x).unflatten(-1, (HEADS, DIM))
        torch.testing.assert_close(unit, plain / plain.norm(dim=-1, keepdim=True), **ROUNDING)
    assert torch.equal(inputs.v, layer.value(x).unflatten(-1, (HEADS, DIM)))
    assert inputs.beta is inputs.log_decay is None


def test_gradients_flow_through_maps() -> None:
    layer, x = small_layer(SoftmaxSelfAttention), small_input().requires_grad_()
    (slope,) = torch.autograd.grad(layer.attention_map(x)[:, :, 5, 2].sum(), x)
    assert (slope[:, 6:] == 0).all()
    assert (slope[:, :6] != 0).any(-1).all()


@pytest.mark.parametrize("shape", [(9, WIDTH), (2, 9, WIDTH + 1)], ids=str)
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    layer = small_layer(LinearSelfAttention)
    with pytest.raises(Exception, match="x has shape|Type-check error"):
        layer.attention_map(torch.zeros(shape, dtype=torch.float64))
