"""The operators behind one interface, with random inputs for them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from mesaopt import ops
from mesaopt.ops import KeyValueState, LinearState, MesaOutput, Output, reference

DOUBLE, SINGLE = torch.float64, torch.float32

# float64 against float64: states and outputs are sums of at most some 200 products of numbers near 1,
# and a chunk's triangular system has a condition number below about 100 here (keys are not longer than
# 1), so 200 * 100 roundings of 1.1e-16 in the worst case.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@dataclass(frozen=True)
class Rule:
    """An operator of `mesaopt.ops`, and the gates and settings to call it with."""

    name: str
    gates: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Callable[..., Output]:
        return functools.partial(getattr(ops, self.name), **self.settings)

    @property
    def step(self) -> Callable[..., Output]:
        return functools.partial(getattr(ops, f"{self.name}_step"), **self.settings)

    def __str__(self) -> str:
        return " ".join([self.name, *self.gates, *map(str, self.settings.values())])

    @property
    def define(self) -> Callable[..., Tensor]:
        return functools.partial(getattr(reference, self.name), **self.settings)

    @property
    def chunked(self) -> bool:
        return self.name != "softmax_attention"


# Operators that return an `Output` and have a definition of the same signature.
RULES = (
    Rule("linear_attention"),
    Rule("gated_linear_attention", ("log_decay", "beta")),
    Rule("delta_rule", ("beta",)),
    Rule("gated_delta_rule", ("log_decay", "beta")),
    Rule("longhorn", ("beta",)),
    Rule("softmax_attention"),
    Rule("softmax_attention", settings={"window": 5}),
)
MESA = (
    Rule("mesa", settings={"ridge": 0.5}),
    Rule("mesa", ("log_decay", "beta"), {"ridge": 0.5, "ridge_mode": "static"}),
    Rule("mesa", ("log_decay", "beta"), {"ridge": 0.5, "ridge_mode": "decayed"}),
)


def every(rules: tuple[Rule, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rule", rules, ids=str)


def draw(
    batch: int, length: int, heads: int, key: int, value: int, dtype: torch.dtype = DOUBLE
) -> dict[str, Tensor]:
    q, k = (torch.randn(batch, length, heads, key, dtype=DOUBLE) for _ in range(2))
    gate = (batch, length, heads)
    inputs = {
        "q": q,
        "k": k / k.norm(dim=-1, keepdim=True).clamp_min(1),
        "v": torch.randn(batch, length, heads, value, dtype=DOUBLE),
        "log_decay": -torch.rand(gate, dtype=DOUBLE),
        "beta": torch.rand(gate, dtype=DOUBLE),
    }
    return {name: x.to(dtype) for name, x in inputs.items()}


def pick(rule: Rule, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("q", "k", "v", *rule.gates)}


def window(inputs: dict[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    return {name: x[:, begin:end] for name, x in inputs.items()}


def run_by_steps(
    rule: Rule, inputs: dict[str, Tensor], state: LinearState | KeyValueState | None = None
) -> Output:
    outputs = []
    for t in range(inputs["q"].shape[1]):
        output, state = rule.step(**{name: x[:, t] for name, x in inputs.items()}, state=state)
        outputs.append(output)
    assert state is not None
    return Output(torch.stack(outputs, dim=1), state)


def differentiate(
    function: Callable[..., Tensor | Output], inputs: dict[str, Tensor], upstream: Tensor
) -> list[Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    result = function(**leaves)
    out = result.output if isinstance(result, Output | MesaOutput) else result
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), upstream)]


def assert_same_state(ours: LinearState | KeyValueState, theirs: object) -> None:
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours, theirs, **CLOSE)
