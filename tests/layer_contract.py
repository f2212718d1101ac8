"""Contract of every layer, run for each of them by tests/layers/test_contract.py.

A new layer passes by adding a :class:`Case` there.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from compiling import LENGTHS, MAX_GRAPHS, Compiled
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mesaopt.errors import SolveError
from mesaopt.layers import LayerState, SelfAttention

WIDTH, HEADS, DIM = 10, 2, 5
BATCH, TIME = 2, 70  # more than a chunk, and not a multiple of one

# Outputs are sums of at most 70 * 5 products; norms, and systems with a condition number below 1e3,
# enlarge their roundings by 1e3 at most. In all 1e3 * sqrt(350) = 2e4 roundings.
ROUNDINGS = 2e4
# In bfloat16 the projections, convolutions and outputs are rounded, about six times in a row, by half
# the spacing each, and later steps enlarge earlier roundings a little: four spacings.
HALF_ROUNDINGS = 4


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[..., SelfAttention]
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the constructor besides the sizes."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Another value of every further argument of the constructor, each alone a different layer."""
    linear_in: tuple[Literal["query", "value"], ...] = ()
    """Projections of which the output is a linear function."""
    chunk_size: Callable[[int], dict[str, Any]] | None = None
    """The settings that set the chunk size, None in layers without chunks."""
    at_1e8: Literal["finite", "refused", "unsupported"] = "finite"
    """Result of inputs of 1e8: finite gradients, a SolveError, or nothing to rely on."""

    def make(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
    ) -> SelfAttention:
        sizes = {"width": WIDTH, "num_heads": HEADS, "head_dim": DIM}
        torch.manual_seed(seed)
        return self.build(**sizes | self.settings | changes).to(dtype)


def draw(dtype: torch.dtype = torch.float64, time: int = TIME) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, time, WIDTH, generator=random, dtype=torch.float64).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    difference, size = (found.double() - wanted.double()).norm(), wanted.double().norm()
    return (difference / size if size else difference).item()


def assert_close(found: Tensor, wanted: Tensor, roundings: float = ROUNDINGS) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert error(found, wanted) <= roundings * torch.finfo(wanted.dtype).eps


