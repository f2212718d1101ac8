"""Contract of every layer on many sequences at once: their states, packed sequences, padding.

Run for each layer by tests/layers/test_contract.py, as :mod:`layer_contract` is.
"""

from collections.abc import Sequence

import pytest
import torch
from layer_contract import BATCH, DIM, HEADS, WIDTH, Case, assert_close, draw
from torch import Tensor
from work import Work

from mesaopt.layers import LayerState
from mesaopt.ops import KeyValueState

# Several chunks, one token, none, part of a chunk; then others.
FIRST, SECOND = (67, 1, 0, 9), (2, 66, 3, 0)


# Three sequences: of several chunks, of some tokens, of one.
_TIME = torch.arange(70)
_SIZES = torch.tensor([[66], [9], [1]])
PADDINGS = {
    "left": _TIME >= 70 - _SIZES,
    "right": _TIME < _SIZES,
    "anywhere": (_TIME >= 3) & (_TIME < 3 + _SIZES) & (_TIME != 5),
}


def padded(mask: Tensor) -> Tensor:
    """Draw a batch whose padding would spoil everything that it reached."""
    x = draw(time=3 * 70).flatten(0, 1)[: 3 * 70].reshape(3, 70, WIDTH)
    return x.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()


def repeated(name: str, x: Tensor) -> Tensor:
    """Repeat a parameter of one key-value head for every head."""
    if name == "convolution.weight":
        q, k, v = x.split([HEADS * DIM, DIM, DIM])
        return torch.cat([q, k.repeat(HEADS, 1), v.repeat(HEADS, 1)])
    if name.split(".")[0] in ("key", "value", "gates"):
        return torch.cat([x] * HEADS)
    return x


def offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def one_sequence(lengths: Sequence[int]) -> Tensor:
    """Draw a batch of 1 that is as long as the lengths together."""
    return draw(time=sum(lengths))[:1]


def tensors(state: LayerState) -> list[Tensor]:
    """Every tensor of a state."""
    return [x for x in (*state.memory, *state[1:]) if isinstance(x, Tensor)]


