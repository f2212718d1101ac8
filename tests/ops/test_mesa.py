"""The mesa operator against its dense definition, in values and gradients, and what it promises."""

import itertools
import math
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mesaopt.config import LinearSystemConfig
from mesaopt.errors import SolveError, SolveWarning
from mesaopt.ops import (
    MesaState,
    chunked,
    gated_linear_attention,
    linear_attention,
    mesa,
    mesa_step,
    reference,
)
from mesaopt.tasks import LinearSystem

EPS = torch.finfo(torch.float64).eps
# Every solve below has a condition number under 1e3 in float64; results then agree to some 1e3 EPS,
# times the 1e1 to 1e2 roundings of a sum over positions.
CLOSE = 1e5 * EPS
NAMES = ("q", "k", "v", "ridge", "beta", "log_decay")
EXACT_MODES = [(None, "static"), (0.05, "decayed")]
MODES = [*EXACT_MODES, (0.05, "static")]
DIRECT = ("auto", "cg", "recursive")


def make(time, *, gate=0.05, batch=2, heads=2, key=4, value=3, ridge=0.25, seed=0, dtype=None):
    """Unit queries and keys, normal values, gates up to exp(-gate), ridges from `ridge` up."""
    random = torch.Generator().manual_seed(seed)
    dtype = dtype or torch.float64

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(batch, time, heads, key), dim=-1) for _ in "qk")
    given = {
        "q": q,
        "k": k,
        "v": normal(batch, time, heads, value),
        "ridge": ridge * (1 + uniform(heads, key)),
        "beta": uniform(batch, time, heads),
        "log_decay": None if gate is None else -gate * uniform(batch, time, heads),
    }
    return {n: None if x is None else x.to(dtype).requires_grad_() for n, x in given.items()}


def make_state(seed=1, *, batch=2, heads=2, key=4, value=3):
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, heads, key, key, generator=random, dtype=torch.float64)
    cross = torch.randn(batch, heads, value, key, generator=random, dtype=torch.float64)
    past = -torch.rand(batch, heads, generator=random, dtype=torch.float64)
    return MesaState(*(x.requires_grad_() for x in (root @ root.mT / key, cross, past)))


def error(found, wanted):
    """Relative error in the Frobenius norm; 0 where both are 0."""
    found, wanted = found.detach().double(), wanted.detach().double()
    scale = wanted.norm().item()
    return (found - wanted).norm().item() / (scale or 1.0)


def gradients(output, inputs, upstream):
    tensors = [x for x in inputs.values() if x is not None]
    return torch.autograd.grad(output, tensors, upstream)


def reference_of(inputs, mode, state=None):
    exact = {n: None if x is None else x.detach().double() for n, x in inputs.items()}
    exact = {n: None if x is None else x.requires_grad_() for n, x in exact.items()}
    output, end = reference.mesa(**exact, ridge_mode=mode, state=state)
    return exact, output, end


def compare(inputs, mode, *, tolerance, **options):
    """Check values, final state and every gradient against the dense definition in float64."""
    result = mesa(**inputs, ridge_mode=mode, **options)
    exact, wanted, end = reference_of(inputs, mode)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
    upstream = upstream.to(result.output.dtype)
    found_gradients = gradients(result.output, inputs, upstream)
    wanted_gradients = gradients(wanted, exact, upstream.double())
    errors = {"output": error(result.output, wanted)}
    errors |= {f"state {i}": error(a, b) for i, (a, b) in enumerate(zip(result.state, end))}  # noqa: B905
    present = [n for n in NAMES if inputs[n] is not None]
    for name, found, right in zip(present, found_gradients, wanted_gradients, strict=True):
        errors[f"d{name}"] = error(found, right)
    assert max(errors.values()) <= tolerance, errors
    return result


