"""The mesa operator against its dense definition, and its promises."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mesa_problems import (
    CLOSE,
    DIRECT,
    MODES,
    compare,
    error,
    gradients,
    make,
    make_state,
    reference_of,
)

from mesaopt.config import LinearSystemConfig
from mesaopt.errors import SolveError
from mesaopt.ops import MesaState, linear_attention, mesa, mesa_step
from mesaopt.tasks import LinearSystem


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("solver", DIRECT)
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_values_and_gradients_are_those_of_the_definition(solver, gate, mode, chunk_size):
    compare(make(21, gate=gate), mode, tolerance=CLOSE, solver=solver, chunk_size=chunk_size)


@settings(max_examples=40, deadline=None)
@given(
    time=st.integers(1, 20),
    key=st.integers(1, 5),
    value=st.integers(1, 5),
    chunk_size=st.integers(1, 9),
    solver=st.sampled_from(DIRECT),
    case=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_any_size_works(time, key, value, chunk_size, solver, case, seed):
    gate, mode = case
    inputs = make(time, gate=gate, key=key, value=value, seed=seed)
    compare(inputs, mode, tolerance=CLOSE, solver=solver, chunk_size=chunk_size)


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


@pytest.mark.parametrize("log_decay", [0.0, -50.0, -math.inf])
@pytest.mark.parametrize("solver", ["cg", "recursive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_wide_open_and_closed(log_decay, solver, dtype):
    inputs = make(70, key=3, dtype=dtype)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], log_decay)
    inputs["ridge"] = inputs["ridge"].detach()
    result = mesa(**inputs, solver=solver)
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
    for solver in ("exact", "recursive"):
        with pytest.raises(SolveError, match="working precision|not finite"):
            mesa(**inputs, ridge_mode="decayed", solver=solver)


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


@pytest.mark.parametrize(("gate", "mode"), MODES)
@pytest.mark.parametrize("solver", DIRECT)
def test_forward_is_step_by_step_is_split_anywhere(solver, gate, mode):
    inputs, state = make(13, gate=gate), make_state()
    options = {"ridge_mode": mode, "ridge": inputs.pop("ridge")}
    whole = mesa(**inputs, **options, solver=solver, initial_state=state, chunk_size=4)
    present = {n: x for n, x in inputs.items() if x is not None}
    for cut in (1, 4, 7, 12):
        before = {n: x[:, :cut] for n, x in present.items()}
        after = {n: x[:, cut:] for n, x in present.items()}
        first = mesa(**before, **options, solver=solver, initial_state=state, chunk_size=4)
        second = mesa(**after, **options, solver=solver, initial_state=first.state, chunk_size=4)
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


def test_a_ridge_that_has_decayed_stays_so_without_gates():
    inputs, state = make(11, gate=None), make_state()
    output = mesa(**inputs, ridge_mode="decayed", initial_state=state, chunk_size=4).output
    _, wanted, _ = reference_of(inputs, "decayed", state=state)
    assert error(output, wanted) <= CLOSE


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


def test_a_huge_ridge_gives_linear_attention():
    inputs = make(20, gate=None)
    inputs["beta"] = None
    ridge = 1e8
    found = mesa(*(inputs[n] for n in "qkv"), ridge=ridge).output * ridge
    # What is left out is of the order of the Gram matrix over the ridge: 20 / 1e8.
    assert error(found, linear_attention(*(inputs[n] for n in "qkv")).output) <= 20 / ridge


@pytest.mark.parametrize("solver", ["exact", "cg", "recursive", "neumann"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_are_not_finite(name, solver, bad):
    inputs = make(6, gate=None if solver == "exact" else 0.05)
    with torch.no_grad():
        inputs[name].view(-1)[3] = bad
    with pytest.raises(ValueError, match=f"{name} has 1 of {inputs[name].numel()} values"):
        mesa(**inputs, solver=solver)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": 0.0}, "ridge has the value 0: must be greater than 0"),
        ({"ridge": torch.tensor([1.0, math.nan])}, "ridge has the value nan"),
        ({"ridge": math.inf}, "ridge has the value inf: must be greater than 0 and finite"),
        ({"ridge": 1e50}, "ridge has the value inf"),  # in float32
        ({"ridge": torch.tensor(1j)}, "ridge has type torch.complex64: must be a real type"),
        ({"ridge": torch.ones(3)}, r"ridge has shape \(3,\): must be a number, \(2,\) or \(2, 4\)"),
        ({"ridge_mode": "fixed"}, "ridge_mode='fixed': allowed: static, decayed"),
        ({"solver": "exakt"}, "solver='exakt': did you mean 'exact'"),
        ({"solver": 3}, "solver=3: allowed: auto, exact, cg"),
        ({"solver": "exact"}, r"must be ConjugateGradient\(\), .* or ridge_mode='decayed'"),
        ({"on_failure": "print"}, "on_failure='print'"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs = make(6, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        mesa(**{**inputs, **change})


@pytest.mark.parametrize("ridge", [None, True, 1j, "1", [1.0, 2.0]], ids=repr)
def test_a_ridge_is_a_number_or_a_tensor(ridge):
    with pytest.raises(TypeError, match="^ridge is .*: must be a number or a tensor$"):
        mesa(**make(6) | {"ridge": ridge})


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


def test_bad_states_are_named():
    inputs = make(6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"initial_state.gram has shape \(1, 2, 4, 4\): must be"):
        mesa(**inputs, initial_state=MesaState.empty(1, 2, 4, 3))
    token = {n: x if n == "ridge" else x[:, 0] for n, x in inputs.items()}
    with pytest.raises(ValueError, match=r"^state.gram has shape \(1, 2, 4, 4\): must be"):
        mesa_step(**token, state=MesaState.empty(1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"initial_state.gram has type torch.float64: must be"):
        mesa(**inputs, initial_state=MesaState.empty(2, 2, 4, 3, like=torch.zeros(1).double()))
