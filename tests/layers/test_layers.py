import math
import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
import torch
from small_layers import SIZES, small_input, small_layer
from torch._subclasses.fake_tensor import FakeTensorMode

from mesaopt.errors import ConfigError, SolveError, SolveWarning
from mesaopt.layers import (
    CausalConvolution,
    DeltaRuleLayer,
    Frame,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    Gates,
    HeadNorm,
    LinearSelfAttention,
    LonghornLayer,
    MesaLayer,
    SelfAttention,
    SoftmaxSelfAttention,
)
from mesaopt.layers.frame import dpfp, normalise, rotate
from mesaopt.ops import Auto, ConjugateGradient, OnFailure, SolverLike, reference

LAYERS = [LinearSelfAttention, MesaLayer]


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_causal(layer: type[SelfAttention]) -> None:
    module, x = small_layer(layer), small_input()
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = module(x), module(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] != after[:, 5]).any(), "the diagonal belongs to the context"


@pytest.mark.parametrize("layer", LAYERS)
def test_sequences_do_not_see_one_another(layer: type[SelfAttention]) -> None:
    module, x = small_layer(layer), small_input(batch=3)
    # A matrix product may split its sums otherwise for another batch size: a few roundings.
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", LAYERS)
def test_head_products_are_all_that_matters(layer: type[SelfAttention]) -> None:
    module, x = small_layer(layer), small_input()
    key_query, value_output = module.head_products()
    if layer is LinearSelfAttention:
        scores = torch.einsum("bsd,hde,bte->bhts", x, key_query, x).tril()
        expected = torch.einsum("bhts,hde,bse->btd", scores, value_output, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-12)
    assert key_query.shape == value_output.shape == (2, 6, 6)


@pytest.mark.parametrize("layer", LAYERS)
def test_products_of_shared_heads(layer: type[SelfAttention]) -> None:
    module = small_layer(layer, num_key_value_heads=1)
    key_query, value_output = module.head_products()
    q, p = module.query.weight.unflatten(0, (2, 5)), module.output.weight.unflatten(1, (2, 5))
    for head in range(2):
        assert torch.equal(key_query[head], module.key.weight.mT @ q[head])
        assert torch.equal(value_output[head], p[:, head] @ module.value.weight)


def test_the_mesa_layer_learns_its_ridge() -> None:
    module, x = small_layer(MesaLayer), small_input()
    module.inverse_ridge.data = torch.tensor([0.5, 4.0], dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (2, 5)) for p in (module.query, module.key, module.value))
    ridge = torch.tensor([[2.0], [0.25]], dtype=torch.float64)
    expected = module.output(reference.mesa(q, k, v, ridge=ridge)[0].flatten(-2))
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-11)
    module(x).sum().backward()
    assert (module.inverse_ridge.grad != 0).all()


def test_a_ridge_that_left_its_range_is_an_error() -> None:
    module = small_layer(MesaLayer)
    module.inverse_ridge.data[0] = -1.0
    with pytest.raises(ValueError, match="ridge has the value -1: must be greater than 0"):
        module(small_input(batch=1, time=3))