@pytest.fixture
def unchecked():
    """Turn the run-time checks of annotations off, which would come before the operator's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Values and gradients


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("method", DIRECT)
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_values_and_gradients_are_those_of_the_definition(method, gate, mode, chunk_size):
    compare(make(21, gate=gate), mode, tolerance=CLOSE, method=method, chunk_size=chunk_size)


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize(("method", "steps"), [("neumann", 1200), ("chebyshev", 240)])
def test_fixed_iterations_converge_to_the_definition(method, steps, gate, mode):
    # The error shrinks by 1 - 1/condition, or the root of it, a step: below 1e-12 after these steps.
    compare(make(9, gate=gate, ridge=0.5), mode, tolerance=1e-10, method=method, max_steps=steps)


@settings(max_examples=40, deadline=None)
@given(
    time=st.integers(1, 20),
    key=st.integers(1, 5),
    value=st.integers(1, 5),
    chunk_size=st.integers(1, 9),
    method=st.sampled_from(DIRECT),
    case=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_any_size_works(time, key, value, chunk_size, method, case, seed):
    gate, mode = case
    inputs = make(time, gate=gate, key=key, value=value, seed=seed)
    compare(inputs, mode, tolerance=CLOSE, method=method, chunk_size=chunk_size)


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("method", ["auto", "cg", "recursive", "neumann", "chebyshev"])
def test_gradcheck(method, gate, mode):
    inputs, state = make(5, gate=gate, batch=1, key=2, value=1), make_state(batch=1, key=2, value=1)
    present = [n for n in NAMES if inputs[n] is not None]

    def function(*tensors):
        named = dict(zip(present, tensors[:-3], strict=True))
        result = mesa(
            **named, initial_state=MesaState(*tensors[-3:]), ridge_mode=mode,
            method=method, chunk_size=2, max_steps=3 if method in ("neumann", "chebyshev") else None,
        )  # fmt: skip
        return result.output, *result.state

    tensors = [inputs[n] for n in present]
    assert torch.autograd.gradcheck(function, (*tensors, *state))


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("chunk_size", [2, 8])
def test_gradgradcheck(gate, mode, chunk_size):
    inputs = make(4, gate=gate, batch=1, heads=1, key=2, value=1)
    present = [n for n in NAMES if inputs[n] is not None]

    def function(*tensors):
        named = dict(zip(present, tensors, strict=True))
        return mesa(**named, ridge_mode=mode, chunk_size=chunk_size).output

    assert torch.autograd.gradgradcheck(function, [inputs[n] for n in present])


def test_prefix_ridge_regression_by_scipy():
    inputs = make(12, gate=None)
    inputs["beta"] = None
    output = mesa(**inputs).output.detach().numpy()
    q, k, v, ridge = (inputs[n].detach().numpy() for n in ("q", "k", "v", "ridge"))
    for b, t, h in itertools.product(range(2), range(12), range(2)):
        past, targets = k[b, : t + 1, h], v[b, : t + 1, h]
        gram = past.T @ past + np.diag(ridge[h])
        fit = scipy.linalg.solve(gram, past.T @ targets, assume_a="pos")
        np.testing.assert_allclose(output[b, t, h], q[b, t, h] @ fit, rtol=0, atol=CLOSE)


# Accuracy in single precision. Rounding unit 6e-8; the condition number is up to about
# (largest Gram eigenvalue / ridge), but unit keys make the Gram matrix itself well conditioned.


@pytest.mark.parametrize("upstream_scale", [1.0, 1e-8])
@pytest.mark.parametrize(("ridge", "tolerance"), [(0.25, 1e-5), (1e-3, 1e-3)])
@pytest.mark.parametrize(("time", "key"), [(64, 16), (64, 64), (200, 24)])
def test_single_precision_on_unit_keys(time, key, ridge, tolerance, upstream_scale):
    for gate, mode in ((None, "static"), (0.02, "static"), (0.02, "decayed")):
        inputs = make(
            time, gate=gate, batch=1, heads=1, key=key, value=key, ridge=ridge, dtype=torch.float32
        )
        result = mesa(**inputs, ridge_mode=mode)
        exact, wanted, _ = reference_of(inputs, mode)
        random = torch.Generator().manual_seed(9)
        upstream = torch.randn(result.output.shape, generator=random) * upstream_scale
        assert error(result.output, wanted) <= tolerance
        pairs = zip(
            gradients(result.output, inputs, upstream),
            gradients(wanted, exact, upstream.double()),
            strict=True,
        )
        assert max(error(a, b) for a, b in pairs) <= tolerance


@pytest.mark.slow
def test_single_precision_on_the_linear_system():
    config = LinearSystemConfig(dim=20, length=1024)
    states = LinearSystem(config).sample(1, seed=0).states
    inputs = {
        "q": states[:, 1:, None].clone(),
        "k": states[:, :-1, None].clone(),
        "v": states[:, 1:, None].clone(),
        "ridge": torch.ones(1, 20),
        "beta": None,
        "log_decay": None,
    }
    for x in inputs.values():
        if x is not None:
            x.requires_grad_()
    compare(inputs, "static", tolerance=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_solves_are_linear_in_the_query_and_the_upstream_gradient(scale, gate, mode):
    inputs = make(40, gate=gate, dtype=torch.float32)
    inputs["beta"] = None
    once = mesa(**inputs, ridge_mode=mode)
    upstream = torch.randn(once.output.shape, generator=torch.Generator().manual_seed(9))
    wanted = gradients(once.output, inputs, upstream)
    scaled = {**inputs, "q": (inputs["q"] * scale).detach().requires_grad_()}
    more = mesa(**scaled, ridge_mode=mode)
    # The scale itself is rounded: a rounding unit, 6e-8, times the condition number, 40 / 0.25 at most
    # and e times that where the ridge has faded.
    assert error(more.output / scale, once.output) <= 3e-5
    found = gradients(mesa(**inputs, ridge_mode=mode).output, inputs, upstream * scale)
    assert max(error(a / scale, b) for a, b in zip(found, wanted, strict=True)) <= 3e-5


@pytest.mark.parametrize("exponent", [-26, 26])
def test_conjugate_gradients_scale_exactly_with_powers_of_two(exponent):
    inputs = make(30, dtype=torch.float32)
    scaled = {**inputs, "q": inputs["q"] * 2.0**exponent}
    wanted, found = (mesa(**x, method="cg").output for x in (inputs, scaled))
    assert torch.equal(found, wanted * 2.0**exponent)


# Gates at their limits


@pytest.mark.parametrize("log_decay", [0.0, -50.0, -math.inf])
@pytest.mark.parametrize("method", ["cg", "recursive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_wide_open_and_closed(log_decay, method, dtype):
    inputs = make(70, key=3, dtype=dtype)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], log_decay)
    inputs["ridge"] = inputs["ridge"].detach()
    result = mesa(**inputs, method=method)
    exact, wanted, _ = reference_of(
        {**inputs, "log_decay": inputs["log_decay"].clamp(min=-900)}, "static"
    )
    tolerance = 1e-5 if dtype == torch.float32 else CLOSE
    assert error(result.output, wanted) <= tolerance
    learned = {n: inputs[n] for n in ("q", "k", "v", "beta")}
    found = gradients(result.output.sum(), learned, None)
    right = gradients(wanted.sum(), {n: exact[n] for n in learned}, None)
    assert max(error(a, b) for a, b in zip(found, right, strict=True)) <= tolerance


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_a_reset_in_the_middle_forgets_what_came_before(chunk_size):
    inputs = make(60, gate=0.01, dtype=torch.float32)
    with torch.no_grad():
        inputs["log_decay"][:, 31] = -math.inf
    late = {n: x if n == "ridge" else x[:, 31:] for n, x in inputs.items()}
    whole, part = mesa(**inputs, chunk_size=chunk_size), mesa(**late, chunk_size=chunk_size)
    assert error(whole.output[:, 31:], part.output) <= 1e-5  # two solves to 2e-6 each
    whole.output.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())
    assert inputs["k"].grad[:, :31].abs().max() > 0


def test_a_decayed_ridge_that_vanished_is_an_error():
    inputs = make(9)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -100.0)
    for method in ("exact", "recursive"):
        with pytest.raises(SolveError, match="working precision|not finite"):
            mesa(**inputs, ridge_mode="decayed", method=method)


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_a_token_written_with_strength_zero_leaves_no_trace(gate, mode):
    inputs = make(17, gate=gate)
    with torch.no_grad():
        inputs["beta"][:, 5] = 0.0
    compare(inputs, mode, tolerance=CLOSE, chunk_size=8)
    other = {**inputs, "k": inputs["k"].detach().clone(), "v": inputs["v"].detach().clone()}
    other["k"][:, 5], other["v"][:, 5] = 7.0, -7.0
    same = mesa(**inputs, ridge_mode=mode, chunk_size=8).output
    # The keys of no weight still pass through the factorisation, as zeros.
    assert error(mesa(**other, ridge_mode=mode, chunk_size=8).output, same) <= CLOSE


# Time cut anywhere


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("method", DIRECT)
def test_forward_is_step_by_step_is_split_anywhere(method, gate, mode):
    inputs, state = make(13, gate=gate), make_state()
    options = {"ridge_mode": mode, "ridge": inputs.pop("ridge")}
    whole = mesa(**inputs, **options, method=method, initial_state=state, chunk_size=4)
    present = {n: x for n, x in inputs.items() if x is not None}
    for cut in (1, 4, 7, 12):
        before = {n: x[:, :cut] for n, x in present.items()}
        after = {n: x[:, cut:] for n, x in present.items()}
        first = mesa(**before, **options, method=method, initial_state=state, chunk_size=4)
        second = mesa(**after, **options, method=method, initial_state=first.state, chunk_size=4)
        output = torch.cat([first.output, second.output], 1)
        assert error(output, whole.output) <= CLOSE
        assert all(error(a, b) <= CLOSE for a, b in zip(second.state, whole.state, strict=True))
    outputs, carried = [], state
    for t in range(13):
        result = mesa_step(**{n: x[:, t] for n, x in present.items()}, **options, state=carried)
        outputs.append(result.output)
        carried = result.state
    assert error(torch.stack(outputs, 1), whole.output) <= CLOSE
    assert all(error(a, b) <= CLOSE for a, b in zip(carried, whole.state, strict=True))


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_initial_state_against_the_definition(gate, mode):
    inputs, state = make(11, gate=gate), make_state()
    output = mesa(**inputs, ridge_mode=mode, initial_state=state, chunk_size=4).output
    _, wanted, _ = reference_of(inputs, mode, state=state)
    assert error(output, wanted) <= CLOSE
    found, right = (
        torch.autograd.grad(x.square().sum(), state, allow_unused=True) for x in (output, wanted)
    )
    for a, b in zip(found, right, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
        else:  # only the symmetric part of a Gram matrix's gradient means anything
            a, b = (x + x.mT if x.dim() == 4 and x.shape[-1] == x.shape[-2] else x for x in (a, b))
            assert error(a, b) <= CLOSE


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_packed_sequences_equal_separate_ones(gate, mode):
    inputs = make(23, gate=gate, batch=1)
    ridge, state = inputs["ridge"], make_state(batch=4)
    offsets = [0, 1, 9, 9, 23]
    whole = mesa(
        **inputs, ridge_mode=mode, initial_state=state, chunk_size=4,
        cu_seqlens=torch.tensor(offsets),
    )  # fmt: skip
    upstream = torch.randn_like(whole.output)
    total = gradients(whole.output, inputs, upstream)
    sums = [torch.zeros_like(x) for x in total]
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        own = MesaState(*(x[i : i + 1] for x in state))
        if start == stop:
            assert all(
                torch.equal(a[i : i + 1], b) for a, b in zip(whole.state[1:], own[1:], strict=True)
            )
            continue
        part = {n: x if x is None or n == "ridge" else x[:, start:stop] for n, x in inputs.items()}
        alone = mesa(**part, ridge_mode=mode, initial_state=own, chunk_size=4)
        assert error(whole.output[:, start:stop], alone.output) <= CLOSE
        for a, b in zip(whole.state, alone.state, strict=True):
            assert error(a[i : i + 1], b) <= CLOSE
        for sum_, gradient in zip(
            sums, gradients(alone.output, inputs, upstream[:, start:stop]), strict=True
        ):
            sum_ += gradient
    assert ridge is not None
    assert all(error(a, b) <= CLOSE for a, b in zip(total, sums, strict=True))


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_chunk_size_changes_rounding_only(gate, mode):
    inputs = make(50, gate=gate)
    outputs = [mesa(**inputs, ridge_mode=mode, chunk_size=c).output for c in (1, 3, 16, 50, 64)]
    assert all(error(x, outputs[0]) <= CLOSE for x in outputs)


# Identities of the family


@pytest.mark.parametrize("method", ["neumann", "chebyshev"])
def test_no_steps_give_linear_attention(method):
    inputs = make(20, gate=None)
    inputs["beta"] = None
    found = mesa(**inputs, method=method, max_steps=0, chunk_size=8).output
    wanted = linear_attention(*(inputs[n] for n in "qkv"), chunk_size=8).output
    assert error(found, wanted) <= CLOSE


@pytest.mark.parametrize("method", ["neumann", "chebyshev"])
def test_no_steps_under_forgetting_give_gated_linear_attention(method):
    inputs = make(20, gate=0.05)
    found = mesa(**inputs, method=method, max_steps=0, chunk_size=8).output
    gates = {name: inputs[name] for name in ("beta", "log_decay")}
    wanted = gated_linear_attention(*(inputs[n] for n in "qkv"), **gates, chunk_size=8).output
    assert error(found, wanted) <= CLOSE


def test_a_huge_ridge_gives_linear_attention():
    inputs = make(20, gate=None)
    inputs["beta"] = None
    ridge = 1e8
    found = mesa(*(inputs[n] for n in "qkv"), ridge=ridge).output * ridge
    # What is left out is of the order of the Gram matrix over the ridge: 20 / 1e8.
    assert error(found, linear_attention(*(inputs[n] for n in "qkv")).output) <= 20 / ridge


# What is reported


def test_few_steps_where_little_is_forgotten():
    for gate in (0.002, 0.06):  # mean gamma 0.999 and 0.97
        inputs = make(512, gate=gate, batch=1, heads=2, key=64, value=64, dtype=torch.float32)
        info = mesa(**inputs, method="cg", rtol=1e-4).info
        assert info.steps.max() <= 4
        assert info.worst_residual <= 1e-4


@pytest.mark.parametrize("gate", [0.01, 0.06, 0.2, 0.5, 3.0])
def test_never_more_steps_than_plain_conjugate_gradients(gate, monkeypatch):
    inputs = make(256, gate=gate, batch=1, heads=2, key=32, value=1, dtype=torch.float32)
    steps = mesa(**inputs, method="cg", rtol=1e-4).info.steps.max()
    monkeypatch.setattr(chunked, "FORGETFUL", 1.0)  # no chunk remembers enough
    assert steps <= mesa(**inputs, method="cg", rtol=1e-4).info.steps.max()


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
            info = mesa(**inputs, method="cg", rtol=1e-4).info
        return info, counter.get_total_flops()

    info, flops = count()
    if width <= 0.06 and gate != "mixed":  # mean gamma 0.97 or more
        assert info.steps.max() <= 4
    monkeypatch.setattr(chunked, "FORGETFUL", 1.0)  # no chunk remembers enough
    plain, plain_flops = count()
    assert plain.chunk_size == info.chunk_size
    # 5 % for chunks that forget just little enough: their factors save no more than they cost.
    assert flops <= 1.05 * plain_flops


def test_info_says_what_ran_and_why():
    inputs = make(10)
    info = mesa(**inputs).info
    assert (info.method, "static ridge" in info.reason) == ("cg", True)
    assert info.steps.shape == info.residual.shape == (2, 2, 1)
    info = mesa(**inputs, ridge_mode="decayed", chunk_size=4).info
    assert (info.method, info.steps.max()) == ("exact", 0)
    assert info.worst_residual <= CLOSE
    batch, head, position = info.worst_at
    assert info.residual[batch, head, position // info.chunk_size] == info.worst_residual


@pytest.mark.parametrize("method", ["cg", "neumann", "chebyshev"])
def test_a_missed_tolerance_is_raised_warned_of_or_ignored(method):
    inputs = make(20)
    options = {"method": method, "max_steps": 1, "rtol": 1e-9}
    with pytest.raises(SolveError, match=r"relative residual of .* at batch .* must be 1.0e-09"):
        mesa(**inputs, **options)
    with pytest.warns(SolveWarning, match="relative residual"):
        mesa(**inputs, **options, on_failure="warn")
    info = mesa(**inputs, **options, on_failure="ignore").info
    assert info.worst_residual > 1e-9
    assert (info.steps == 1).all()


def test_a_solve_that_fails_in_the_backward_pass_says_so():
    inputs = make(20)
    with torch.no_grad():
        inputs["q"].zero_()  # nothing to solve forward
    result = mesa(**inputs, method="cg", max_steps=1, rtol=1e-9)
    with pytest.raises(SolveError, match="relative residual"):
        result.output.sum().backward()


@pytest.mark.parametrize("method", ["exact", "cg", "recursive", "neumann"])
@pytest.mark.parametrize("name", ["q", "k", "v", "beta"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_are_not_finite(name, method, bad):
    inputs = make(6, gate=None if method == "exact" else 0.05)
    with torch.no_grad():
        inputs[name].view(-1)[3] = bad
    if name == "beta" and bad == math.inf:
        return  # out of range, another message
    with pytest.raises(ValueError, match=f"{name} has 1 of {inputs[name].numel()} values"):
        mesa(**inputs, method=method)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 5, 2, 4)}, r"k has shape \(2, 5, 2, 4\): must be \(2, 6, 2, 4\)"),
        ({"v": torch.zeros(2, 5, 2, 4)}, r"v has shape \(2, 5, 2, 4\): must be \(2, 6, 2, value\)"),
        ({"beta": torch.zeros(2, 6)}, r"beta has shape \(2, 6\): must be \(2, 6, 2\)"),
        ({"log_decay": torch.zeros(2, 6, 3)}, r"log_decay has shape \(2, 6, 3\)"),
        (
            {"log_decay": torch.full((2, 6, 2), 0.5)},
            "log_decay has the value 0.5: must be 0 or less",
        ),
        ({"beta": torch.full((2, 6, 2), 1.5)}, "beta has the value 1.5: must be between 0 and 1"),
        ({"beta": torch.full((2, 6, 2), -0.5)}, "beta has the value -0.5"),
        ({"q": torch.zeros(2, 6, 2, 4, device="meta")}, "k is on cpu: must be on meta"),
        ({"ridge": 0.0}, "ridge has the value 0: must be greater than 0"),
        ({"ridge": torch.tensor([1.0, math.nan])}, "ridge has the value nan"),
        ({"ridge": torch.ones(3)}, r"ridge has shape \(3,\): must be a number, \(2,\) or \(2, 4\)"),
        ({"ridge_mode": "fixed"}, "ridge_mode='fixed': allowed: static, decayed"),
        ({"method": "exakt"}, "method='exakt': did you mean 'exact'"),
        ({"method": "exact"}, "must be 'cg', 'recursive', 'neumann' or 'chebyshev', or ridge_mode"),
        ({"on_failure": "print"}, "on_failure='print'"),
        ({"rtol": 0.0}, "rtol=0.0: must be greater than 0"),
        ({"max_steps": -1}, "max_steps=-1: must be 0 or greater"),
        ({"chunk_size": 0}, "chunk_size=0: must be 1 or greater"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "q has a batch of 2: must be 1 with cu_seqlens"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs = make(6, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        mesa(**{**inputs, **change})


@pytest.mark.parametrize("offsets", [[1, 6], [0, 5], [0, 4, 2, 6]])
def test_bad_offsets_are_named(offsets):
    with pytest.raises(ValueError, match=r"cu_seqlens=.* must rise from 0 to 6"):
        mesa(**make(6, batch=1), cu_seqlens=torch.tensor(offsets))


def test_bad_states_are_named():
    inputs = make(6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"initial_state.gram has shape \(1, 2, 4, 4\): must be"):
        mesa(**inputs, initial_state=MesaState.empty(1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"initial_state.gram has type torch.float64: must be"):
        mesa(**inputs, initial_state=MesaState.empty(2, 2, 4, 3, like=torch.zeros(1).double()))


# Types, transforms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_half_precision_in_and_out_single_inside(dtype, gate, mode):
    inputs = make(30, gate=gate, dtype=dtype)
    with torch.no_grad():
        inputs["beta"].clamp_(max=1.0)
    result = mesa(**inputs, ridge_mode=mode)
    assert result.output.dtype == dtype
    assert {x.dtype for x in result.state} == {torch.float32}
    _, wanted, _ = reference_of(inputs, mode)
    # The inputs are rounded before either computation: what differs is the rounding of the output.
    assert error(result.output, wanted) <= torch.finfo(dtype).eps
    result.output.float().sum().backward()
    assert all(x.grad.dtype == dtype for x in inputs.values() if x is not None)


@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_vmap_over_models(gate, mode):
    inputs = make(10, gate=gate)
    ridges = torch.stack([inputs["ridge"], 2 * inputs["ridge"]]).detach()
    fixed = {n: x for n, x in inputs.items() if n != "ridge"}

    def loss(ridge, options):
        return mesa(**fixed, ridge=ridge, ridge_mode=mode, **options).output.square().sum()

    quiet = {"on_failure": "ignore", "chunk_size": 4}
    values = torch.func.vmap(lambda r: loss(r, quiet))(ridges)
    slopes = torch.func.vmap(torch.func.grad(lambda r: loss(r, quiet)))(ridges)
    for i, ridge in enumerate(ridges):
        own = ridge.clone().requires_grad_()
        wanted = loss(own, {"chunk_size": 4})
        assert error(values[i], wanted) <= CLOSE
        assert error(slopes[i], torch.autograd.grad(wanted, own)[0]) <= CLOSE


COMPILED = """
import sys, torch
from mesaopt.ops import mesa

