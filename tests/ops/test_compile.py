"""Every operator compiles into one graph, and into few for all lengths, with the plain code's numbers."""

import pytest
import torch
from compiling import Compiled, check_lengths, run_alone
from operator_rules import RULES, Rule, draw, window
from torch import Tensor

from mesaopt import ops

# Sums of at most 200 products, enlarged by systems with a condition number below 1e3.
TOLERANCE = 200 * 1e3 * torch.finfo(torch.float64).eps


def _mesa(solver: str, mode: str | None) -> Rule:
    settings = {"ridge": 0.5, "solver": ops.Chebyshev(steps=2) if solver == "chebyshev" else solver}
    if mode is None:
        return Rule("mesa", ("beta",), settings)
    return Rule("mesa", ("beta", "log_decay"), settings | {"ridge_mode": mode})


GROUPS = {
    "forget nothing": [rule for rule in RULES if "log_decay" not in rule.gates],
    "forget": [rule for rule in RULES if "log_decay" in rule.gates],
    "exact": [_mesa("auto", None), _mesa("auto", "decayed")],
    "cg": [_mesa("cg", "static")],
    "recursive": [_mesa("recursive", "static")],
    "fixed steps": [_mesa("chebyshev", "static")],
}


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= TOLERANCE * wanted.norm()


def check(rule: Rule) -> None:
    """Compile an operator for sequences of many lengths, and its step."""
    torch.manual_seed(0)
    names = ("q", "k", "v", *rule.gates)

    def function(*inputs: Tensor) -> Tensor:
        return rule.run(**dict(zip(names, inputs, strict=True))).output

    def inputs(length: int) -> list[Tensor]:
        drawn = draw(2, length, 2, 4, 3)
        if rule.name == "mesa":
            drawn["log_decay"] *= 0.05
        return [drawn[name] for name in names]

    check_lengths(function, inputs, assert_close)
    if rule.name != "mesa":  # of which layers compile the step
        whole = dict(zip(names, inputs(6), strict=True))
        state = rule.run(**window(whole, 0, 5)).state
        last = {name: x[:, 5] for name, x in whole.items()}
        found = Compiled(lambda state: rule.step(**last, state=state))(state).output
        assert_close(found, rule.step(**last, state=state).output)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_operators_compile_once_for_all_lengths(group: str) -> None:
    run_alone(f"from test_compile import *\nfor rule in GROUPS[{group!r}]: check(rule)")