def test_mesanet_is_what_its_formulas_say() -> None:
    torch.manual_seed(0)
    layer = MesaLayer.mesanet2025(**SIZES, ridge_floor=0.4, forget_cap=0.9).double()
    for parameter in layer.parameters():  # leave the symmetric start
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = small_input()
    weights = layer.state_dict()
    projected = torch.cat([x @ weights[f"{n}.weight"].mT for n in ("query", "key", "value")], -1)
    kernel = weights["convolution.weight"].unsqueeze(1)
    convolved = torch.nn.functional.conv1d(
        torch.nn.functional.pad(projected.mT, (3, 0)), kernel, groups=30
    )
    q, k, v = (
        part.unflatten(-1, (2, 5)) for part in torch.nn.functional.silu(convolved.mT).chunk(3, -1)
    )
    q, k = (u / u.norm(dim=-1, keepdim=True) for u in (q, k))
    beta, gamma = (
        torch.sigmoid(x @ weights[f"gates.{n}.weight"].mT + weights[f"gates.{n}.bias"])
        for n in ("beta", "log_decay")
    )
    gamma = gamma * (1 - 0.1 * beta**2)
    ridge = 0.4 + torch.log1p(weights["raw_ridge"].exp())
    out = reference.mesa(q, k, v, ridge=ridge, beta=beta, log_decay=gamma.log())[0]
    normed = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["head_norm.weight"]
    expected = normed.flatten(-2) @ weights["output.weight"].mT
    # Unit keys, a ridge above 0.4 and nine tokens: a condition number below 30.
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "gates"),
    [
        (LinearSelfAttention, ()),
        (GatedLinearSelfAttention, ("log_decay", "beta")),
        (DeltaRuleLayer, ("beta",)),
        (GatedDeltaRuleLayer, ("log_decay", "beta")),
        (LonghornLayer, ("beta",)),
        (SoftmaxSelfAttention, ()),
    ],
)
def test_every_layer_applies_its_operator(
    layer: type[SelfAttention], gates: tuple[str, ...]
) -> None:
    module, x = small_layer(layer), small_input()
    q, k, v = (p(x).unflatten(-1, (2, 5)) for p in (module.query, module.key, module.value))
    if module.frame.unit_keys:
        q, k = (u / u.norm(dim=-1, keepdim=True) for u in (q, k))
    read = {name: getattr(module.gates, name)(x).sigmoid() for name in gates}
    if "log_decay" in read:
        read["log_decay"] = read["log_decay"].log()
    name = layer.__name__.removesuffix("Layer").replace("SelfAttention", "Attention")
    define = getattr(reference, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    expected = module.output(define(q, k, v, **read).flatten(-2))
    torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-12)


def test_the_plain_layer_is_the_one_of_2023() -> None:
    first, second = small_layer(MesaLayer), small_layer(MesaLayer.uncovering2023)
    names = ["inverse_ridge", "query.weight", "key.weight", "value.weight", "output.weight"]
    assert list(first.state_dict()) == list(second.state_dict()) == names
    x = small_input()
    assert torch.equal(first(x), second(x))


PRESETS = [MesaLayer.uncovering2023, MesaLayer.mesanet2025]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_ridge_starts_at_one(preset: Callable[..., MesaLayer]) -> None:
    torch.testing.assert_close(preset(**SIZES).ridge, torch.ones(preset(**SIZES).ridge.shape))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_ridge_stays_in_single_precision(
    preset: Callable[..., MesaLayer], dtype: torch.dtype
) -> None:
    layer = preset(**SIZES)
    ridges = [n for n in layer.state_dict() if n in ("inverse_ridge", "raw_ridge")]
    (name,) = ridges
    fine = 1 + torch.rand(getattr(layer, name).shape)  # more digits than half precision has
    getattr(layer, name).data = fine.clone()
    layer(torch.randn(1, 3, 6)).sum().backward()
    slope = getattr(layer, name).grad.clone()
    torch.nn.Sequential(layer).to(dtype)
    for found, parameter in layer.named_parameters():
        assert parameter.dtype == (torch.float32 if found == name else dtype)
        assert parameter.grad.dtype == parameter.dtype
    assert torch.equal(getattr(layer, name), fine)
    assert torch.equal(getattr(layer, name).grad, slope)
    assert layer.double().ridge.dtype == torch.float64
    assert layer.to("meta").ridge.is_meta


def test_the_settings_of_the_solver_take_effect() -> None:
    x = torch.randn(2, 40, 6)

    def run(solver: SolverLike = "auto", on_failure: OnFailure = "raise") -> torch.Tensor:
        torch.manual_seed(0)
        return MesaLayer.mesanet2025(**SIZES, solver=solver, on_failure=on_failure)(x)

    exact, loose = run(), run(Auto(rtol=0.1))
    assert 0 < (loose - exact).norm() / exact.norm() < 0.3, "conditioning and norms enlarge 0.1"
    one_step = ConjugateGradient(max_steps=1)
    with pytest.raises(SolveError, match="1 steps were taken"):
        run(one_step)
    with pytest.warns(SolveWarning):
        run(one_step, on_failure="warn")
    assert run(one_step, on_failure="ignore").isfinite().all()
    with pytest.raises(
        ValueError, match=r"solver=Exact\(\) with log_decay and ridge_mode='static'"
    ):
        MesaLayer.mesanet2025(**SIZES, solver="exact")
    assert MesaLayer.mesanet2025(**SIZES, solver="exact", chunk_size=1)(x).isfinite().all()