gate, mode = float(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
q, k, v = (torch.randn(2, 20, 2, 4) for _ in range(3))
beta, log_decay = torch.rand(2, 20, 2), -gate * torch.rand(2, 20, 2)
inputs = [x.requires_grad_() for x in (q, k, v, torch.rand(2, 4) + 0.25, beta, log_decay)]

def function(q, k, v, ridge, beta, log_decay):
    gates = {"log_decay": log_decay} if gate else {}
    return mesa(q, k, v, ridge=ridge, beta=beta, ridge_mode=mode, chunk_size=8, **gates).output

compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
outputs = [f(*inputs) for f in (compiled, function)]
upstream = torch.randn_like(v)
slopes = [torch.autograd.grad(x, inputs, upstream, allow_unused=True) for x in outputs]
for found, wanted in ((outputs[:1], outputs[1:]), slopes):
    for a, b in zip(found, wanted):
        # Two solves in single precision, whose condition number is below 1e3.
        assert b is None or (a - b).norm() <= 1e-4 * b.norm()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("gate", "mode"), MODES)
def test_compiles_without_graph_breaks(gate, mode):
    # In a process of its own: the run-time checks of annotations cannot be compiled.
    command = [sys.executable, "-W", "ignore", "-c", COMPILED, str(gate or 0.0), mode]
    subprocess.run(command, check=True)
