import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mesaopt.analysis import Sensitivity, sensitivity
from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import tokens_from_states
from mesaopt.theory import proposition_1

TIME, TOKEN = 7, 4
EXACT = {"rtol": 1e-9, "atol": 1e-12}  # sums of some hundred products in float64, in another order


def make(*mixers: str, seed: int = 0) -> SequenceModel:
    config = ModelConfig(
        mixers=mixers,
        token_dim=TOKEN,
        output_dim=3,
        embed_dim=6,
        readout="linear",
        num_heads=2,
        head_dim=3,
        positions="first_layer",
        initial_std=0.5,
        activation_clip=None,
    )
    return SequenceModel(config, seed=seed).double()


def draw(batch: int = 3, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TIME, TOKEN, generator=random, dtype=torch.float64)


def slow_norms(part, tokens: Tensor, position: int) -> Tensor:
    """|d f_l / d s_t'| by [coordinate, sequence, time], one derivative at a time."""
    rows = []
    for sequence in tokens:
        x = sequence[None].clone().requires_grad_()
        output = part(x)[0, position - 1].flatten()
        slopes = [torch.autograd.grad(y, x, retain_graph=True)[0][0] for y in output]
        rows.append(torch.stack([slope.norm(dim=-1) for slope in slopes]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("mixer", ["softmax_attention", "linear_attention", "mesa"])
@pytest.mark.parametrize("position", [1, 4, TIME])
def test_a_loop_over_everything(mixer: str, position: int) -> None:
    model, tokens = make(mixer, "mesa"), draw()
    found = sensitivity(model, tokens, name="blocks.0", position=position)
    wanted = slow_norms(lambda x: model.blocks[0](model.embedding(x)), tokens, position)
    torch.testing.assert_close(found.norms, wanted.mean(0), **EXACT)
    torch.testing.assert_close(found.frobenius, wanted.square().sum(0).sqrt(), **EXACT)
    assert (found.norms[:, position:] == 0).all(), "the layer is causal"
    assert (found.norms[:, :position] > 0).all()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("output", lambda model, x: model(x)),
        ("blocks.1.mixer", lambda m, x: m.mixers[1](m.blocks[0](m.embedding(x)))),
        ("blocks.1.input", lambda model, x: model.blocks[0](model.embedding(x))),
        ("blocks.0.mixer.keys", lambda m, x: m.mixers[0].head_inputs(m.embedding(x)).k),
        ("input", lambda _, x: x),
    ],
)
def test_any_part_of_a_model(name: str, part) -> None:
    model, tokens = make("softmax_attention", "mesa"), draw()
    found = sensitivity(model, tokens, name=name, position=5)
    wanted = slow_norms(lambda x: part(model, x), tokens, 5)
    torch.testing.assert_close(found.norms, wanted.mean(0), **EXACT)