def assert_same(found: LayerState, wanted: LayerState) -> None:
    assert type(found.memory) is type(wanted.memory)
    if isinstance(found.seen, Tensor):
        assert (found.seen == wanted.seen).all()
        found, wanted = found._replace(seen=0), wanted._replace(seen=0)
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

    def test_packed_sequences_are_what_each_is_alone(self, case: Case) -> None:
        layer, x = case.make(), one_sequence(FIRST).requires_grad_()
        y = layer(x, cu_seqlens=offsets(FIRST))
        alone = [layer(part) for part in x.split(FIRST, dim=1) if part.numel()]
        wanted = torch.cat(alone, dim=1)
        assert_close(y, wanted)
        learnt = [x, *layer.parameters()]
        upstream = torch.randn_like(y)
        slopes = (torch.autograd.grad(z, learnt, upstream) for z in (y, wanted))
        for found, right in zip(*slopes, strict=True):
            assert_close(found, right)

    @pytest.mark.parametrize("lengths", [(256, *[4] * 64), (*[0] * 100, 512)], ids=len)
    def test_cost_follows_tokens(self, case: Case, lengths: tuple[int, ...]) -> None:
        layer, x = case.make(), one_sequence(lengths)
        counted = []
        for packed in ((512,), lengths):
            with torch.no_grad(), Work() as work:
                layer(x, cu_seqlens=offsets(packed))
            counted.append(work)
        one, many = counted
        # As of the operators: chunks filled up to twice the tokens, and a state per sequence and chunk.
        assert many.largest <= 2 * one.largest
        assert many.total <= 6 * one.total

    def test_packed_sequences_go_on(self, case: Case) -> None:
        layer, first, second = case.make(), one_sequence(FIRST), one_sequence(SECOND)
        rest = draw(time=20).reshape(len(FIRST), -1, WIDTH)
        order = torch.tensor([3, 0, 0])
        _, state = layer.extend(first, cu_seqlens=offsets(FIRST))
        y, state = layer.extend(second, state, cu_seqlens=offsets(SECOND))
        batch, state = layer.extend(rest[:, :-1], state)
        token, state = layer.step(rest[:, -1], state)
        chosen, _ = layer.step(rest[order, 0], state.index_select(order))

        parts = zip(first.split(FIRST, 1), second.split(SECOND, 1), rest.split(1), strict=True)
        alone = [layer.extend(torch.cat(three, dim=1)) for three in parts]
        now = [z[:, n : n + m] for n, m, (z, _) in zip(FIRST, SECOND, alone, strict=True)]
        assert_close(y, torch.cat(now, dim=1))
        tails = torch.cat([z[:, -rest.shape[1] :] for z, _ in alone])
        assert_close(batch, tails[:, :-1])
        assert_close(token, tails[:, -1])
        steps = [layer.step(rest[i : i + 1, 0], alone[i][1])[0] for i in order.tolist()]
        assert_close(chosen, torch.cat(steps))

    def test_offsets_that_do_not_fit_are_refused(self, case: Case) -> None:
        layer, x = case.make(), draw(time=5)
        with pytest.raises(ValueError, match="x has batch 2: must be 1 with cu_seqlens"):
            layer(x, cu_seqlens=torch.tensor([0, 5]))
        with pytest.raises(ValueError, match=r"cu_seqlens is \[0, 4\]: must start at 0, never"):
            layer(x[:1], cu_seqlens=torch.tensor([0, 4]))

    @pytest.mark.parametrize("sequences", [1, 3])
    def test_a_state_of_other_sequences_is_refused(self, case: Case, sequences: int) -> None:
        layer, x = case.make(), draw(time=4)
        state = layer.extend(x[[0] * sequences])[1]
        nothing = torch.zeros(BATCH, 4, dtype=torch.bool)
        one = nothing.clone()
        one[0, 1] = True
        for call in (
            lambda: layer.extend(x, state),
            lambda: layer.extend(x, state, mask=nothing),
            lambda: layer.extend(x, state, mask=one),
            lambda: layer.extend(x[:1], state, cu_seqlens=torch.tensor([0, 1, 4])),
            lambda: layer.step(x[:, 0], state),
        ):
            with pytest.raises(ValueError, match=f"^state has {sequences} sequences: must have 2$"):
                call()

    @pytest.mark.parametrize("where", PADDINGS)
    def test_padding_changes_nothing(self, case: Case, where: str) -> None:
        layer, mask = case.make(), PADDINGS[where]
        x, rest = padded(mask), draw(time=6).reshape(len(mask), -1, WIDTH)
        y, state = layer.extend(x, mask=mask)
        alone = [layer.extend(row[real][None]) for row, real in zip(x, mask, strict=True)]
        wanted = torch.zeros_like(y)
        wanted[mask] = torch.cat([z[0] for z, _ in alone])
        assert_close(y, wanted)
        assert (y[~mask] == 0).all()
        upstream, learnt = torch.randn_like(y), [x, *layer.parameters()]
        slopes = (torch.autograd.grad(z, learnt, upstream, retain_graph=True) for z in (y, wanted))
        for found, right in zip(*slopes, strict=True):
            assert_close(found, right)
        assert torch.equal(layer(x, mask=mask), y)
        further, _ = layer.extend(rest, state)
        steps = [layer.extend(row[None], end)[0] for row, (_, end) in zip(rest, alone, strict=True)]
        assert_close(further, torch.cat(steps))

    def test_a_sequence_of_padding_leaves_its_state_alone(self, case: Case) -> None:
        layer, x = case.make(), draw(time=5)
        _, before = layer.extend(x)
        nothing = torch.zeros(BATCH, 5, dtype=torch.bool)
        for state in (before, None):
            y, after = layer.extend(x, state, mask=nothing)
            assert (y == 0).all()
            assert y.dtype == x.dtype
            assert_same(after, layer.init_state(BATCH) if state is None else state)
        one = nothing.clone()
        one[0, 1:4] = True
        y, after = layer.extend(x, before, mask=one)
        assert (y[1] == 0).all()
        kept, wanted = (z.index_select(torch.tensor([1])) for z in (after, before))
        for found, right in zip(kept.memory, wanted.memory, strict=True):
            if isinstance(right, Tensor) and right.any():
                assert_close(found, right)  # mesa makes a state symmetric again
        assert_same(kept._replace(memory=wanted.memory), wanted)

    def test_a_mask_without_padding_costs_nothing(self, case: Case) -> None:
        layer, x = case.make(), draw(time=9)
        y, state = layer.extend(x, mask=torch.ones(BATCH, 9, dtype=torch.bool))
        wanted, end = layer.extend(x)
        assert torch.equal(y, wanted)
        assert_same(state, end)

    def test_queries_may_share_keys_values_and_states(self, case: Case) -> None:
        layer, full = case.make(num_key_value_heads=1), case.make(num_key_value_heads=HEADS)
        copied = {name: repeated(name, x) for name, x in layer.named_parameters()}
        full.load_state_dict(copied)
        x = draw(time=67)
        (y, state), (wanted, end) = layer.extend(x), full.extend(x)
        assert_close(y, wanted)
        for found, right in zip(state.memory, end.memory, strict=True):
            pairs = isinstance(state.memory, KeyValueState)
            heads = 2 if pairs else 1
            if isinstance(found, Tensor) and right.any():
                assert pairs or found.untyped_storage().nbytes() == found.nbytes
                assert_close(found, right.narrow(heads, 0, 1))
        (more, state), (right, end) = layer.extend(x[:, :5], state), full.extend(x[:, :5], end)
        assert_close(more, right)
        assert_close(layer.step(x[:, 0], state)[0], full.step(x[:, 0], end)[0])
        upstream = torch.randn_like(y)
        slopes = torch.autograd.grad(y, list(layer.parameters()), upstream)
        rights = torch.autograd.grad(wanted, list(full.parameters()), upstream)
        for name, slope, right in zip(copied, slopes, rights, strict=True):
            parameter = torch.zeros_like(slope, requires_grad=True)
            (wanted,) = torch.autograd.grad(repeated(name, parameter), parameter, right)
            assert_close(slope, wanted)
