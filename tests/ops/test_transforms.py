"""Torch's transforms of every operator and solver: right, or refused by name."""

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


@every((*RULES, *IMPLICIT, *EXPLICIT))
def test_forward_mode(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)
        wanted = jacobian(function, x)
        tangent = torch.randn_like(x)
        right = (wanted * tangent).sum((-4, -3, -2, -1)[-x.dim() :])
        torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], right, **CLOSE)
        torch.testing.assert_close(torch.func.jacfwd(function)(x), wanted, **CLOSE)


@every((*RULES, *IMPLICIT))  # a graph of all steps takes seconds
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_linearisation(rule: Rule) -> None:
    function, x = problem(rule, "k")
    tangent = torch.randn_like(x)
    wanted = torch.func.jvp(function, (x,), (tangent,))[1]
    torch.testing.assert_close(torch.func.linearize(function, x)[1](tangent), wanted, **CLOSE)


@every((*RULES, *IMPLICIT, *EXPLICIT))
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobians(rule: Rule, strategy: str) -> None:
    for name in ("k", *rule.gates):
        function, x = problem(rule, name)
        found = jacobian(function, x, vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, jacobian(function, x), **CLOSE)


@every((*RULES, *IMPLICIT, *EXPLICIT))
def test_hessians(rule: Rule) -> None:
    for name in names(rule):
        function, x = problem(rule, name)

        def loss(x: torch.Tensor, function=function) -> torch.Tensor:
            return function(x).square().sum()

        with sdpa_kernel(SDPBackend.MATH):
            found = torch.func.hessian(loss)(x)
            wanted = torch.autograd.functional.hessian(loss, x)
        torch.testing.assert_close(found, wanted, **CLOSE)


@every(IMPLICIT + EXPLICIT)
def test_forward_mode_inside_forward_mode_is_refused_by_name(rule: Rule) -> None:
    if rule in EXPLICIT and not rule.gates:
        return  # made of torch's own operations alone
    function, x = problem(rule, "q")
    with pytest.raises(NotImplementedError, match="forward mode inside forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(function))(x)
