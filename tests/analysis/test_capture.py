import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import capture, captured_names, capturing, evaluating, up_to
from mesaopt.analysis.capture import like_weights
from mesaopt.config import LanguageModelConfig, ModelConfig
from mesaopt.layers import MesaLayer, SoftmaxSelfAttention
from mesaopt.models import LanguageModel, SequenceModel

CONFIG = ModelConfig(
    mixers=("softmax_attention", "mesa", "linear_attention"),
    token_dim=6,
    output_dim=3,
    num_heads=2,
    head_dim=3,
    positions="first_layer",
    initial_std=0.5,
    mlp_dim=5,
)


def make() -> tuple[SequenceModel, Tensor]:
    model = SequenceModel(CONFIG)
    return model, torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Twice(nn.Module):
    """Runs `part` twice, `unused` never, and `pair` with a tuple for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.text = Text()

    def forward(self, x: Tensor) -> Tensor:
        self.text(x=x)
        return self.part(self.part(x))


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


def test_the_output_of_a_block_is_the_input_of_the_next() -> None:
    model, x = make()
    names = ["input", "blocks.0.input", "blocks.0", "blocks.1.input", "blocks.2.output", "output"]
    found = capture(model, x, names)
    assert list(found) == names
    assert torch.equal(found["input"], x)
    assert torch.equal(found["blocks.0.input"], x)
    assert torch.equal(found["blocks.0"], model.blocks[0](x))
    assert torch.equal(found["blocks.1.input"], found["blocks.0"])
    assert torch.equal(found["blocks.2.output"][..., :3], found["output"])
    assert torch.equal(found["output"], model(x))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_heads_of_the_packages_layers(layer: int) -> None:
    model, x = make()
    mixer, name = model.mixers[layer], f"blocks.{layer}.mixer"
    ends = ("input", "queries", "keys", "values", "attention")
    found = capture(model, x, [name, *(f"{name}.{end}" for end in ends)])
    given, queries, keys, values, attention = (found[f"{name}.{end}"] for end in ends)
    inputs = mixer.head_inputs(given)
    for mine, wanted in ((queries, inputs.q), (keys, inputs.k), (values, inputs.v)):
        assert mine.shape == (2, 7, 2, 3)
        assert torch.equal(mine, wanted)
    mixed = torch.einsum("bhts,bshv->bthv", attention, values).flatten(2)
    torch.testing.assert_close(mixer.output(mixed), found[name])


def test_a_part_and_the_heads_of_its_parent_are_both_kept() -> None:
    model, x = make()
    names = ["blocks.0.mixer.query", "blocks.0.mixer.queries", "blocks.0.mixer.attention"]
    for order in (names, names[::-1]):
        found = capture(model, x, order)
        flat = found["blocks.0.mixer.query"]
        assert torch.equal(flat.unflatten(-1, (2, 3)), found["blocks.0.mixer.queries"])


def test_capturing_changes_nothing() -> None:
    model, x = make()
    before = model(x)
    with capturing(model, captured_names(model)) as found:
        after = model(x)
    assert torch.equal(before, after)
    assert set(found) == set(captured_names(model))
    after.sum().backward()
    assert model.mixers[0].query.weight.grad is not None, "gradients flow around captured tensors"
    assert not any(tensor.requires_grad for tensor in found.values())
    assert hooks_of(model) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_is(training: bool) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6)).train(training)
    found = capture(model, torch.ones(4, 5, 6), ["0"])["0"]
    assert model.training is model[0].training is training
    assert bool((found == 0).any()) is training


def test_gradients_are_not_tracked_and_not_switched_off_for_good() -> None:
    model, x = make()
    x.requires_grad_()
    assert not capture(model, x, ["blocks.0"])["blocks.0"].requires_grad
    assert torch.is_grad_enabled()


class Remembering(nn.Module):
    """Keeps weak references to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        self.given.append(weakref.ref(y))
        return y


def test_nothing_else_is_kept_in_memory() -> None:
    parts = [Remembering() for _ in range(4)]
    found = capture(nn.Sequential(*parts), torch.zeros(3), ["2"])
    gc.collect()
    assert [part.given[0]() is None for part in parts] == [True] * 4
    assert found["2"].untyped_storage().nbytes() == 3 * 4


def test_a_view_does_not_keep_its_base_in_memory() -> None:
    model, x = make()
    found = capture(model, x, ["readout"])["readout"]
    assert found.untyped_storage().nbytes() == found.numel() * 4


def test_changes_in_place_come_too_late() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    x = torch.tensor([[-1.0, 1.0]])
    found = capture(model, x.clone(), ["0", "1.input", "1", "input"])
    for name in ("0", "1.input", "input"):
        assert torch.equal(found[name], x), name
    assert torch.equal(found["1"], x.relu())


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True).eval()


