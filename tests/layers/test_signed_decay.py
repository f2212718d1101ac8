"""Forget gates between -1 and 1: against the recurrences, in any pieces, and what they are for: parity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mesaopt.errors import ConfigError
from mesaopt.layers import (
    DeltaRuleLayer,
    Frame,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    MesaLayer,
    SelfAttention,
)
from mesaopt.layers.frame import Gates
from mesaopt.layers.state import HeadInputs

WIDTH, HEADS, DIM, BATCH, TIME = 6, 2, 3, 2, 150
SIGNED = Frame(unit_keys=True, signed_decay=True)


def mesa(width: int, heads: int, dim: int, *, frame: Frame, **more: int) -> MesaLayer:
    gates = ("log_decay", "beta")
    return MesaLayer(width, heads, dim, frame=frame, gates=gates, ridge_floor=0.25, **more)


LAYERS: dict[str, Callable[..., SelfAttention]] = {
    "gated linear": GatedLinearSelfAttention,
    "gated delta": GatedDeltaRuleLayer,
    "mesa": mesa,
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, *, frame: Frame = SIGNED, **more: int) -> SelfAttention:
    torch.manual_seed(0)
    layer = LAYERS[name](WIDTH, HEADS, DIM, frame=frame, **more).double()
    assert layer.gates is not None
    torch.nn.init.normal_(layer.gates.log_decay.weight, std=2.0)  # signs of both kinds
    torch.nn.init.zeros_(layer.gates.log_decay.bias)
    return layer


def draw(time: int = TIME) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, time, WIDTH, generator=random, dtype=torch.float64)


def recurrence(layer: SelfAttention, x: Tensor) -> Tensor:
    """Compute a layer one token after another, from a gate tanh(z / 2) and no logarithm."""
    given, gates = layer.head_inputs(x), layer.gates
    assert isinstance(gates, Gates)
    gamma = (gates.log_decay(x) / 2).tanh()
    cross = x.new_zeros(BATCH, HEADS, DIM, DIM)
    gram, outputs = torch.zeros_like(cross), []
    for t in range(x.shape[1]):
        q, k, v, beta = given.q[:, t], given.k[:, t], given.v[:, t], given.beta[:, t, :, None, None]
        g = gamma[:, t, :, None, None]
        if isinstance(layer, GatedDeltaRuleLayer):
            kept = g * cross
            error = v - (kept @ k.unsqueeze(-1)).squeeze(-1)
            cross = kept + beta * error.unsqueeze(-1) * k.unsqueeze(-2)
        else:
            cross = g * cross + beta * v.unsqueeze(-1) * k.unsqueeze(-2)
        if isinstance(layer, MesaLayer):
            gram = g.abs() * gram + beta * k.unsqueeze(-1) * k.unsqueeze(-2)
            system = gram + torch.diag_embed(layer.ridge)
            q = torch.linalg.solve(system, q)
        outputs.append((cross @ q.unsqueeze(-1)).squeeze(-1))
    return layer.output(torch.stack(outputs, 1).flatten(-2))


@every_layer
def test_values_and_gradients_are_those_of_the_recurrence(name: str) -> None:
    layer, x = build(name), draw()
    signs = layer.head_inputs(x).sign
    assert signs is not None
    assert 0.3 < (signs < 0).double().mean() < 0.7
    wanted, found = recurrence(layer, x), layer(x)
    # Conjugate gradients of mesa stop at 1e-10 and below; the others round alone.
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    upstream = torch.randn(wanted.shape, dtype=torch.float64)
    weights = list(layer.parameters())
    theirs = torch.autograd.grad(wanted, weights, upstream)
    ours = torch.autograd.grad(found, weights, upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


@every_layer
def test_pieces_steps_packed_sequences_and_maps_agree(name: str) -> None:
    layer, x = build(name), draw(70)
    whole, state = layer.extend(x)
    parts, mid = [], None
    for part in x.split([1, 33, 36], dim=1):
        y, mid = layer.extend(part, mid)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-8, atol=1e-8)
    steps, after = [], layer.init_state(BATCH)
    for token in x.unbind(1):
        y, after = layer.step(token, after)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-7, atol=1e-7)
    for one in (mid, after):
        torch.testing.assert_close(one.memory.cross, state.memory.cross, rtol=1e-8, atol=1e-8)
    packed = torch.cat([x[:1, :40], x[1:, :0], x[1:, :25]], dim=1)
    y, last = layer.extend(packed, cu_seqlens=torch.tensor([0, 40, 40, 65]))
    torch.testing.assert_close(y[:, :40], whole[:1, :40], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(y[:, 40:], whole[1:, :25], rtol=1e-7, atol=1e-7)
    _, alone = layer.extend(x[1:, :25])
    torch.testing.assert_close(last.memory.cross[2:], alone.memory.cross, rtol=1e-8, atol=1e-8)
    assert (last.memory.cross[1] == 0).all()
    maps, values = layer.attention_map(x), layer.head_inputs(x).v
    mixed = torch.einsum("bhts,bshv->bthv", maps, values)
    torch.testing.assert_close(layer.output(mixed.flatten(-2)), whole, rtol=1e-7, atol=1e-7)


@every_layer
def test_gates_begin_as_those_that_are_never_negative(name: str) -> None:
    torch.manual_seed(0)
    signed = LAYERS[name](WIDTH, HEADS, DIM, frame=SIGNED)
    plain = LAYERS[name](WIDTH, HEADS, DIM, frame=Frame(unit_keys=True))
    nothing = torch.zeros(1, 1, WIDTH)
    ours, theirs = (layer.head_inputs(nothing) for layer in (signed, plain))
    torch.testing.assert_close(ours.log_decay.exp(), theirs.log_decay.exp())
    assert (ours.sign == 1).all()
    assert theirs.sign is None


def test_shared_heads_share_their_sign() -> None:
    layer, x = build("mesa", num_key_value_heads=1), draw(20)
    assert isinstance(inputs := layer.head_inputs(x), HeadInputs)
    assert inputs.sign is not None
    assert inputs.sign.shape == (BATCH, 20, HEADS)
    assert (inputs.sign[..., 0] == inputs.sign[..., 1]).all()
    y, state = layer.extend(x[:, :12])
    end, _ = layer.extend(x[:, 12:], state)
    torch.testing.assert_close(torch.cat([y, end], 1), layer(x), rtol=1e-7, atol=1e-7)


def test_a_sign_without_a_forget_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match="signed_decay=True: must be False in a layer that never"):
        DeltaRuleLayer(6, 2, 3, frame=Frame(signed_decay=True))


def parity_layer(*, signed: bool) -> GatedLinearSelfAttention:
    """Build S_t = gamma_t S_{t-1} + v_t for bits, where v is 1 at a one and 0 at a zero."""
    layer = GatedLinearSelfAttention(2, 1, 1, frame=Frame(signed_decay=signed))
    assert layer.gates is not None
    with torch.no_grad():
        for weight in (layer.query.weight, layer.key.weight, layer.output.weight):
            weight.fill_(1.0)
        layer.value.weight.copy_(torch.tensor([[0.0, 1.0]]))
        for gate in (layer.gates.log_decay, layer.gates.beta):
            gate.weight.zero_()
            gate.bias.zero_()
        layer.gates.beta.bias.fill_(40.0)  # it writes all of v
    return layer


def bits_and_parities(count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    bits = torch.randint(2, (count, length), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(bits, 2).float(), (bits.cumsum(1) % 2).float()


def test_a_gate_set_by_hand_knows_the_parity_of_texts_of_any_length() -> None:
    """S_t = 1 - S_{t-1} at a one, S_t = S_{t-1} at a zero: S is 1 where the number of ones is odd."""
    layer = parity_layer(signed=True)
    with torch.no_grad():  # tanh(20) = 1 in float32
        layer.gates.log_decay.weight.copy_(torch.tensor([[40.0, -40.0]]))
    bits, parities = bits_and_parities(4, 5000, seed=0)
    torch.testing.assert_close(layer(bits)[..., 0], parities, rtol=0, atol=1e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_a_gate_trained_on_ten_bits_knows_the_parity_of_hundreds_if_it_may_be_negative(
    signed: bool,
) -> None:
    layer = parity_layer(signed=signed)
    gate = layer.gates.log_decay
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[0.3, -0.3]]))
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.5)
    for step in range(150):
        bits, parities = bits_and_parities(32, 10, seed=step)
        loss = (layer(bits)[..., 0] - parities).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits, parities = bits_and_parities(64, 400, seed=1000)
    found = (layer(bits)[:, 10:, 0] > 0.5).float()
    right = (found == parities[:, 10:]).float().mean()
    assert right > 0.99 if signed else right < 0.7
