"""Long sequences in segments: the same values and derivatives, and less memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operator_rules import CLOSE, MESA, RULES, Rule, differentiate, draw, every, pick
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesaopt import ops
from mesaopt.errors import SolveError
from mesaopt.ops import mesa, segments
from mesaopt.ops.packing import lay_out
from mesaopt.ops.segments import Inputs, chunks_of_segments

CHUNKED = tuple(rule for rule in RULES + MESA if rule.chunked)
PACKED = [None, [0, 25], [0, 3, 3, 25], [0, 0, 8, 16, 25], [0, 20, 21, 22, 25, 25], [0, 12, 12, 25]]


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every call, into segments of three and two chunks in turn."""
    monkeypatch.setattr(segments, "_MAX_UNCUT", 0)
    monkeypatch.setattr(segments, "_WANTED_BYTES", 0)
    monkeypatch.setattr(segments, "_LEAST_CHUNKS", 3)


def offsets_of(packed: list[int] | None) -> Tensor | None:
    return None if packed is None else torch.tensor(packed)


def run(rule: Rule, inputs: dict[str, Tensor], **settings: Any) -> list[Tensor]:
    """Return output, state, and the gradients of both for inputs and initial state."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    state = settings.pop("initial_state", None)
    if state is not None:
        state = type(state)(*(x.detach().requires_grad_() for x in state))
    result = rule.run(**leaves, initial_state=state, chunk_size=4, **settings)
    found = [result.output, *result.state]
    wanted = [*leaves.values(), *(() if state is None else state)]
    random = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=random, dtype=x.dtype) for x in found]
    pairs = [(x, y) for x, y in zip(found, upstream, strict=True) if x.requires_grad]
    outputs, weights = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(outputs, wanted, weights, materialize_grads=True)
    return [*(x.detach() for x in found), *gradients]


@every(CHUNKED)
@pytest.mark.parametrize("packed", PACKED, ids=str)
@pytest.mark.parametrize("continued", [False, True], ids=["new", "continued"])
def test_segments_change_rounding_only(
    rule: Rule, packed: list[int] | None, continued: bool, request: pytest.FixtureRequest
) -> None:
    first, inputs = (pick(rule, draw(1 if packed else 2, 25, 2, 5, 3)) for _ in range(2))
    settings = {"cu_seqlens": offsets_of(packed)}
    if continued:
        settings["initial_state"] = rule.run(**first, **settings).state
    whole = run(rule, inputs, **settings)
    request.getfixturevalue("short_segments")
    for x, y in zip(run(rule, inputs, **settings), whole, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


@every(CHUNKED)
def test_segments_agree_with_the_definition(rule: Rule, short_segments: None) -> None:
    inputs, upstream = pick(rule, draw(2, 37, 2, 5, 3)), torch.randn(2, 37, 2, 3).double()
    ours = differentiate(lambda **x: rule.run(**x, chunk_size=4), inputs, upstream)

    settings = dict(rule.settings)
    if "ridge" in settings:
        settings["ridge"] = torch.full((2, 5), settings["ridge"], dtype=torch.float64)

    def define(**x: Tensor) -> Tensor:
        found = rule.define(**x, **settings)
        return found[0] if isinstance(found, tuple) else found

    for x, y in zip(ours, differentiate(define, inputs, upstream), strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@every(CHUNKED)
def test_segments_have_second_derivatives_and_forward_mode(
    rule: Rule, short_segments: None
) -> None:
    inputs = pick(rule, draw(1, 9, 1, 2, 2))
    inputs = {
        n: (x * 0.8 + (0.1 if n == "beta" else 0)).requires_grad_() for n, x in inputs.items()
    }
    names = list(inputs)

    def call(*tensors: Tensor) -> Tensor:
        return rule.run(**dict(zip(names, tensors, strict=True)), chunk_size=2).output

    tensors = tuple(inputs.values())
    settings = {"fast_mode": True, "check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(call, tensors, **settings)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("solver", ["cg", "recursive", "neumann", "chebyshev", "exact"])
@pytest.mark.parametrize("packed", PACKED, ids=str)
def test_what_is_known_of_the_solves_is_that_of_all_chunks(
    solver: str, packed: list[int] | None, request: pytest.FixtureRequest
) -> None:
    inputs = draw(1 if packed else 2, 25, 2, 5, 3)
    settings = {"ridge": 0.5, "solver": solver, "chunk_size": 4, "cu_seqlens": offsets_of(packed)}
    call = {name: inputs[name] for name in ("q", "k", "v", "beta")}
    whole = mesa(**call, **settings, on_failure="ignore").info
    request.getfixturevalue("short_segments")
    info = mesa(**call, **settings, on_failure="ignore").info
    assert (info.solver, info.reason) == (whole.solver, whole.reason)
    assert info.chunk_size == whole.chunk_size
    assert torch.equal(info.steps, whole.steps)
    torch.testing.assert_close(info.residual, whole.residual, rtol=1e-3, atol=1e-12)
    if info.worst_residual > 1e-12:  # above rounding
        assert info.worst_at == whole.worst_at


@pytest.mark.parametrize("packed", [None, [0, 13, 25]], ids=str)
def test_a_failure_names_the_position_in_the_call(
    packed: list[int] | None, short_segments: None
) -> None:
    inputs = draw(1, 25, 1, 5, 3)
    # Nothing to solve but at position 21, in the last segment.
    q = torch.zeros_like(inputs["q"]).index_fill_(1, torch.tensor([21]), 1.0)
    where = "batch 0, head 0, positions 20 to 23" if packed is None else (
        "sequence 1, head 0, positions 8 to 11"
    )  # fmt: skip
    solver = ops.Exact(rtol=1e-30)
    with pytest.raises(SolveError, match=where):
        mesa(
            q, inputs["k"], inputs["v"], ridge=1e-3, solver=solver, chunk_size=4,
            cu_seqlens=offsets_of(packed),
        )  # fmt: skip


def test_one_doubtful_segment_takes_the_whole_call_to_float64(short_segments: None) -> None:
    inputs = draw(1, 25, 1, 5, 3, torch.float32)
    inputs["k"][:, 20:] *= 1e4
    call = {name: inputs[name] for name in ("q", "k", "v")}
    found = mesa(**call, ridge=1e-3, chunk_size=4)
    assert "float64" in found.info.reason
    assert found.output.dtype == found.state.gram.dtype == torch.float32
    assert found.info.steps.shape == (1, 1, 7)
    double = {name: x.double() for name, x in call.items()}
    right = mesa(**double, ridge=torch.tensor(1e-3).double(), chunk_size=4).output
    # float32 rounds the ridge, 6e-8 of it, and the output.
    torch.testing.assert_close(found.output.double(), right, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Find the largest tensor that an operation makes, other than by joining others."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if function.overloadpacket not in (torch.ops.aten.cat, torch.ops.aten.detach):
            for x in results if isinstance(results, tuple | list) else [results]:
                if isinstance(x, Tensor) and not x._is_view():
                    self.numbers = max(self.numbers, x.numel())
        return results


@every(CHUNKED)
@pytest.mark.parametrize("packed", [None, [0, 300, 2000, 8192]], ids=str)
def test_temporaries_do_not_grow_with_the_sequence(rule: Rule, packed: list[int] | None) -> None:
    inputs = pick(rule, draw(1, 8192, 4, 64, 64, torch.float32))
    if "log_decay" in inputs:  # else chunks of a decayed ridge have one position
        inputs["log_decay"] = inputs["log_decay"] / 100
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    upstream = torch.randn(1, 8192, 4, 64)
    with Largest() as largest:
        out = rule.run(**leaves, cu_seqlens=offsets_of(packed)).output
        torch.autograd.grad(out, list(leaves.values()), upstream)
    # Twice the 2 MiB where keys and values are joined; a tensor as long as the call has 8 MiB.
    assert largest.numbers * 4 <= 2 * 2**21


def each_size(batch: int, length: int, width: int, **settings: Any) -> Iterator[int]:
    x = torch.empty(batch, length, 4, width)
    layout = lay_out(x, settings.pop("chunk_size", 64), None)
    yield from chunks_of_segments(layout, Inputs(x, x, x))


def test_segments_get_shorter_and_begin_anew() -> None:
    sizes = list(each_size(1, 65536, 64))
    assert sum(sizes) == 1024
    assert sizes[:18] == [*range(32, 15, -1), 32]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [((1, 2048, 64), [32]), ((256, 50, 20), [1]), ((16, 1024, 64), [16])],
)
def test_calls_as_long_as_those_of_the_papers_stay_whole(
    sizes: tuple[int, int, int], wanted: list[int]
) -> None:
    assert list(each_size(*sizes)) == wanted


@pytest.mark.parametrize("batch", [16, 64, 256, 4096])
def test_large_batches_make_short_segments(batch: int) -> None:
    sizes = list(each_size(batch, 4096, 16, chunk_size=16))
    assert sum(sizes) == 256
    chunk_bytes = batch * 4 * 16 * 16 * 4
    assert max(sizes) == 1 or max(sizes) * chunk_bytes <= 2**24


def test_traced_calls_stay_whole(short_segments: None) -> None:
    calls = []

    def count(x: Tensor) -> Tensor:
        layout = lay_out(x, 2, None)
        calls.append(len(list(chunks_of_segments(layout, Inputs(x, x, x)))))
        return x.sum()

    x = torch.randn(1, 8, 1, 2)
    torch.func.grad(count)(x)
    torch.vmap(count)(x.expand(3, 1, 8, 1, 2))
    assert calls == [1, 1]
    count(x)
    assert calls[-1] == 2