def test_a_state_does_not_keep_the_sequence() -> None:
    layer = MesaLayer.mesanet2025(**SIZES)
    near = SoftmaxSelfAttention(**SIZES, window=9)
    with torch.no_grad():
        _, state = layer.extend(torch.randn(1, 500, 6))
        _, windowed = near.extend(torch.randn(1, 500, 6))
    keys, values, _ = windowed.memory
    assert keys.shape[1] == 8
    for x in (state.memory.gram, state.memory.cross, state.recent, keys, values):
        assert x.untyped_storage().nbytes() == x.nbytes


def test_shifted_keys_belong_to_the_token_before() -> None:
    x = small_input()
    plain = LinearSelfAttention(**SIZES).double()
    shifted = LinearSelfAttention(**SIZES, frame=Frame(key_shift=True)).double()
    shifted.load_state_dict(plain.state_dict())
    ours, theirs = shifted.head_inputs(x), plain.head_inputs(x)
    assert torch.equal(ours.q, theirs.q)
    assert torch.equal(ours.v, theirs.v)
    assert torch.equal(ours.k[:, 1:], theirs.k[:, :-1])
    assert (ours.k[:, 0] == 0).all()


def test_a_layer_with_shifted_keys_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        layer = LinearSelfAttention(**SIZES, frame=Frame(key_shift=True))
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.convolution.weight.unique(dim=0).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("shifts", [1, 2, 3])
def test_features_are_products_of_parts(shifts: int) -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    features = dpfp(x, shifts)
    parts = torch.cat([x.clamp(min=0), -x.clamp(max=0)], dim=1)
    for row, found in zip(parts, features, strict=True):
        wanted = [row[i] * row[(i - j) % 6] for j in range(1, shifts + 1) for i in range(6)]
        assert found.tolist() == pytest.approx([w.item() for w in wanted])


@pytest.mark.parametrize(
    "frame",
    [
        Frame(convolution=4),
        Frame(convolution=1),
        Frame(key_shift=True),
        Frame(features=1),
        Frame(unit_keys=True),
        Frame(head_norm=True),
        Frame(forget_cap=0.9),
    ],
)
def test_every_part_of_the_frame_changes_something(frame: Frame) -> None:
    x = small_input()
    torch.manual_seed(0)
    plain = GatedLinearSelfAttention(**SIZES).double()
    framed = GatedLinearSelfAttention(**SIZES, frame=frame).double()
    framed.load_state_dict(plain.state_dict(), strict=False)
    assert (framed(x) - plain(x)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_turned_vectors_keep_lengths_and_depend_on_distances_alone(dtype: torch.dtype) -> None:
    q, k = (
        small_input(2, 9)[..., None, :4].to(dtype),
        small_input(2, 9, seed=2)[..., None, :4].to(dtype),
    )
    times = torch.tensor([3, 0, 40, 999, 12, 7, 2, 100_000, 5])
    (turned,), lengths = rotate(times, q), q.double().norm(dim=-1)
    assert turned.dtype == dtype
    # One rounding of numbers up to 4, two of products.
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(turned.double().norm(dim=-1), lengths, rtol=rtol, atol=0.0)
    wide_q, wide_k = q.double(), k.double()
    scores = []
    for shift in (0, 1000):
        (turned_q,), (turned_k,) = rotate(times + shift, wide_q), rotate(times + 2 + shift, wide_k)
        scores.append((turned_q * turned_k).sum(-1))
    # Angles of 1e5 are known to 1e-11.
    torch.testing.assert_close(*scores, rtol=0.0, atol=1e-9)
    assert (scores[0] - (wide_q * wide_k).sum(-1)).abs().max() > 0.1, "nothing was turned"


def test_zero_vectors_have_no_direction_and_a_finite_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    y = normalise(x)
    y.sum().backward()
    assert (y == 0).all()
    assert (x.grad == 1).all()


def test_the_cap_needs_no_write_strength() -> None:
    log_decay, beta, sign = Gates(6, 1, ["log_decay"], forget_cap=0.9)(torch.full((1, 1, 6), 0.0))
    assert beta is None
    # The first head begins with a memory of 16 tokens, gamma = 16 / 17.
    assert log_decay.exp().item() == pytest.approx(0.9 * 16 / 17, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Frame(convolution=0), "convolution=0: must be 1 or greater"),
        (lambda: Frame(features=-1), "features=-1: must be 0 or greater"),
        (
            lambda: Frame(convolution=4, key_shift=True),
            "key_shift=True: must be False with a convolution",
        ),
        (lambda: Frame(forget_cap=1.5), "forget_cap=1.5: must be above 0 and at most 1"),
        (lambda: MesaLayer(0, 2, 5), "width=0: must be 1 or greater"),
        (lambda: MesaLayer(6, 2, 0), "head_dim=0: must be 1 or greater"),
        (
            lambda: DeltaRuleLayer(6, 2, 5, frame=Frame(forget_cap=0.9)),
            "forget_cap=0.9: must be None in a layer that never forgets",
        ),
        (
            lambda: MesaLayer(6, 2, 5, ridge_floor=1.0),
            "ridge_floor=1.0: must be above 0 and below 1",
        ),
        (
            lambda: MesaLayer(6, 2, 5, num_key_value_heads=3),
            "num_key_value_heads=3: must be a divisor of num_heads=2",
        ),
        (
            lambda: SoftmaxSelfAttention(6, 2, 5, num_key_value_heads=0),
            "num_key_value_heads=0: must be a divisor of num_heads=2",
        ),
        (lambda: Gates(6, 2, ["bete"]), "gates: 'bete': "),
        (
            lambda: SoftmaxSelfAttention(6, 2, 5, frame=Frame(rotary=True)),
            "head_dim=5: must be even, for rotary pairs",
        ),
    ],
)
@pytest.mark.usefixtures("_unchecked")
def test_settings_out_of_range_are_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build()


