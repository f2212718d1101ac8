import re
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import capture, captured_names, evaluating, patch, patching
from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel

BATCH, TIME, TOKEN = 3, 7, 6
CONFIG = ModelConfig(
    mixers=("softmax_attention", "mesa", "linear_attention"),
    token_dim=TOKEN,
    output_dim=3,
    num_heads=2,
    head_dim=3,
    positions="first_layer",
    initial_std=0.2,
    mlp_dim=5,
)
COMPUTED = ("queries", "keys", "values", "attention")


def make() -> tuple[SequenceModel, Tensor]:
    return SequenceModel(CONFIG), draw(0)


def draw(seed: int) -> Tensor:
    return torch.randn(BATCH, TIME, TOKEN, generator=torch.Generator().manual_seed(seed))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("positions", [None, [1, 5, TIME]])
def test_its_own_activations_change_nothing(positions: list[int] | None) -> None:
    model, x = make()
    names = [name for name in captured_names(model) if not name.endswith(COMPUTED)]
    assert len(names) > 30
    own, before = capture(model, x, names), model(x)
    for name in names:
        assert torch.equal(patch(model, x, {name: own[name]}, positions=positions), before), name
    assert torch.equal(patch(model, x, own, positions=positions), before), "all of them at once"


def test_nothing_replaced_is_the_model() -> None:
    model, x = make()
    assert torch.equal(patch(model, x, {}), model(x))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_zero_removes_a_branch_from_the_residual_stream(layer: int) -> None:
    model, x = make()
    stream = model.embedding(x)
    for number, block in enumerate(model.blocks):
        y = stream if number == layer else stream + block.mixer(stream)
        stream = (y + block.mlp(y)).clamp(-block.clip, block.clip)
    assert torch.equal(patch(model, x, {f"blocks.{layer}.mixer": 0.0}), model.readout(stream))


def test_all_branches_removed_leave_the_readout_of_the_token() -> None:
    model, x = make()
    branches = [f"blocks.{i}.{part}" for i in range(3) for part in ("mixer", "mlp")]
    assert torch.equal(patch(model, x, dict.fromkeys(branches, 0.0)), x[..., :3])


def test_the_stream_of_another_run_gives_the_output_of_that_run() -> None:
    model, x = make()
    other = draw(1)
    for name in ("input", "blocks.1.input", "blocks.1", "readout.input", "output"):
        there = capture(model, other, [name])
        assert torch.equal(patch(model, x, there), model(other)), name


def test_other_positions_stay() -> None:
    model, x = make()
    stream, other = capture(model, x, ["blocks.2"])["blocks.2"], draw(1)
    wanted = stream.clone()
    wanted[:, [1, 4]] = other[:, [1, 4]]
    output = patch(model, x, {"blocks.2": other}, positions=[2, 5])
    assert torch.equal(output, model.readout(wanted))
    assert torch.equal(patch(model, x, {"blocks.2": other}, positions=[]), model(x))


def test_an_early_part_acts_on_later_positions_only() -> None:
    model, x = make()
    change = (patch(model, x, {"blocks.0.mixer": 0.0}, positions=[4]) - model(x)).abs().amax((0, 2))
    assert (change[:3] == 0).all()
    assert (change[3:] > 0).all()


def test_functions_and_tensors_that_broadcast() -> None:
    model, x = make()
    own = capture(model, x, ["blocks.1"])["blocks.1"]
    wanted = patch(model, x, {"blocks.1": own.mean(0).expand_as(own)})
    for mean in (own.mean(0), own.mean(0, keepdim=True), lambda y: y.mean(0)):
        assert torch.equal(patch(model, x, {"blocks.1": mean}), wanted)
    shared = own.mean((0, 2), keepdim=True).expand_as(own)
    assert torch.equal(
        patch(model, x, {"blocks.1": lambda y: y.mean((0, 2), keepdim=True)}),
        patch(model, x, {"blocks.1": shared}),
    )


def test_one_head_of_many() -> None:
    model, x = make()
    mixer = model.mixers[0]

    def without_the_second(mixed: Tensor) -> Tensor:
        return torch.cat([mixed[..., :3], torch.zeros_like(mixed[..., 3:])], dim=-1)

    found = patch(model, x, {"blocks.0.mixer.output.input": without_the_second})
    with torch.no_grad():
        mixer.output.weight[:, 3:] = 0
    torch.testing.assert_close(found, model(x))


def test_what_is_captured_inside_is_what_was_put_there() -> None:
    model, x = make()
    other = draw(1)
    with patching(model, {"blocks.0": other}, positions=[3]):
        found = capture(model, x, ["blocks.0", "blocks.1.input"])
    assert torch.equal(found["blocks.0"][:, 2], other[:, 2])
    assert torch.equal(found["blocks.0"], found["blocks.1.input"])


Pair = namedtuple("Pair", ["first", "second"])