def test_modules_of_pytorch_that_return_tuples() -> None:
    model, x = encoder(), torch.randn(2, 7, 6)
    found = capture(model, x, ["self_attn", "self_attn.input", "linear1", "norm2", "output"])
    wanted = model.self_attn(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found["self_attn"], wanted)
    assert torch.equal(found["self_attn.input"], x)
    assert found["linear1"].shape == (2, 7, 8)
    assert torch.equal(found["norm2"], found["output"])
    attention = nn.MultiheadAttention(6, 2, batch_first=True)

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(query=x, key=x, value=x)[0]

    found = capture(Called(), x, ["attention", "attention.input", "output"])
    assert torch.equal(found["attention.input"], x), "given by name"
    assert torch.equal(found["attention"], found["output"])


def test_stacks_of_pytorch() -> None:
    model = nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 7, 6)
    found = capture(model, x, ["layers.0", "layers.1.input", "layers.1"])
    assert torch.equal(found["layers.0"], found["layers.1.input"])
    assert torch.equal(found["layers.0"], capture(model.layers[0], x, ["output"])["output"])


def test_a_submodule_comes_before_an_end_of_the_same_name() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Linear(3, 3))
    x = torch.randn(2, 3)
    assert torch.equal(capture(model, x, ["input"])["input"], model(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prat", "'prat' is no part of the model; nearest: part, input, part.input"),
        ("part.queries", "'part.queries' is no part of the model; nearest: "),
        ("", "'' is no part of the model; nearest: none"),
        ("unused", "'unused' did not run when the model did"),
        ("part", "'part' runs more than once; ask for a part that runs once"),
        ("text", "'text' gave str: must be a tensor"),
    ],
)
def test_errors_name_the_problem_and_leave_no_hooks(name: str, message: str) -> None:
    model = Twice()
    with pytest.raises(ValueError, match="^names: ") as error:
        capture(model, torch.zeros(2, 6), ["output", name])
    assert message in str(error.value)
    assert hooks_of(model) == 0


def test_a_single_name_is_not_a_list_of_letters() -> None:
    model, x = make()
    for ask in (
        lambda: capture(model, x, "output"),
        lambda: capturing(model, "output").__enter__(),
    ):
        with pytest.raises(ValueError, match=r"^names='output': must be a list of names"):
            ask()


def test_a_tensor_gets_the_type_of_the_weights() -> None:
    x = torch.zeros(2)
    assert like_weights(nn.Linear(2, 2).double(), x).dtype is torch.float64
    assert like_weights(nn.ReLU(), x) is x


def test_a_model_that_fails_leaves_no_hooks() -> None:
    model, _ = make()
    with pytest.raises(ValueError, match="tokens has shape"):
        capture(model, torch.zeros(2, 7, 5), ["blocks.1", "blocks.0.mixer.attention"])
    with pytest.raises(ValueError, match="tokens has shape"):
        up_to(model, "blocks.1")(torch.zeros(2, 7, 5))
    assert hooks_of(model) == 0


def test_arguments_that_come_by_name_are_inputs_too() -> None:
    x = torch.randn(2, 6)
    assert torch.equal(capture(Twice(), x, ["text.input"])["text.input"], x)


def test_a_module_under_two_names_answers_to_both() -> None:
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="'1' runs more than once"):
        capture(nn.Sequential(shared, shared), torch.zeros(2, 3), ["1"])


@pytest.mark.parametrize("name", ["blocks.1", "blocks.1.mixer.keys", "blocks.0.mixer.attention"])
def test_a_model_cut_off_after_a_part(name: str) -> None:
    model, x = make()
    part, reached = up_to(model, name), []
    model.blocks[2].register_forward_pre_hook(lambda *_: reached.append(1))
    x.requires_grad_()
    found = part(x)
    assert not reached, "the rest of the model ran"
    wanted = capture(model, x, [name])[name]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    assert slope.abs().sum() > 0
    assert hooks_of(model) == 1, "ours are gone"


def test_a_cut_after_a_part_that_does_not_run() -> None:
    with pytest.raises(ValueError, match="^name: 'unused' did not run"):
        up_to(Twice(), "unused")(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="^name: 'prat' is no part"):
        up_to(Twice(), "prat")
    with pytest.raises(ValueError, match="^name: 'text' gave str"):
        up_to(Twice(), "text")(torch.zeros(2, 6))


def of_language() -> tuple[LanguageModel, Tensor]:
    config = LanguageModelConfig(vocabulary=7, width=6, num_heads=2, mixers=CONFIG.mixers)
    return LanguageModel(config), torch.randint(7, (2, 5))