def test_finite_differences() -> None:
    model, tokens, step = make("softmax_attention", "mesa"), draw(2), 1e-5
    columns = {}
    for t, d in itertools.product(range(TIME), range(TOKEN)):
        change = torch.zeros_like(tokens)
        change[:, t, d] = step
        difference = model(tokens + change)[:, 4] - model(tokens - change)[:, 4]
        columns[t, d] = difference / (2 * step)  # [B,L]
    jacobian = torch.stack(
        [torch.stack([columns[t, d] for d in range(TOKEN)], -1) for t in range(TIME)], 1
    )  # [B,T,L,D]
    found = sensitivity(model, tokens, name="output", position=5)
    # Errors of step^2 = 1e-10 times third derivatives of order 1 to 100, and roundings of 1e-16 / step.
    torch.testing.assert_close(found.norms, jacobian.norm(dim=-1).mean(-1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.frobenius, jacobian.norm(dim=(-2, -1)), rtol=1e-6, atol=1e-7)


@given(st.integers(1, TIME), st.integers(0, 50))
def test_a_linear_module_has_the_norms_of_its_rows(position: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(TOKEN, 5).double()
    found = sensitivity(model, draw(seed=seed), name="output", position=position)
    wanted = torch.zeros(3, TIME).double()
    wanted[:, position - 1] = model.weight.norm(dim=1).mean()
    torch.testing.assert_close(found.norms, wanted, **EXACT)
    assert found.frobenius[0, position - 1].item() == pytest.approx(model.weight.norm().item())


def test_a_step_of_gradient_descent_has_the_jacobian_of_its_formula() -> None:
    # Slot 0 becomes eta sum_{t <= k} s_t (s_{t-1} . s_k), a function of the current and the previous slot.
    dim, eta, k = 3, 0.1, 5
    config = ModelConfig(
        token_dim=4 * dim, output_dim=dim, num_heads=1, head_dim=dim, activation_clip=None
    )
    model = SequenceModel(config).double()
    model.load_state_dict(proposition_1(dim, step_size=eta))
    states = torch.randn(2, TIME, dim, generator=torch.Generator().manual_seed(0)).double()
    tokens = tokens_from_states(states, ("zero", "zero", "current", "previous"))
    found = sensitivity(model, tokens, name="output", position=k)
    current, previous = states, torch.cat([torch.zeros(2, 1, dim), states[:, :-1]], 1).double()
    eye = torch.eye(dim, dtype=torch.float64)
    for b in range(2):
        query = current[b, k - 1]
        for t in range(TIME):
            block = torch.zeros(dim, 4 * dim, dtype=torch.float64)
            if t < k:
                block[:, 2 * dim : 3 * dim] = eta * (previous[b, t] @ query) * eye
                block[:, 3 * dim :] = eta * torch.outer(current[b, t], query)
            if t == k - 1:
                block[:, :dim] = eye  # the former content of slot 0
                pairs = torch.einsum("ti,tj->ij", current[b, :k], previous[b, :k])
                block[:, 2 * dim : 3 * dim] += eta * pairs
            assert found.norms[b, t].item() == pytest.approx(block.norm(dim=1).mean().item())
            assert found.frobenius[b, t].item() == pytest.approx(block.norm().item())


def test_many_sequences_are_those_of_one_each() -> None:
    model, tokens = make("softmax_attention"), draw(130)
    done: list[tuple[int, int]] = []
    found = sensitivity(
        model,
        tokens,
        name="blocks.0",
        position=6,
        progress=lambda progress: done.append((progress.done, progress.total)),
    )
    assert done == [(64, 130), (128, 130), (130, 130)]
    for i in (0, 63, 64, 129):
        one = sensitivity(model, tokens[i : i + 1], name="blocks.0", position=6)
        torch.testing.assert_close(found.norms[i : i + 1], one.norms, **EXACT)
    torch.testing.assert_close(found.curve, found.norms.mean(0))
    error = found.norms.std(0) / 130**0.5
    torch.testing.assert_close(found.curve_error, error)


def test_modules_of_pytorch() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(TOKEN, 2, 8, dropout=0.0, batch_first=True).double().eval()
    tokens = draw()
    for name, part in (
        ("self_attn", lambda x: model.self_attn(x, x, x, need_weights=False)[0]),
        ("output", model),
    ):
        found = sensitivity(model, tokens, name=name, position=3)
        torch.testing.assert_close(found.norms, slow_norms(part, tokens, 3).mean(0), **EXACT)
    assert (found.norms > 0).all(), "it is not causal"


class Cube(torch.autograd.Function):
    """Of the old kind, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x)


def test_modules_that_torch_func_refuses() -> None:
    torch.manual_seed(0)
    recurrent, tokens = nn.LSTM(TOKEN, 5, batch_first=True).double(), draw()
    found = sensitivity(recurrent, tokens, name="output", position=5)
    wanted = slow_norms(lambda x: recurrent(x)[0], tokens, 5)
    torch.testing.assert_close(found.norms, wanted.mean(0), **EXACT)
    assert (found.norms[:, :5] > 0).all()
    assert (found.norms[:, 5:] == 0).all()
    assert all(p.grad is None for p in recurrent.parameters())
    cubed = sensitivity(Cubed(), tokens, name="output", position=5)
    wanted = (3 * tokens[:, 4] ** 2).mean(-1)
    torch.testing.assert_close(cubed.norms[:, 4], wanted, **EXACT)


def test_a_part_that_depends_on_no_token() -> None:
    class Constant(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.expand(*x.shape[:2], 2)

    for weight in (torch.ones(2).double(), nn.Parameter(torch.ones(2).double())):
        found = sensitivity(Constant(weight), draw(), name="output", position=5)
        assert torch.equal(found.norms, torch.zeros(3, TIME).double())


def test_a_model_that_changes_its_input_in_place() -> None:
    tokens = draw()
    found = sensitivity(nn.ReLU(inplace=True), tokens, name="output", position=5)
    assert torch.equal(tokens, draw())
    torch.testing.assert_close(found.norms[:, 4], (tokens[:, 4] > 0).double().mean(-1))


def test_dropout_is_off_and_comes_back() -> None:
    model, tokens = nn.Sequential(nn.Dropout(0.5), nn.Linear(TOKEN, 3)).double(), draw()
    found = sensitivity(model, tokens, name="output", position=5)
    wanted = sensitivity(model[1], tokens, name="output", position=5)
    torch.testing.assert_close(found.norms, wanted.norms, **EXACT)
    assert model[0].training


def test_the_model_is_left_alone() -> None:
    model, tokens = make("softmax_attention"), draw()
    sensitivity(model, tokens, name="blocks.0", position=2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    assert not tokens.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_later_parts_do_not_run() -> None:
    model, reached = make("softmax_attention", "mesa"), []
    model.blocks[1].register_forward_pre_hook(lambda *_: reached.append(1))
    sensitivity(model, draw(), name="blocks.0", position=2)
    assert not reached


def test_breadth_counts_tokens() -> None:
    norms = torch.tensor([[0.0, 2.0, 0.0, 0.0], [3.0, 3.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    found = Sensitivity(4, norms, norms)
    torch.testing.assert_close(found.breadth, torch.tensor([1.0, 3.0, 4.0]))


@pytest.mark.parametrize("position", [0, -1, TIME + 1])
def test_positions_outside_of_the_sequence_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match=f"position={position}: must be between 1 and {TIME}"):
        sensitivity(make("mesa"), draw(), name="blocks.0", position=position)


def test_parts_of_another_shape_are_refused() -> None:
    model = make("softmax_attention")
    with pytest.raises(ValueError, match="^name: 'blocks.7' is no part of the model; nearest: "):
        sensitivity(model, draw(), name="blocks.7", position=1)
    with pytest.raises(ValueError, match=r"gives shape \(3, 2, 7, 7\): must be \[batch, time"):
        sensitivity(model, draw(), name="blocks.0.mixer.attention", position=1)
