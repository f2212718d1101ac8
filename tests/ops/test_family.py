"""The operators other than mesa: their dense definitions, and the identities that tie them together."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_rules import (
    CLOSE,
    DOUBLE,
    RULES,
    SINGLE,
    Rule,
    assert_same_state,
    differentiate,
    draw,
    every,
    pick,
    run_by_steps,
    window,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mesaopt import ops
from mesaopt.ops import LinearState, chunks, reference

GATED = tuple(rule for rule in RULES if "log_decay" in rule.gates)
CHUNKED = tuple(rule for rule in RULES if rule.chunked)
sizes = st.tuples(*(st.integers(1, n) for n in (2, 12, 3, 5, 5)), st.integers(1, 13))


@every(RULES)
@given(size=sizes)
@settings(deadline=None, max_examples=20, derandomize=True)
def test_values_and_gradients_equal_the_definition(rule: Rule, size: tuple[int, ...]) -> None:
    *shape, chunk_size = size
    inputs = pick(rule, draw(*shape))
    upstream = torch.randn_like(inputs["v"])
    extra = {"chunk_size": chunk_size} if rule.chunked else {}
    ours = differentiate(lambda **x: rule.run(**x, **extra), inputs, upstream)
    theirs = differentiate(rule.define, inputs, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@every(RULES)
@pytest.mark.parametrize(("length", "key", "value"), [(1, 3, 5), (150, 1, 5), (131, 5, 3)])
def test_odd_sizes_at_the_usual_chunk(rule: Rule, length: int, key: int, value: int) -> None:
    inputs = pick(rule, draw(2, length, 2, key, value))
    upstream = torch.randn_like(inputs["v"])
    ours = differentiate(rule.run, inputs, upstream)
    theirs = differentiate(rule.define, inputs, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@every(CHUNKED)
def test_chunk_size_changes_rounding_only(rule: Rule) -> None:
    inputs = pick(rule, draw(1, 70, 2, 4, 3))
    whole = rule.run(**inputs, chunk_size=70)
    for chunk_size in (1, 7, 16, 64, 1000):
        part = rule.run(**inputs, chunk_size=chunk_size)
        torch.testing.assert_close(part, whole, **CLOSE)


@every(RULES)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_float32_is_as_exact_at_every_gradient_scale(rule: Rule, scale: float) -> None:
    torch.manual_seed(0)
    inputs = pick(rule, draw(1, 100, 2, 8, 5))
    upstream = torch.randn_like(inputs["v"])
    exact = differentiate(rule.define, inputs, upstream * scale)
    single = {name: x.to(SINGLE) for name, x in inputs.items()}
    ours = differentiate(rule.run, single, (upstream * scale).to(SINGLE))
    for a, b in zip(ours, exact, strict=True):
        # A few roundings of 6e-8 each for inputs, sums and triangular solves; they average out over a
        # tensor. Measured: 1e-7 to 5e-7.
        assert (a.double() - b).norm() < 2e-6 * b.norm()


@every(RULES)
def test_gradcheck(rule: Rule) -> None:
    inputs = pick(rule, draw(1, 3, 1, 2, 1))
    leaves = [x.requires_grad_() for x in inputs.values()]
    extra = {"chunk_size": 2} if rule.chunked else {}

    def call(*x: Tensor) -> tuple[Tensor, ...]:
        output, state = rule.run(**dict(zip(inputs, x, strict=True)), **extra)
        return (output, *(part for part in state if part is not None))

    with sdpa_kernel(SDPBackend.MATH):  # the other ways to softmax have no second derivative
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@every(CHUNKED)
def test_gradients_reach_the_initial_state(rule: Rule) -> None:
    inputs = pick(rule, draw(1, 3, 2, 3, 2))
    cross = torch.randn(1, 2, 2, 3, dtype=DOUBLE, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        return rule.run(**inputs, initial_state=LinearState(x), chunk_size=2).output

    assert torch.autograd.gradcheck(call, cross)


@every(RULES)
def test_forward_equals_steps_equals_any_split(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 20, 2, 5, 3))
    extra = {"chunk_size": 8} if rule.chunked else {}
    whole = rule.run(**inputs, **extra)
    steps = run_by_steps(rule, inputs)
    torch.testing.assert_close(steps.output, whole.output, **CLOSE)
    assert_same_state(steps.state, whole.state)
    for at in (1, 8, 13, 19):
        first = rule.run(**window(inputs, 0, at), **extra)
        for second in (
            rule.run(**window(inputs, at, 20), initial_state=first.state, **extra),
            run_by_steps(rule, window(inputs, at, 20), first.state),
        ):
            joined = torch.cat([first.output, second.output], dim=1)
            torch.testing.assert_close(joined, whole.output, **CLOSE)
            assert_same_state(second.state, whole.state)


def gates(kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind == "mixed":
        return torch.where(torch.rand(shape) < 0.3, -50.0, -1e-3).double()
    return torch.full(shape, {"none": 0.0, "strong": -50.0, "all": -torch.inf}[kind], dtype=DOUBLE)


@every(GATED)
@pytest.mark.parametrize("kind", ["none", "strong", "mixed"])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_extreme_gates(rule: Rule, kind: str, dtype: torch.dtype) -> None:
    inputs = pick(rule, draw(1, 150, 2, 4, 3)) | {"log_decay": gates(kind, (1, 150, 2))}
    upstream = torch.randn_like(inputs["v"])
    theirs = differentiate(rule.define, inputs, upstream)
    ours = differentiate(
        rule.run, {name: x.to(dtype) for name, x in inputs.items()}, upstream.to(dtype)
    )
    for a, b in zip(ours, theirs, strict=True):
        # As above. A gate of -50 leaves gradients of 1e-22 by itself: the gradient of log_decay then
        # is compared with the size of a usual one.
        tolerance = 1e-11 if dtype is DOUBLE else 2e-6
        assert (a.double() - b).norm() <= tolerance * b.norm().clamp_min(1e-3)


@every(GATED)
def test_a_gate_of_minus_infinity_forgets_without_nan(rule: Rule) -> None:
    inputs = pick(rule, draw(1, 30, 2, 4, 3)) | {"log_decay": gates("all", (1, 30, 2))}
    out, *gradients = differentiate(rule.run, inputs, torch.ones_like(inputs["v"]))
    q, k, v, beta = (inputs[name] for name in ("q", "k", "v", "beta"))
    expected = v * (beta * (k * q).sum(-1)).unsqueeze(-1)  # only the newest pair is left
    torch.testing.assert_close(out, expected, **CLOSE)
    assert all(x.isfinite().all() for x in gradients)


def test_a_strong_gate_does_no_harm_to_the_gates_after_it() -> None:
    log_decay = torch.full((64,), -1e-3)
    log_decay[1:20] = -1e4
    exact = (-1e-3 * torch.arange(1, 44, dtype=DOUBLE)).exp()
    # float32 roundings of 6e-8; a difference of running sums would be off by 1e-2.
    torch.testing.assert_close(
        chunks.decay_between(log_decay)[20:-1, 20][1:].double(), exact[:42], rtol=1e-6, atol=0.0
    )


@every(RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_its_type_and_a_float32_state(rule: Rule, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) for name, x in pick(rule, draw(1, 70, 2, 4, 3)).items()}
    whole = rule.run(**inputs)
    steps = run_by_steps(rule, inputs)
    exact = rule.define(**{name: x.double() for name, x in inputs.items()})
    for output, state in (whole, steps):
        assert output.dtype is dtype
        assert state[0].dtype is (dtype if rule.name == "softmax_attention" else SINGLE)
        # One rounding of the output; softmax attention may also round its weights.
        assert (output.double() - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()


@every(RULES)
def test_autocast_does_not_lower_the_precision(rule: Rule) -> None:
    inputs = pick(rule, draw(1, 70, 2, 4, 3, SINGLE))
    expected = rule.run(**inputs)
    step = {name: x[:, 0] for name, x in inputs.items()}
    with torch.autocast("cpu"):
        ours = rule.run(**inputs)
        stepped = rule.step(**step)
    assert ours.output.dtype is SINGLE
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(stepped, rule.step(**step), rtol=0.0, atol=0.0)


@every(CHUNKED)
def test_vmap_over_models(rule: Rule) -> None:
    inputs = pick(rule, draw(3, 10, 2, 4, 3))
    stacked = {name: x.unsqueeze(1) for name, x in inputs.items()}  # [M,1,T,H,..]
    ours = torch.func.vmap(lambda x: rule.run(**x, chunk_size=4).output)(stacked)
    torch.testing.assert_close(ours.squeeze(1), rule.run(**inputs).output, **CLOSE)


# Identities of docs/family.md.


def test_delta_rule_is_online_gradient_descent() -> None:
    inputs = draw(1, 30, 1, 4, 3)
    q, k, v = (inputs[name][0, :, 0] for name in ("q", "k", "v"))
    weights = torch.zeros(3, 4, dtype=DOUBLE, requires_grad=True)
    expected = []
    for t in range(30):
        loss = (v[t] - weights @ k[t]).square().sum() / 2
        (slope,) = torch.autograd.grad(loss, weights)
        weights = (weights - inputs["beta"][0, t, 0] * slope).detach().requires_grad_()
        expected.append(weights @ q[t])
    output, state = ops.delta_rule(*(inputs[n] for n in ("q", "k", "v")), beta=inputs["beta"])
    torch.testing.assert_close(output[0, :, 0], torch.stack(expected), **CLOSE)
    torch.testing.assert_close(state.cross[0, 0], weights, **CLOSE)


def test_linear_attention_is_gradient_descent_on_the_alignment() -> None:
    inputs = draw(1, 30, 1, 4, 3)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    weights = torch.zeros(3, 4, dtype=DOUBLE, requires_grad=True)
    loss = (v[0, :, 0] - k[0, :, 0] @ weights.mT).square().sum() / 2
    (slope,) = torch.autograd.grad(loss, weights)
    # One step of size 1 from zero on all pairs, the last position's map.
    torch.testing.assert_close(ops.linear_attention(q, k, v).state.cross[0, 0], -slope, **CLOSE)


@pytest.mark.parametrize("name", ["linear_attention", "delta_rule"])
def test_gates_that_keep_everything_change_nothing(name: str) -> None:
    inputs = draw(2, 70, 2, 4, 3)
    q, k, v = (inputs[x] for x in ("q", "k", "v"))
    zero, one = torch.zeros(2, 70, 2, dtype=DOUBLE), torch.ones(2, 70, 2, dtype=DOUBLE)
    plain, gated = getattr(ops, name), getattr(ops, f"gated_{name}")
    torch.testing.assert_close(gated(q, k, v, log_decay=zero, beta=one), plain(q, k, v), **CLOSE)
    torch.testing.assert_close(gated(q, k, v, log_decay=zero), plain(q, k, v), **CLOSE)


def test_longhorn_minimises_its_objective() -> None:
    inputs = draw(1, 12, 1, 4, 3)
    state = None
    before = torch.zeros(3, 4, dtype=DOUBLE)
    for t in range(12):
        k, v, beta = (inputs[name][0, t, 0] for name in ("k", "v", "beta"))
        _, state = ops.longhorn_step(
            *(inputs[name][:, t] for name in ("q", "k", "v")), state, beta=inputs["beta"][:, t]
        )
        # The proximal problem as ordinary least squares: one row for the pair, one per old weight.
        rows = torch.cat([beta.sqrt() * k[None], torch.eye(4, dtype=DOUBLE)])
        targets = torch.cat([beta.sqrt() * v[None], before.mT])
        before = torch.linalg.lstsq(rows, targets).solution.mT
        torch.testing.assert_close(state.cross[0, 0], before, **CLOSE)


def test_longhorn_is_a_delta_rule_with_a_smaller_step() -> None:
    inputs = draw(2, 70, 2, 4, 3)
    q, k, v, beta = (inputs[name] for name in ("q", "k", "v", "beta"))
    smaller = beta / (1 + beta * k.square().sum(-1))
    torch.testing.assert_close(
        ops.longhorn(q, k, v, beta=beta), ops.delta_rule(q, k, v, beta=smaller), **CLOSE
    )


def test_delta_rule_with_orthonormal_keys_is_linear_attention() -> None:
    k = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE)).Q.reshape(1, 6, 1, 6)
    q, v = torch.randn(2, 1, 6, 1, 6, dtype=DOUBLE)
    torch.testing.assert_close(ops.delta_rule(q, k, v), ops.linear_attention(q, k, v), **CLOSE)


def test_softmax_attention_is_a_kernel_average() -> None:
    inputs = draw(1, 9, 1, 4, 3)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    weights = torch.exp((k[0, :, 0] @ q[0, -1, 0]) * 0.7)
    expected = (weights[:, None] * v[0, :, 0]).sum(0) / weights.sum()
    output = ops.softmax_attention(q, k, v, scale=0.7).output
    torch.testing.assert_close(output[0, -1, 0], expected, **CLOSE)


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "family.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    with torch.random.fork_rng():
        exec(compile(code, "family.md", "exec"), {})


def test_longhorn_is_stable_with_long_keys() -> None:
    inputs = pick(RULES[4], draw(1, 100, 2, 4, 3))
    inputs["k"] = inputs["k"] * 1e3
    torch.testing.assert_close(
        ops.longhorn(**inputs).output, reference.longhorn(**inputs), rtol=1e-9, atol=1e-9
    )
