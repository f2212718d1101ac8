"""Torch's transforms of every operator and solver: right, or refused by name."""

import re

import pytest
import torch
from operator_rules import CLOSE, RULES, Rule, draw, every, pick
from torch.autograd.functional import jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

GATES = ("log_decay", "beta")
IMPLICIT = tuple(
    Rule("mesa", gates, {"ridge": 0.5, "ridge_mode": mode, "solver": solver})
    for solver, gates, mode in (
        ("exact", (), "static"),
        ("exact", GATES, "decayed"),
        ("cg", (), "static"),
        ("cg", GATES, "static"),
        ("cg", GATES, "decayed"),
        ("recursive", (), "static"),
        ("recursive", GATES, "static"),
        ("recursive", GATES, "decayed"),
    )
)
EXPLICIT = tuple(
    Rule("mesa", gates, {"ridge": 0.5, "ridge_mode": mode, "solver": solver})
    for solver in ("neumann", "chebyshev")
    for gates, mode in (((), "static"), (GATES, "static"), (GATES, "decayed"))
)


def problem(rule: Rule, name: str):
    inputs = pick(rule, draw(1, 3, 1, 2, 2))
    extra = {"chunk_size": 2} if rule.chunked else {}

    def function(x: torch.Tensor) -> torch.Tensor:
        return rule.run(**inputs | {name: x}, **extra).output

    return function, inputs[name]


def names(rule: Rule) -> tuple[str, ...]:
    return ("q", "k", "v", *rule.gates)


@every((*RULES, *IMPLICIT, *EXPLICIT))
def test_reverse_mode(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)
        with sdpa_kernel(SDPBackend.MATH):
            wanted = jacobian(function, x)
            torch.testing.assert_close(torch.func.jacrev(function)(x), wanted, **CLOSE)
            twice = torch.func.jacrev(torch.func.jacrev(function))(x)
        assert twice.isfinite().all()


# The decays of gates have no forward mode: compilation cannot follow a Function that has one.
@every(tuple(rule for rule in (*RULES, *EXPLICIT) if "log_decay" not in rule.gates))
def test_forward_mode(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)
        with sdpa_kernel(SDPBackend.MATH):
            wanted = jacobian(function, x)
            tangent = torch.randn_like(x)
            found = torch.func.jvp(function, (x,), (tangent,))[1]
            torch.testing.assert_close(
                found, (wanted * tangent).sum((-4, -3, -2, -1)[-x.dim() :]), **CLOSE
            )
            torch.testing.assert_close(torch.func.jacfwd(function)(x), wanted, **CLOSE)


@every(tuple(rule for rule in IMPLICIT if "log_decay" not in rule.gates))
def test_forward_mode_is_refused_by_name(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)
        message = "mesa: forward-mode derivatives are not supported by solvers with implicit"
        with pytest.raises(NotImplementedError, match=message):
            torch.func.jacfwd(function)(x)


@every(IMPLICIT)
def test_batched_gradients_are_refused_by_name(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)
        message = re.escape("mesa: vectorize=True and is_grads_batched=True of torch.autograd")
        with pytest.raises(NotImplementedError, match=message):
            jacobian(function, x, vectorize=True)
