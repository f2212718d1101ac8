"""Conjugate gradients: exact scaling, few steps, and no more work than without a preconditioner."""

import pytest
import torch
from mesa_problems import make
from torch.utils.flop_counter import FlopCounterMode

from mesaopt.ops import ConjugateGradient, mesa
from mesaopt.ops.mesa import factors

LOOSE = ConjugateGradient(rtol=1e-4)


@pytest.mark.parametrize("exponent", [-26, 26])
def test_conjugate_gradients_scale_exactly_with_powers_of_two(exponent):
    inputs = make(30, dtype=torch.float32)
    scaled = {**inputs, "q": inputs["q"] * 2.0**exponent}
    wanted, found = (mesa(**x, solver="cg").output for x in (inputs, scaled))
    assert torch.equal(found, wanted * 2.0**exponent)


def test_few_steps_where_little_is_forgotten():
    for gate in (0.002, 0.06):  # mean gamma 0.999 and 0.97
        inputs = make(512, gate=gate, batch=1, heads=2, key=64, value=64, dtype=torch.float32)
        info = mesa(**inputs, solver=LOOSE).info
        assert info.steps.max() <= 4
        assert info.worst_residual <= 1e-4


@pytest.mark.parametrize("gate", [0.01, 0.06, 0.2, 0.5, 3.0])
def test_never_more_steps_than_plain_conjugate_gradients(gate, monkeypatch):
    inputs = make(256, gate=gate, batch=1, heads=2, key=32, value=1, dtype=torch.float32)
    steps = mesa(**inputs, solver=LOOSE).info.steps.max()
    monkeypatch.setattr(factors, "MIN_LOG_DECAY", 1.0)  # no chunk remembers enough
    assert steps <= mesa(**inputs, solver=LOOSE).info.steps.max()


@pytest.mark.parametrize("uneven", [0.0, 1.0])
@pytest.mark.parametrize("gate", [0.008, 0.06, 0.08, 0.12, 0.35, "mixed"])
def test_no_more_products_than_plain_conjugate_gradients(gate, uneven, monkeypatch):
    width = 0.06 if gate == "mixed" else gate
    inputs = make(512, gate=width, batch=1, heads=2, key=64, value=1, dtype=torch.float32)
    channels = torch.arange(1, 65) ** -uneven
    for name in "qk":
        inputs[name] = torch.nn.functional.normalize(inputs[name].detach() * channels, dim=-1)
    if gate == "mixed":
        inputs["log_decay"] = inputs["log_decay"].detach() * torch.tensor([1.0, 6.0])

    def count():
        with FlopCounterMode(display=False) as counter:
            info = mesa(**inputs, solver=LOOSE).info
        return info, counter.get_total_flops()

    info, flops = count()
    if width <= 0.06 and gate != "mixed":  # mean gamma 0.97 or more
        assert info.steps.max() <= 4
    monkeypatch.setattr(factors, "MIN_LOG_DECAY", 1.0)  # no chunk remembers enough
    plain, plain_flops = count()
    assert plain.chunk_size == info.chunk_size
    # 5 % for chunks that forget just little enough: their factors save no more than they cost.
    assert flops <= 1.05 * plain_flops
