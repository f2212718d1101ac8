"""Every layer keeps the contract, plain and in its fullest frame."""

from typing import Any

import pytest
from compiling import run_alone
from layer_contract import Case, LayerContract
from layer_sequences import SequenceContract

from mesaopt.layers import (
    DeltaRuleLayer,
    Frame,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    LinearSelfAttention,
    LonghornLayer,
    MesaLayer,
    SoftmaxSelfAttention,
)

FULL = Frame.mesanet2025()
CHANGES = {"frame": FULL, "chunk_size": 5}
SOLVER_CHANGE = {"solver": "recursive", "chunk_size": 5}


def chunks(size: int) -> dict[str, Any]:
    return {"chunk_size": size}


VARIANTS = (
    Case("linear", LinearSelfAttention, {}, CHANGES, ("query", "value"), chunks),
    Case("gated linear", GatedLinearSelfAttention, {}, CHANGES, ("query", "value"), chunks),
    Case("delta rule", DeltaRuleLayer, {}, CHANGES, ("value",), chunks),
    Case("gated delta rule", GatedDeltaRuleLayer, {}, CHANGES, ("value",), chunks),
    Case("Longhorn", LonghornLayer, {}, CHANGES, ("query", "value"), chunks),
    Case(
        "softmax",
        SoftmaxSelfAttention,
        changes={"frame": FULL, "scale": 1.0, "window": 5},
        linear_in=("value",),
        # Scores near 1e16 are known to some 1e9 only, and PyTorch's backward takes exponentials of
        # differences between two computations of them.
        at_1e8="unsupported",
    ),
    Case(
        "gated delta rule in full",
        GatedDeltaRuleLayer,
        {"frame": Frame.mesanet2025(forget_cap=0.9)},
        CHANGES,
        chunk_size=chunks,
    ),
    Case(
        "softmax in full",
        SoftmaxSelfAttention,
        {"frame": FULL},
        {"frame": Frame(unit_keys=True), "scale": 1.0, "window": 5},
    ),
    Case(
        "softmax in a window",
        SoftmaxSelfAttention,
        {"window": 33},
        {"frame": FULL, "scale": 1.0, "window": 5},
        linear_in=("value",),
        at_1e8="unsupported",
    ),
    Case(
        "linear with features of shifted keys",
        LinearSelfAttention,
        {"frame": Frame(key_shift=True, features=2)},
        CHANGES,
        ("value",),
        chunks,
        at_1e8="unsupported",  # products of four such keys and a value leave float32
    ),
)
MESA = (
    Case(
        "mesa 2023",
        MesaLayer.uncovering2023,
        changes={"unit_keys": True, "forget": True} | SOLVER_CHANGE,
        linear_in=("query", "value"),
        chunk_size=chunks,
        at_1e8="refused",  # a ridge of 1 next to 1e16
    ),
    Case(
        "mesa 2023 with unit keys",
        MesaLayer.uncovering2023,
        {"unit_keys": True},
        {"unit_keys": False, "forget": True} | SOLVER_CHANGE,
        linear_in=("value",),
        chunk_size=chunks,
    ),
    Case(
        "mesa 2023 with forgetting",
        MesaLayer.uncovering2023,
        {"unit_keys": True, "forget": True},
        {"unit_keys": False, "forget": False} | SOLVER_CHANGE,
        linear_in=("value",),
        chunk_size=chunks,
        at_1e8="refused",  # closed gates forget the ridge
    ),
    Case(
        "mesa 2025",
        MesaLayer.mesanet2025,
        changes={"ridge_floor": 0.5, "forget_cap": 0.9} | SOLVER_CHANGE,
        chunk_size=chunks,
    ),
    Case(
        "mesa with unit values",
        MesaLayer,
        {"gates": ("log_decay", "beta"), "frame": Frame(unit_values=True)},
        {
            "gates": ("log_decay",),
            "frame": Frame(),
            "ridge_floor": 0.25,
            "ridge_mode": "decayed",
        }
        | SOLVER_CHANGE,
        chunk_size=chunks,
        at_1e8="refused",  # as plain
    ),
    Case(
        "mesa with features of shifted keys",
        MesaLayer,
        {
            "gates": ("log_decay", "beta"),
            "frame": Frame(key_shift=True, features=1, unit_keys=True),
            "ridge_floor": 0.25,
        },
        {
            "gates": ("log_decay",),
            "frame": Frame(),
            "ridge_floor": 0.5,
            "ridge_mode": "decayed",
        }
        | SOLVER_CHANGE,
        linear_in=("value",),
        chunk_size=chunks,
    ),
    Case(
        "mesa in between",
        MesaLayer,
        {"gates": ("log_decay", "beta"), "frame": Frame(unit_keys=True, forget_cap=0.9975)},
        {
            "gates": ("log_decay",),
            "frame": Frame(unit_keys=True),
            "ridge_floor": 0.25,
            "ridge_mode": "decayed",
        }
        | SOLVER_CHANGE,
        linear_in=("value",),
        chunk_size=chunks,
    ),
)
POSITIONS = (
    Case(
        "linear with positions",
        LinearSelfAttention,
        {"frame": Frame(positions=True)},
        {"frame": Frame(), "chunk_size": 5},
        ("value",),
        chunks,
    ),
    Case(
        "softmax with positions",
        SoftmaxSelfAttention,
        {"frame": Frame(positions=True, convolution=4)},
        {"frame": Frame(convolution=4), "scale": 1.0, "window": 5},
        at_1e8="unsupported",  # as above
    ),
    Case(
        "mesa with positions",
        MesaLayer,
        {"gates": ("log_decay", "beta"), "frame": Frame(positions=True, unit_keys=True)},
        {
            "gates": ("log_decay",),
            "frame": Frame(unit_keys=True),
            "ridge_floor": 0.25,
            "ridge_mode": "decayed",
        }
        | SOLVER_CHANGE,
        linear_in=("value",),
        chunk_size=chunks,
    ),
)
# One key-value head for both queries, in the fullest frames.
ONE, TWO = {"num_key_value_heads": 1}, {"num_key_value_heads": 2}
SHARED = (
    Case(
        "softmax with shared keys",
        SoftmaxSelfAttention,
        {"frame": FULL} | ONE,
        {"frame": Frame(unit_keys=True), "scale": 1.0, "window": 5} | TWO,
    ),
    Case(
        "gated delta rule with shared keys",
        GatedDeltaRuleLayer,
        {"frame": Frame.mesanet2025(forget_cap=0.9)} | ONE,
        CHANGES | TWO,
        chunk_size=chunks,
    ),
    Case(
        "mesa with shared keys",
        MesaLayer.mesanet2025,
        ONE,
        {"ridge_floor": 0.5, "forget_cap": 0.9} | SOLVER_CHANGE | TWO,
        chunk_size=chunks,
    ),
)
CASES = {case.name: case for case in (*VARIANTS, *MESA, *POSITIONS, *SHARED)}
# Every part of a frame. What operators of other layers do is in tests/ops/test_compile.py, and a mesa layer
# in tests/models/test_sequence.py.
COMPILED = ("linear with positions", "softmax in full", "gated delta rule in full")


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
class TestContract(LayerContract, SequenceContract):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_layers_compile_for_all_lengths(name: str) -> None:
    run_alone(
        "from layer_contract import check_compiled; from test_contract import CASES\n"
        f"check_compiled(CASES[{name!r}])"
    )