@pytest.mark.parametrize("given", [make, of_language])
def test_all_listed_names_can_be_captured(given: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, x = given()
    names = captured_names(model)
    assert len(names) == len(set(names))
    for name in names:
        assert capture(model, x, [name])[name].isfinite().all()


def test_names_of_parts_that_run_are_listed() -> None:
    model, _ = make()
    names = captured_names(model)
    assert {"input", "blocks.1", "blocks.1.mixer.attention", "blocks.0.mlp.1.output"} <= set(names)
    assert not {"blocks", "blocks.input", "blocks.1.queries"} & set(names)
    for layer in (SoftmaxSelfAttention(6, 2, 3), MesaLayer(6, 2, 3)):
        assert "attention" in captured_names(layer)


class Attention(nn.Module):
    """Takes its tokens first, and its mask from whoever has one."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Tensor):
        return hidden_states * 2


class OnlyByName(nn.Module):
    def forward(self, *, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return hidden_states * 2


class Anything(nn.Module):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return (*args, *kwargs.values())[-1] * 2


class Caller(nn.Module):
    def __init__(self, part: nn.Module, call) -> None:
        super().__init__()
        self.part, self.call = part, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.part, x, torch.zeros(7, 7))


CALLS = {
    "mask first": lambda part, x, m: part(attention_mask=m, hidden_states=x),
    "tokens first": lambda part, x, m: part(hidden_states=x, attention_mask=m),
    "one by one": lambda part, x, m: part(x, attention_mask=m),
    "alone": lambda part, x, _: part(hidden_states=x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("part", [Attention, OnlyByName])
def test_the_input_is_the_first_parameter_however_it_is_named(part: type, call: str) -> None:
    if part is OnlyByName and call == "one by one":
        pytest.skip("its parameters have no places")
    model, x = Caller(part(), CALLS[call]), torch.randn(2, 7, 6)
    assert torch.equal(capture(model, x, ["part.input"])["part.input"], x)
    assert torch.equal(up_to(model, "part.input")(x), x)


def test_the_heads_of_layers_called_by_name() -> None:
    layer, x = MesaLayer(6, 2, 3), torch.randn(2, 7, 6)
    names = ["part.input", "part.keys", "part.attention"]
    by_name = capture(Caller(layer, lambda part, x, _: part(x=x)), x, names)
    by_place = capture(Caller(layer, lambda part, x, _: part(x)), x, names)
    for name in names:
        assert torch.equal(by_name[name], by_place[name])


class Maybe(nn.Module):
    def forward(self, ids=None, mask=None, embedded=None) -> Tensor:
        return embedded * 2


@pytest.mark.parametrize(
    ("part", "call", "message"),
    [
        (Maybe, lambda part, x, m: part(None, m, x), "gave NoneType: must be a tensor"),
        (
            Maybe,
            lambda part, x, m: part(mask=m, embedded=x),
            "was called with mask, embedded: must be with 'ids'",
        ),
        (
            Anything,
            lambda part, x, m: part(mask=m, x=x),
            "was called with mask, x: must be with one, to tell its input",
        ),
    ],
)
def test_an_input_that_cannot_be_told_is_refused(part: type, call, message: str) -> None:
    with pytest.raises(ValueError, match="^names: 'part.input' ") as error:
        capture(Caller(part(), call), torch.randn(2, 7, 6), ["part.input"])
    assert message in str(error.value)


def test_a_single_argument_of_any_name_is_the_input() -> None:
    x = torch.randn(2, 7, 6)
    for call in (lambda part, x, _: part(x), lambda part, x, _: part(anything=x)):
        assert torch.equal(capture(Caller(Anything(), call), x, ["part.input"])["part.input"], x)


class Waiting(nn.Module):
    """Runs only when all threads have arrived, twice, so that their calls overlap."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(threads, timeout=20)
        self.part, self.dropout = nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.barrier.wait()
        x = self.dropout(self.part(x))
        self.barrier.wait()
        return x


@pytest.mark.parametrize("names", [["part"], ["part.input", "output"]])
def test_threads_that_share_a_model_do_not_mix(names: list[str]) -> None:
    model = Waiting(3).eval()
    given = [torch.full((2, 3), float(i)) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda x: capture(model, x, names), given))
    for x, found in zip(given, results, strict=True):
        for name in names:
            assert torch.equal(found[name], x)
    assert hooks_of(model) == 0


def test_threads_that_cut_a_model_do_not_mix() -> None:
    model = Waiting(2).eval()
    given = [torch.full((2, 3), float(i)) for i in range(2)]
    cuts = [up_to(model, "output"), model]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda cut, x: cut(x), cuts, given))
    for x, found in zip(given, results, strict=True):
        assert torch.equal(found, x)


def test_a_model_stays_in_evaluation_until_the_last_thread_is_done() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model[0].training
    second.__exit__(None, None, None)
    assert [part.training for part in model] == [True, False]
    assert model.training