class Several(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple | list:
        return Pair(x, 2 * x) if self.kind is Pair else self.kind([x, 2 * x])


class Caller(nn.Module):
    """Calls a part by keywords, and returns what it gives."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> object:
        return self.part(x=x)


@pytest.mark.parametrize("kind", [tuple, list, Pair])
def test_of_a_tuple_the_first_is_replaced(kind: type) -> None:
    model, x = Caller(Several(kind)), draw(0)
    found = patch(model, x, {"part": 1.0})
    assert type(found) is kind
    assert (found[0] == 1).all()
    assert torch.equal(found[1], 2 * x)


def test_inputs_given_by_name_are_replaced() -> None:
    x = draw(0)
    first, second = patch(Caller(Several(tuple)), x, {"part.input": 1.0})
    assert (first == 1).all()
    assert (second == 2).all()


def test_modules_of_pytorch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(TOKEN, 2, 8, batch_first=True).eval()
    x = draw(0)
    wanted = layer.norm1(x)
    wanted = layer.norm2(wanted + layer.linear2(layer.linear1(wanted).relu()))
    torch.testing.assert_close(patch(layer, x, {"self_attn": 0.0}), wanted)
    recurrent = nn.Sequential(nn.LSTM(TOKEN, 4, batch_first=True))
    output, (hidden, _) = recurrent(x)
    found, (kept, _) = patch(recurrent, x, {"0": 0.0}, positions=[2])
    assert (found[:, 1] == 0).all()
    assert torch.equal(found[:, 2:], output[:, 2:])
    assert torch.equal(kept, hidden)


def test_the_tensors_of_the_model_and_of_the_caller_stay() -> None:
    model, x, other = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), draw(0), draw(1)
    patch(model, x, {"0": other})
    assert torch.equal(other, draw(1)), "the model changes its own copy"
    patch(model, x, {"0": 0.0}, positions=[1])
    assert torch.equal(x, draw(0))


def test_gradients_flow_through_replacements_and_around_them() -> None:
    model, x = make()
    other = draw(1).requires_grad_()
    with patching(model, {"blocks.1": other}, positions=[4]):
        model(x).sum().backward()
    assert other.grad is not None
    assert [t for t in range(1, TIME + 1) if other.grad[:, t - 1].any()] == [4]
    assert model.mixers[0].query.weight.grad is not None
    assert not patch(model, x, {"blocks.1": other}).requires_grad


def test_inference_mode_and_the_mode_of_the_model() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(TOKEN, 2)), draw(0)
    with torch.inference_mode():
        patch(model, x, {"1": 0.0})
    assert model.training
    with evaluating(model):
        assert torch.equal(patch(model, x, {"0": lambda y: y}), model(x))


def test_the_model_comes_back_also_by_an_exception() -> None:
    model, x = make()
    before = model(x)
    with pytest.raises(RuntimeError, match="stop"), patching(model, {"blocks.0": 0.0}):
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="blocks.7"):
        patch(model, x, {"blocks.0": 0.0, "blocks.7": 0.0})
    assert hooks_of(model) == 0
    assert torch.equal(model(x), before)


def test_only_what_this_thread_runs_is_patched() -> None:
    barrier = threading.Barrier(2, timeout=20)

    class Waiting(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            barrier.wait()
            return x

    model, x = nn.Sequential(Waiting(), nn.Identity()), draw(0)
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(patch, model, x, {"0.input": value, "1": lambda y: y + 1}, positions=[1])
            for value in (0.0, 10.0)
        ]
        found = [call.result()[0, 0, 0].item() for call in calls]
    assert found == [1.0, 11.0]


@pytest.mark.parametrize(
    ("replacements", "positions", "message"),
    [
        ({"blocks.9": 0.0}, None, "replacements: 'blocks.9' is no part of the model; nearest: "),
        (
            {"blocks.0": torch.zeros(2, 3)},
            None,
            "replacements: 'blocks.0' is replaced by shape (2, 3): must be (3, 7, 6) or broadcast to it",
        ),
        (
            {"blocks.0": lambda y: y[None]},
            [1],
            "replacements: 'blocks.0' is replaced by shape (1, 3, 7, 6): must be (3, 7, 6) or broadcast",
        ),
        ({"blocks.0": 0.0}, [8], "positions=8: must be between 1 and 7"),
        ({"blocks.0": 0.0}, [0], "positions=0: must be 1 or greater"),
        (
            {"blocks.0.mixer.keys": 0.0},
            None,
            "replacements: 'blocks.0.mixer.keys' can be captured, not replaced: must be the input or the "
            "output of a module",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused(replacements, positions, message: str) -> None:
    model, x = make()
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        patch(model, x, replacements, positions=positions)
    assert hooks_of(model) == 0


def test_parts_without_tensors_without_time_or_without_a_run_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.unused = Sum(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.sum(x)

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2), keepdim=False)[0]

    model, x = Odd(), draw(0)
    with pytest.raises(ValueError, match=r"'sum' gives shape \(\): must be \[batch, time, ...\]"):
        patch(model, x, {"sum": 0.0}, positions=[1])
    assert (patch(model, x, {"sum": 0.0}) == 0).all()
    with pytest.raises(ValueError, match="'unused' did not run when the model did"):
        patch(model, x, {"unused": 0.0})
    with pytest.raises(ValueError, match="'part' gave str: must be a tensor"):
        patch(Caller(Text()), x, {"part": 0.0})


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"
