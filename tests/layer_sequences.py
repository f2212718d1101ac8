"""Contract of every layer on many sequences at once: their states, packed sequences, padding.

Run for each layer by tests/layers/test_contract.py, as :mod:`layer_contract` is.
"""

import pytest
import torch
from layer_contract import BATCH, Case, assert_close, draw
from torch import Tensor

from mesaopt.layers import LayerState


def tensors(state: LayerState) -> list[Tensor]:
    """Every tensor of a state."""
    return [x for x in (*state.memory, *state[1:]) if isinstance(x, Tensor)]


def assert_same(found: LayerState, wanted: LayerState) -> None:
    assert type(found.memory) is type(wanted.memory)
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class SequenceContract:
    def test_a_state_follows_its_layer_to_another_type(self, case: Case) -> None:
        layer, x = case.make(torch.float32), draw(torch.float32, time=9)
        state = layer.extend(x)[1]
        for dtype in (torch.bfloat16, torch.float64, torch.float32):
            wanted = case.make(dtype).init_state(BATCH)
            moved = state.to(dtype)
            assert [y.dtype for y in tensors(moved)] == [y.dtype for y in tensors(wanted)]
            y, _ = case.make(dtype).step(x[:, 0].to(dtype), moved)
            assert y.dtype == dtype
        assert_same(state.to(torch.float64).to(torch.zeros(1)), state)  # no digit is lost
        assert all(y.is_meta for y in tensors(state.to("meta")))
        assert all(y.is_meta for y in tensors(state.to(device="meta", dtype=torch.float64)))
        with pytest.raises(ValueError, match=r"dtype=torch.int32: must be a floating-point type"):
            state.to(torch.int32)

    def test_a_detached_state_ends_the_gradient(self, case: Case) -> None:
        layer, x = case.make(), draw(time=9).requires_grad_()
        _, state = layer.extend(x[:, :5])
        cut = state.detach()
        assert_same(cut, state)
        assert not any(y.requires_grad for y in tensors(cut))
        y, _ = layer.extend(x[:, 5:], cut)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert (slope[:, :5] == 0).all()
        assert (slope[:, 5:] != 0).any()

    def test_chosen_sequences_go_on_alone(self, case: Case) -> None:
        layer, x = case.make(), draw(time=9).requires_grad_()
        _, state = layer.extend(x[:, :5])
        order = torch.tensor([1, 0, 1])
        y, _ = layer.extend(x[order, 5:], state.index_select(order))
        wanted = layer(x)[order, 5:]
        assert_close(y, wanted)
        upstream = torch.randn_like(y)
        slopes = (torch.autograd.grad(z, x, upstream)[0] for z in (y, wanted))
        assert_close(*slopes)
        cases = [
            (torch.tensor([0, 2]), "indices has the value 2: must be from 0 to 1"),
            (torch.tensor([-1]), "indices has the value -1: must be from 0 to 1"),
        ]
        for indices, message in cases:
            with pytest.raises(ValueError, match=message):
                state.index_select(indices)
