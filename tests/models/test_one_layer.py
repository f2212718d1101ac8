import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mesaopt.config import ARProcessConfig, MergedAttentionConfig, ModelConfig
from mesaopt.errors import InitialisationWarning
from mesaopt.models import OneLayerModel, SequenceModel, make_model
from mesaopt.tasks import ARProcess, Batch, tokens_from_states
from mesaopt.theory import gradient_descent

CODE, PAPER = ("current", "previous"), ("zero", "current", "previous")
DIM, LENGTH = 3, 12
SMALL = MergedAttentionConfig(dim=DIM)


def batch_of(start: str = "gaussian", slots: tuple = CODE, count: int = 16) -> Batch:
    config = ARProcessConfig(dim=DIM, length=LENGTH, start=start, token_slots=slots)
    return ARProcess(config).sample(count, seed=0, dtype=torch.complex128)


def double(config: MergedAttentionConfig, seed: int = 0) -> OneLayerModel:
    return OneLayerModel(config, seed=seed, dtype=torch.complex128)


def train(model: OneLayerModel, batch: Batch, steps: int, learning_rate: float = 0.01) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        batch.losses(model(batch.tokens)).sum(1).mean().backward()
        optimizer.step()


def one_explicit_step(states: Tensor, step_size: float) -> Tensor:
    """Predict x_{t+1} = W x_t with W one gradient step from zero on 1/2 sum_{i < t} |x_{i+1} - W x_i|^2."""
    predictions = []
    for t in range(1, len(states) + 1):
        w = torch.zeros(DIM, DIM, dtype=states.dtype, requires_grad=True)
        pairs = itertools.pairwise(states[:t])
        loss = sum((after - w @ before).abs().square().sum() / 2 for before, after in pairs)
        gradient = torch.autograd.grad(loss, w)[0] if t > 1 else torch.zeros_like(w)
        predictions.append(-step_size / max(t - 1, 1) * gradient @ states[t - 1])
    return torch.stack(predictions)