def run_by_steps(layer: SelfAttention, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
    outputs = []
    for token in x.unbind(1):
        y, state = layer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def run_in_parts(layer: SelfAttention, x: Tensor, cuts: Iterable[int]) -> Tensor:
    outputs, state = [], None
    for part in x.tensor_split(list(cuts), dim=1):
        y, state = layer.extend(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def slopes(layer: SelfAttention, x: Tensor, scale: float = 1.0) -> list[Tensor]:
    """Gradients of every parameter and the input, for an upstream gradient of about `scale`."""
    x = x.clone().requires_grad_()
    y = layer(x)
    random = torch.Generator().manual_seed(2)
    upstream = scale * torch.randn(y.shape, generator=random, dtype=torch.float64).to(y.dtype)
    return list(torch.autograd.grad(y, [x, *layer.parameters()], upstream))


class LayerContract:
    def test_it_is_causal(self, case: Case) -> None:
        layer, x = case.make(), draw()
        changed = x.clone()
        changed[:, 40:] += 1
        before, after = layer(x), layer(changed)
        # Not to the bit: iterations stop when the whole chunk is good.
        assert_close(after[:, :40], before[:, :40])
        assert (before[:, 40] - after[:, 40]).abs().max() > 1e-6, "position 40 belongs to its past"

    def test_its_map_says_how_much_of_every_value_an_output_holds(self, case: Case) -> None:
        layer, x = case.make(), draw()
        inputs, maps = layer.head_inputs(x), layer.attention_map(x)
        assert maps.shape == (BATCH, HEADS, TIME, TIME)
        assert (maps.triu(1) == 0).all()
        values = inputs.v.repeat_interleave(HEADS // inputs.v.shape[2], dim=2)
        mixed = torch.einsum("bhts,bshv->bthv", maps, values)
        assert_close(mixed, layer.mix(inputs, None).output)
        normed = mixed if layer.head_norm is None else layer.head_norm(mixed)
        assert_close(layer.output(normed.flatten(-2)), layer(x))

    def test_sequences_do_not_see_one_another(self, case: Case) -> None:
        layer, x = case.make(), draw()
        assert_close(layer(x[1:]), layer(x)[1:])

    def test_steps_give_the_numbers_of_forward(self, case: Case) -> None:
        layer, x = case.make(), draw()
        y, state = run_by_steps(layer, x, layer.init_state(BATCH))
        assert_close(y, layer(x))
        whole = layer.extend(x)[1]
        assert type(state.memory) is type(whole.memory)
        for found, wanted in zip(state.memory, whole.memory, strict=True):
            if wanted is not None and wanted.any():
                assert_close(found, wanted)

    @pytest.mark.parametrize("cuts", [(1,), (30, 31), (64,), (3, 69)], ids=str)
    def test_a_sequence_can_be_cut_anywhere(self, case: Case, cuts: tuple[int, ...]) -> None:
        layer, x = case.make(), draw().requires_grad_()
        whole, parts = layer(x), run_in_parts(layer, x, cuts)
        assert_close(parts, whole)
        upstream = torch.randn_like(whole)
        (wanted,) = torch.autograd.grad(whole, x, upstream)
        assert_close(torch.autograd.grad(parts, x, upstream)[0], wanted)

    def test_steps_and_parts_mix(self, case: Case) -> None:
        layer, x = case.make(), draw()
        first, state = layer.extend(x[:, :20], layer.init_state(BATCH))
        middle, state = run_by_steps(layer, x[:, 20:25], state)
        last, _ = layer.extend(x[:, 25:], state)
        assert_close(torch.cat([first, middle, last], dim=1), layer(x))

    @pytest.mark.parametrize("size", [1, 7, 200])
    def test_the_chunk_size_changes_rounding_only(self, case: Case, size: int) -> None:
        if case.chunk_size is None:
            return
        layer, other = case.make(), case.make(**case.chunk_size(size))
        for found, wanted in zip(slopes(other, draw()), slopes(layer, draw()), strict=True):
            assert_close(found, wanted)
        assert_close(other(draw()), layer(draw()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_the_type_that_comes_in_goes_out(self, case: Case, dtype: torch.dtype) -> None:
        layer, x = case.make(dtype), draw(dtype)
        y, state = layer.extend(x)
        stepped, _ = layer.step(x[:, 0], layer.init_state(BATCH))
        assert y.dtype == stepped.dtype == dtype
        assert layer.step(x[:, 0], state)[0].dtype == dtype
        wanted = case.make(dtype).double()(x.double()).to(dtype)
        assert_close(y, wanted, HALF_ROUNDINGS if dtype == torch.bfloat16 else ROUNDINGS)

    def test_autocast_lowers_the_projections_alone(self, case: Case) -> None:
        layer, x = case.make(torch.float32), draw(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            stepped, state = run_by_steps(
                layer, x[:, :5], layer.init_state(BATCH, dtype=torch.bfloat16)
            )
            rest, _ = layer.extend(x[:, 5:], state)
        assert y.dtype == torch.bfloat16
        for found in (y, torch.cat([stepped, rest], dim=1)):
            assert_close(found, layer(x).to(torch.bfloat16), HALF_ROUNDINGS)
        y.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())

    def test_it_is_linear_where_it_should_be(self, case: Case) -> None:
        for name in case.linear_in:
            layer, scaled = case.make(), case.make()
            getattr(scaled, name).weight.data *= 3
            assert_close(scaled(draw()), 3 * layer(draw()))

    def test_a_single_token(self, case: Case) -> None:
        layer, x = case.make(), draw()
        y = layer(x[:, :1])
        assert_close(y, layer(x)[:, :1])
        assert_close(layer.step(x[:, 0], layer.init_state(BATCH))[0], y[:, 0])

    @pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e8])
    def test_gradients_are_finite_at_every_scale(self, case: Case, scale: float) -> None:
        layer, x = case.make(torch.float32), scale * draw(torch.float32)
        if scale == 1e8 and case.at_1e8 == "refused":
            with pytest.raises(SolveError):
                layer(x)
        elif scale < 1e8 or case.at_1e8 == "finite":
            assert all(slope.isfinite().all() for slope in slopes(layer, x))

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    def test_gradients_that_are_not_finite_are_passed_on(self, case: Case, bad: float) -> None:
        layer, x = case.make(torch.float32), draw(torch.float32).requires_grad_()
        y = layer(x)
        upstream = torch.ones_like(y)
        (wanted,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
        upstream[0, 40, 0] = bad
        found, *weights = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
        assert not found[0].isfinite().all()
        assert not all(slope.isfinite().all() for slope in weights)
        assert torch.equal(found[1], wanted[1]), "another sequence"

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
    def test_forward_mode_agrees_with_gradients(self, case: Case) -> None:
        layer, x, direction = case.make(), draw().requires_grad_(), draw(time=TIME).flip(1)
        y, along = torch.func.jvp(layer, (x.detach(),), (direction,))
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        (slope,) = torch.autograd.grad(layer(x), x, upstream)
        assert_close((upstream * along).sum(), (slope * direction).sum())

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_gradients_follow_the_upstream_gradient(self, case: Case, scale: float) -> None:
        layer, x = case.make(torch.float32), draw(torch.float32)
        for found, wanted in zip(slopes(layer, x, scale), slopes(layer, x), strict=True):
            assert_close(found, scale * wanted)

    def test_every_argument_changes_something(self, case: Case) -> None:
        sizes = {"width": WIDTH + 2, "num_heads": HEADS + 1, "head_dim": DIM + 1}
        changes = sizes | {"num_key_value_heads": 1} | case.changes
        # What happens on failure shows in `test_the_solver_obeys`.
        assert set(changes) == set(inspect.signature(case.build).parameters) - {"on_failure"}
        layer, x = case.make(torch.float32), draw(torch.float32)
        weights, y = layer.state_dict(), layer(x)
        for name, value in changes.items():
            other = case.make(torch.float32, **{name: value})
            found = other.state_dict()
            same = list(found) == list(weights)
            same = same and all(torch.equal(found[n], w) for n, w in weights.items())
            assert not same or not torch.equal(other(x), y), f"{name} changes nothing"

    def test_every_argument_is_seen_in_its_text(self, case: Case) -> None:
        text = case.make().extra_repr()
        assert text.startswith(f"num_heads={HEADS}, head_dim={DIM}")
        assert "num_key_value_heads=1" in case.make(num_key_value_heads=1).extra_repr()
        for name, value in case.changes.items():
            other = case.make(**{name: value})
            if name == "gates":  # modules of their own
                assert repr(other) != repr(case.make())
            else:
                assert other.extra_repr() != text, name

    def test_it_can_be_built_on_the_meta_device(self, case: Case) -> None:
        torch.manual_seed(0)
        wanted = case.build(WIDTH, HEADS, DIM, **case.settings).state_dict()
        with torch.device("meta"):
            layer = case.build(WIDTH, HEADS, DIM, **case.settings)
        layer.to_empty(device="cpu")
        for parameter in layer.parameters():
            parameter.data.fill_(torch.nan)
        torch.manual_seed(0)
        layer.reset_parameters()
        assert list(layer.state_dict()) == list(wanted)
        for name, found in layer.state_dict().items():
            assert torch.equal(found, wanted[name]), name

    def test_checkpointing_changes_nothing(self, case: Case) -> None:
        layer, x = case.make(), draw().requires_grad_()
        y, again = layer(x), checkpoint(layer, x, use_reentrant=False)
        parameters = [x, *layer.parameters()]
        wanted = torch.autograd.grad(y.square().sum(), parameters)
        found = torch.autograd.grad(again.square().sum(), parameters)
        assert all(map(torch.equal, found, wanted))

    # PyTorch has no batching rule of its own for fused softmax attention, and says so.
    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_stacked_models_run_as_one(self, case: Case) -> None:
        layers, x = [case.make(seed=seed) for seed in (3, 4)], draw()
        stacked, _ = torch.func.stack_module_state(layers)

        def loss(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            y = torch.func.functional_call(layers[0], parameters, (x,))
            return y.square().sum(), y

        found, outputs = torch.func.vmap(torch.func.grad(loss, has_aux=True))(stacked)
        for i, layer in enumerate(layers):
            y = layer(x)
            assert_close(outputs[i], y)
            wanted = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
            for (name, _), slope in zip(layer.named_parameters(), wanted, strict=True):
                assert_close(found[name][i], slope)


def check_compiled(case: Case) -> None:
    """Compile a layer for any length; the tests' own checks of shapes must be off for this."""
    layer = case.make()
    with torch.no_grad():  # some positions, since a state that grows is another one when empty
        begin = layer.extend(draw(time=5))[1]
    parts = [draw(time=time) for time in LENGTHS]
    learnt = [*(part.requires_grad_() for part in parts), *layer.parameters()]
    extend = Compiled(layer.extend)
    results = []
    for method in (extend, layer.extend):
        outputs = _run(method, parts, begin)
        total = torch.stack([y.square().sum() for y in outputs]).sum()
        results.append([*outputs, *torch.autograd.grad(total, learnt)])
    for found, wanted in zip(*results, strict=True):
        assert_close(found, wanted)
    assert extend.graphs <= MAX_GRAPHS, extend.graphs
    with torch.no_grad():
        tokens = draw(time=4).unbind(1)
        for found, wanted in zip(
            _run(Compiled(layer.step), tokens, begin), _run(layer.step, tokens, begin), strict=True
        ):
            assert_close(found, wanted)


def _run(
    method: Callable[..., tuple[Tensor, LayerState]], parts: Iterable[Tensor], state: LayerState
) -> list[Tensor]:
    """Return the outputs of a method that goes on from its own states."""
    outputs = []
    for part in parts:
        y, state = method(part, state)
        outputs.append(y)
    return outputs