BUILDERS = {
    layer.__qualname__: layer
    for layer in (
        LinearSelfAttention,
        GatedLinearSelfAttention,
        DeltaRuleLayer,
        GatedDeltaRuleLayer,
        LonghornLayer,
        SoftmaxSelfAttention,
        MesaLayer,
        MesaLayer.uncovering2023,
        MesaLayer.mesanet2025,
        Frame,
        Frame.mesanet2025,
        Gates,
        HeadNorm,
        CausalConvolution,
    )
}
COUNTS: tuple[object, ...] = (2.0, 2.5, True, 0, -1, "2", math.nan)
SHARES: tuple[object, ...] = (0, 1.5, -0.1, True, "0.5", math.nan)
FLAGS: tuple[object, ...] = (1, 0.0, "yes", None)
WORDS: tuple[object, ...] = ("nonsense", None, 3)
WRONG: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("width", "num_heads", "head_dim", "num_key_value_heads"), COUNTS),
    **dict.fromkeys(("chunk_size", "window", "channels", "length", "convolution"), COUNTS),
    **dict.fromkeys(("ridge_floor", "forget_cap"), SHARES),
    **dict.fromkeys(("positions", "rotary", "convolve_values", "key_shift", "unit_keys"), FLAGS),
    **dict.fromkeys(("unit_values", "head_norm", "signed_decay", "forget"), FLAGS),
    **dict.fromkeys(("solver", "on_failure", "ridge_mode"), WORDS),
    "features": (2.0, True, -1, "2", None),
    "scale": (0, -1.0, True, "2", math.nan, math.inf),
    "frame": (True, "plain", {}),
    "gates": ("beta", ("bete",), 3),
    "names": ("beta", ("bete",), 3, None),
}
ENOUGH = {
    "width": 6,
    "num_heads": 2,
    "head_dim": 3,
    "channels": 3,
    "length": 2,
    "names": ("log_decay",),
}


@pytest.mark.parametrize(
    ("builder", "argument"),
    [(name, argument) for name in BUILDERS for argument in signature(BUILDERS[name]).parameters],
)
@pytest.mark.usefixtures("_unchecked")
def test_settings_of_another_kind_are_errors(builder: str, argument: str) -> None:
    build = BUILDERS[builder]
    enough = {n: ENOUGH[n] for n in signature(build).parameters if n in ENOUGH}
    build(**enough)
    named = "gates" if argument == "names" else argument
    for wrong in WRONG[argument]:
        with pytest.raises((ConfigError, ValueError, TypeError), match=rf"^{named}(=|:| is) ?"):
            build(**enough | {argument: wrong})


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("size", [2.0, True, 0, -1, "2", None])
def test_a_state_is_of_a_number_of_sequences(size: object) -> None:
    with pytest.raises(ConfigError, match=f"^batch_size={size!r}: must be "):
        MesaLayer(**SIZES).init_state(size)