@pytest.mark.parametrize("slots", [CODE, PAPER])
@pytest.mark.parametrize(("a", "b"), [(0.7, 1.1), (-0.4, 2.0)])
def test_the_diagonal_model_is_one_step_of_gradient_descent(
    slots: tuple, a: float, b: float
) -> None:
    batch = batch_of(slots=slots)
    config = replace(SMALL, token_slots=slots, initial_key_query=a, initial_value=b)
    predictions = double(config)(batch.tokens)
    expected = torch.stack([one_explicit_step(states, a * b) for states in batch.observed])
    # Predictions of order 10, sums of some hundred products.
    torch.testing.assert_close(predictions, expected, rtol=1e-12, atol=1e-12)
    if a * b > 0:
        descent = gradient_descent(batch.observed, step_size=a * b, objective="mean")
        torch.testing.assert_close(predictions, descent, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("initial", ["diagonal", "normal"])
@pytest.mark.parametrize("blocks", ["all", "core"])
@pytest.mark.parametrize("off_diagonal", ["trained", "masked"])
def test_both_token_layouts_predict_and_train_alike(
    initial: str, blocks: str, off_diagonal: str
) -> None:
    config = replace(
        SMALL, initial=initial, blocks=blocks, off_diagonal=off_diagonal, initial_std=0.1
    )
    models, batches = [], []
    for slots in (CODE, PAPER):
        model, batch = (
            double(replace(config, token_slots=slots), seed=3),
            batch_of("full_one", slots),
        )
        models.append(model)
        batches.append(batch)
    for steps in (0, 30):
        for model, batch in zip(models, batches, strict=True):
            train(model, batch, steps)
        ours, theirs = (
            (model(batch.tokens), model.key_query_block, model.value_block)
            for model, batch in zip(models, batches, strict=True)
        )
        for x, y in zip(ours, theirs, strict=True):
            # Numbers of order 1; 30 steps amplify their rounding little, as the loss falls.
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    code, paper = models
    torch.testing.assert_close(
        code.layer.key_query, paper.layer.key_query[DIM:, DIM:], rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        code.layer.output_value, paper.layer.output_value[:DIM, DIM:], rtol=0, atol=1e-12
    )
    rest = paper.layer.key_query.detach().clone()
    rest[DIM:, DIM:] = 0
    assert (rest == 0).all(), "what cannot reach the prediction does not move"
    assert (paper.layer.output_value[DIM:] == 0).all()


@pytest.mark.parametrize("slots", [CODE, PAPER])
def test_where_the_core_blocks_lie(slots: tuple) -> None:
    model, batch = double(replace(SMALL, token_slots=slots)), batch_of(slots=slots)
    k, v = (torch.randn(DIM, DIM, dtype=torch.complex128) for _ in range(2))
    with torch.no_grad():
        model.key_query_block.copy_(k)
        model.value_block.copy_(v)
        predictions = model(batch.tokens)
    x = batch.observed
    for t in range(2, LENGTH):  # V S_t K x_t / (t - 1), S_t = sum x_i x_{i-1}^*
        s = torch.einsum("bid,bie->bde", x[:, 1:t], x[:, : t - 1].conj())
        expected = torch.einsum("de,bef,fg,bg->bd", v, s, k, x[:, t - 1]) / (t - 1)
        torch.testing.assert_close(predictions[:, t - 1], expected, rtol=1e-12, atol=1e-12)
    assert (predictions[:, 0] == 0).all()


def test_core_trains_nothing_else_and_all_does() -> None:
    batch = batch_of("full_one", count=5)
    for blocks in ("core", "all"):
        model = double(replace(SMALL, blocks=blocks))
        train(model, batch, 20)
        assert (model.key_query_block != 0).all()
        assert (model.value_block != 0).all()
        with torch.no_grad():
            model.key_query_block.zero_()
            model.value_block.zero_()
        others = [
            model.layer.key_query.abs().max().item(),
            model.layer.output_value.abs().max().item(),
        ]
        assert others == [0, 0] if blocks == "core" else min(others) > 0


def test_masked_trains_the_diagonals_of_the_core_only() -> None:
    batch, off = batch_of("full_one", count=5), ~torch.eye(DIM, dtype=torch.bool)
    model = double(replace(SMALL, off_diagonal="masked"))
    train(model, batch, 20)
    for block in (model.key_query_block, model.value_block):
        assert (block[off] == 0).all()
        assert (block.diagonal() != 0.1).all()
    assert model.layer.key_query[:DIM, :DIM].abs().max() > 0, "the other blocks are free"


@pytest.mark.parametrize(
    ("a", "b", "reason"), [(0.0, 0.0, "the gradient is zero"), (0.3, -0.3, "the saddle at zero")]
)
def test_starts_that_lead_nowhere_are_warned_of(a: float, b: float, reason: str) -> None:
    config = replace(SMALL, initial_key_query=a, initial_value=b, blocks="core")
    message = f"initial_key_query={a}, initial_value={b}: .*{reason}"
    with pytest.warns(InitialisationWarning, match=message):
        model = double(replace(config, off_diagonal="masked"))
    before = [p.detach().clone() for p in model.parameters()]
    # On sparse starts all coordinates keep a = -b: one number, and a^2 - b^2 = 0 for ever.
    train(model, batch_of("sparse", count=64), 400)
    if a == 0:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    else:
        assert model.key_query_block.abs().max() < 0.01


def test_other_starts_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in ((0.1, 0.1), (0.5, 1.5), (0.0, 0.1), (0.3, -0.2)):
            double(replace(SMALL, initial_key_query=a, initial_value=b))
        double(replace(SMALL, initial="normal", initial_key_query=0.0, initial_value=0.0))


@pytest.mark.parametrize(("start", "published"), [("gaussian", 230.683), ("sparse", 48.025)])
def test_the_first_loss_is_the_populations(start: str, published: float) -> None:
    task = ARProcess(ARProcessConfig(start=start))
    batch = task.sample(2560, seed=0, split="test")
    with torch.no_grad():
        losses = batch.losses(OneLayerModel(MergedAttentionConfig())(batch.tokens)).sum(1)
    # The published numbers are rounded to 0.0005, and float32 to 1e-6 of them.
    assert abs(losses.mean().item() - published) < 5 * losses.std().item() / 2560**0.5 + 1e-3


def test_normal_weights_are_real_and_a_pure_function_of_the_seed() -> None:
    config = MergedAttentionConfig(dim=20, initial="normal", initial_std=0.3)
    first, again, other = (OneLayerModel(config, seed=seed).layer for seed in (1, 1, 2))
    for name in ("key_query", "output_value"):
        weight = first.get_parameter(name).detach()
        assert torch.equal(weight, again.get_parameter(name))
        assert not torch.isin(weight.real, other.get_parameter(name).real).any()
        assert (weight.imag == 0).all()
        # At least 800 draws: the standard error of their deviation is 1 / sqrt(1600) = 2.5 %.
        assert abs(weight.real.std().item() / 0.3 - 1) < 0.125
    core = OneLayerModel(replace(config, blocks="core"), seed=1)
    assert torch.equal(core.key_query_block, first.key_query[20:, :20])
    assert (core.layer.key_query[:, 20:] == 0).all()


def test_settings_make_their_model() -> None:
    assert isinstance(make_model(MergedAttentionConfig()), OneLayerModel)
    assert isinstance(make_model(ModelConfig()), SequenceModel)
    weights = [
        make_model(MergedAttentionConfig(initial="normal"), seed=seed).layer.key_query
        for seed in (1, 2)
    ]
    assert not torch.equal(*weights)


def test_others_tokens_are_rebuilt_from_states() -> None:
    batch = batch_of(slots=PAPER)
    ours = tokens_from_states(batch.observed, CODE)
    assert torch.equal(ours, batch.tokens[..., DIM:])