@pytest.mark.usefixtures("_unchecked")
def test_inputs_and_states_that_do_not_fit_are_errors() -> None:
    layer = MesaLayer.mesanet2025(**SIZES)
    x, state = torch.randn(2, 3, 6), layer.init_state(2)
    cases = [
        (lambda: layer(x[0]), r"x has shape \(3, 6\): must be \[batch, time, 6\]"),
        (lambda: layer(x[..., :5]), r"x has shape \(2, 3, 5\): must be \[batch, time, 6\]"),
        (lambda: layer.step(x[0, 0], state), r"x has shape \(6,\): must be"),
        (
            lambda: layer.extend(x, layer.init_state(3)),
            "state has 3 sequences: must have 2",
        ),
        (
            lambda: layer.extend(x, layer.init_state(2, dtype=torch.float64)),
            "state.recent has type torch.float64: must be torch.float32",
        ),
        (
            lambda: MesaLayer(**SIZES).extend(x, MesaLayer(6, 2, 4).init_state(2)),
            r"initial_state.gram has shape \(2, 2, 4, 4\): must be \(2, 2, 5, 5\)",
        ),
        (
            lambda: DeltaRuleLayer(**SIZES).extend(x, SoftmaxSelfAttention(**SIZES).init_state(2)),
            "initial_state has type KeyValueState: must be LinearState",
        ),
        (
            lambda: layer(x, mask=torch.ones(2, 3)),
            "mask is of torch.float32: must be a tensor of torch.bool, true at tokens",
        ),
        (
            lambda: layer(x, mask=torch.ones(2, 4) > 0),
            r"mask has shape \(2, 4\): must be \(2, 3\), as x",
        ),
        (
            lambda: layer(x[:1], mask=torch.ones(1, 3) > 0, cu_seqlens=torch.tensor([0, 3])),
            "mask and cu_seqlens are both given: must be one of them",
        ),
        (
            lambda: layer(x[0], mask=torch.ones(2, 3) > 0),
            r"x has shape \(3, 6\): must be \[batch, time, 6\]",
        ),
        (
            lambda: state.index_select(torch.tensor([1.0])),
            "indices is of torch.float32: must be a tensor of torch.int64",
        ),
        (
            lambda: state.index_select(torch.tensor(1)),
            r"indices has shape \(\): must be \[selected\]",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.usefixtures("_unchecked")
def test_the_examples_of_the_documentation_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 2
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for code in examples:
            exec(compile(code, "layers.md", "exec"), names)


@pytest.mark.parametrize(
    ("part", "shape", "wanted"),
    [
        (CausalConvolution(3, 4), (2, 5, 1), "[batch, time, 3]"),
        (CausalConvolution(3, 4), (5, 3), "[batch, time, 3]"),
        (HeadNorm(2, 4), (1, 3, 1, 4), "[..., 2, 4]"),
        (HeadNorm(2, 4), (1, 3, 2, 1), "[..., 2, 4]"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_unchecked")
def test_parts_of_a_frame_widen_no_input(
    part: torch.nn.Module, shape: tuple[int, ...], wanted: str
) -> None:
    message = re.escape(f"x has shape {shape}: must be {wanted}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        part(torch.zeros(shape))


@pytest.mark.parametrize(
    "make",
    [MesaLayer, MesaLayer.mesanet2025, partial(MesaLayer.uncovering2023, forget=True)],
    ids=["plain", "2025", "2023"],
)
@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.usefixtures("_unchecked")
def test_a_mesa_layer_runs_where_there_are_no_numbers(
    make: Callable[..., MesaLayer], *, fake: bool
) -> None:
    with FakeTensorMode() if fake else torch.device("meta"):
        out = make(width=8, num_heads=2, head_dim=4)(torch.empty(2, 70, 8))
        out.sum().backward()
    assert out.shape == (2, 70, 8)
