import copy
import inspect
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from laboratories import a_linearization
from torch import Tensor, nn

from mesaopt.analysis import capture, distil, linearize, unexplained, with_layer
from mesaopt.config import LinearSystemConfig, MergedAttentionConfig, MixerName, ModelConfig
from mesaopt.layers import Frame, LinearSelfAttention
from mesaopt.models import SequenceModel, make_model
from mesaopt.tasks import LinearSystem

TASK = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
CONFIG = ModelConfig(
    mixers=("linear_attention", "softmax_attention", "linear_attention"),
    token_dim=2,
    output_dim=2,
    embed_dim=4,
    readout="linear",
    num_heads=2,
    head_dim=4,
    positions="first_layer",
    initial_std=0.4,
    activation_clip=None,
)


def pairs(frame: Frame, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inputs of uneven variance, and the outputs of a linear layer of two heads for them."""
    random = torch.Generator().manual_seed(0)
    teacher = LinearSelfAttention(4, 2, 4, frame=frame)
    for weight in teacher.parameters():
        weight.data = torch.randn(weight.shape, generator=random) / 2
    x = torch.randn(400, 6, 4, generator=random) * torch.tensor([1.0, 0.7, 0.5, 0.2]) * scale
    return x, teacher(x).detach()


@pytest.mark.parametrize(
    "frame",
    [Frame(), Frame(positions=True), Frame(unit_keys=True)],
    ids=["plain", "placed", "unit"],
)
def test_a_linear_layer_is_recovered_on_sequences_it_was_not_learned_from(frame: Frame) -> None:
    x, y = pairs(frame)
    layer = distil(
        x[:300], y[:300], num_heads=2, head_dim=4, frame=frame, steps=300, batch_size=32, seed=1
    )
    # 0.001 to 0.03 by the start: two heads may end with the work of one. A layer that learned nothing
    # misses everything.
    assert unexplained(layer, x[300:], y[300:]) < 0.1


def test_a_single_head_is_recovered_closely() -> None:
    x, _ = pairs(Frame())
    torch.manual_seed(0)
    y = LinearSelfAttention(4, 1, 4)(x).detach()
    layer = distil(x, y, num_heads=1, head_dim=4, steps=400, batch_size=32, learning_rate=0.05)
    assert unexplained(layer, x, y) < 1e-3  # 1e-5 here; nothing learned is 1


def test_distillation_does_not_depend_on_units() -> None:
    x, y = pairs(Frame())
    settings = {"num_heads": 2, "head_dim": 4, "steps": 40, "batch_size": 32}
    small = unexplained(distil(x, y, **settings), x, y)
    large = unexplained(distil(100 * x, 1e-3 * y, **settings), 100 * x, 1e-3 * y)
    # Powers of ten round differently, and 40 steps of Adam make more of it.
    assert large == pytest.approx(small, rel=0.02)
    assert small < 0.9


def test_softmax_is_not_linear() -> None:
    model = SequenceModel(CONFIG, seed=1)
    tokens = TASK.sample(400, seed=0).tokens
    names = ["blocks.1.mixer.input", "blocks.1.mixer"]
    x, y = capture(model, tokens, names).values()
    layer = distil(x, y, num_heads=2, head_dim=4, steps=100)
    assert 0.02 < unexplained(layer, x, y) < 0.9


def test_linear_layers_of_a_model_lose_nothing_and_a_bad_layer_much() -> None:
    model = SequenceModel(CONFIG, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick = {"steps": 120, "learning_rate": 3e-2, "batch_size": 32, "num_sequences": 256}
    found = linearize(model, TASK, layers=(0, 2), **quick)
    assert found.layers == (0, 2)
    assert (found.unexplained < 0.05).all()
    # The unexplained share of one layer's output is a smaller share of the whole stream.
    assert (found.ratios - 1).abs().max() < 0.05
    assert (found.ratio_errors < 0.05).all()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)

    early = linearize(model, TASK, layers=(0,), steps=1, num_sequences=256)
    assert (early.ratios[0] - 1).abs() > 0.1
    assert found.failed == ()
    assert early.failed == (0,), "nothing was learned"


def test_ratios_are_those_of_the_swapped_models_on_the_same_sequences() -> None:
    model = SequenceModel(CONFIG, seed=1)
    found = linearize(model, TASK, steps=2, num_sequences=256)
    batch = TASK.sample(256, seed=0, split="test")
    original = batch.losses(model(batch.tokens)).mean(1)
    assert found.loss == pytest.approx(original.mean().item(), rel=1e-6)
    for place, layer in enumerate(found.distilled):
        swapped = with_layer(model, place, layer)
        ours = batch.losses(swapped(batch.tokens)).mean(1)
        ratio = ours.mean() / original.mean()
        assert found.ratios[place].item() == pytest.approx(ratio.item(), rel=1e-5)
        # The bootstrap over whole sequences gives the same error.
        rows = torch.randint(256, (2000, 256), generator=torch.Generator().manual_seed(0))
        again = ours[rows].mean(1) / original[rows].mean(1)
        assert found.ratio_errors[place].item() == pytest.approx(again.std().item(), rel=0.15)


def test_an_untrained_model_loses_nothing() -> None:
    model = SequenceModel(replace(CONFIG, initial_std=1e-3))
    found = linearize(model, TASK, steps=1, num_sequences=256)
    torch.testing.assert_close(found.ratios, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_layer_that_does_nothing_is_learned_exactly() -> None:
    x = torch.randn(8, 5, 4)
    layer = distil(x, torch.zeros_like(x), num_heads=1, head_dim=2, steps=2)
    assert unexplained(layer, x, torch.zeros_like(x)) == 0


def test_a_swap_changes_that_layer_only_and_shares_nothing() -> None:
    model = SequenceModel(CONFIG, seed=1)
    layer = LinearSelfAttention(4, 2, 4)
    changed = with_layer(model, 1, layer)
    assert changed.config.mixers == ("linear_attention",) * 3
    assert model.config.mixers[1] == "softmax_attention"
    for name, tensor in changed.state_dict().items():
        mine = layer.state_dict().get(name.removeprefix("blocks.1.mixer."))
        wanted = model.state_dict()[name] if mine is None else mine
        assert torch.equal(tensor, wanted)
        assert tensor.data_ptr() not in (model.state_dict()[name].data_ptr(), wanted.data_ptr())
    rebuilt = SequenceModel(changed.config)
    rebuilt.load_state_dict(changed.state_dict())
    tokens = TASK.sample(3, seed=0).tokens
    assert torch.equal(rebuilt(tokens), changed(tokens))


def test_the_same_seed_gives_the_same_layers() -> None:
    model = SequenceModel(CONFIG, seed=1)
    one, same, other = (
        linearize(model, TASK, layers=(1,), steps=3, num_sequences=1, seed=seed)
        for seed in (5, 5, 6)
    )
    weights = [found.distilled[0].query.weight for found in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(one.ratios, same.ratios)
    assert not torch.allclose(weights[0], weights[2])
    x, y = pairs(Frame())
    settings = {"num_heads": 1, "head_dim": 2, "steps": 2}
    a, b, c = (distil(x, y, **settings, seed=seed).key.weight for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


def test_layers_have_the_type_of_the_model_or_the_inputs() -> None:
    x, y = pairs(Frame())
    settings = {"num_heads": 2, "head_dim": 4, "steps": 20, "batch_size": 32}
    single, layer = distil(x, y, **settings), distil(x.double(), y.double(), **settings)
    assert layer.query.weight.dtype is torch.float64
    exact = unexplained(layer, x.double(), y.double())
    assert unexplained(single, x, y) == pytest.approx(exact, rel=1e-3)  # 20 steps of rounding

    model = SequenceModel(CONFIG, seed=1)
    tokens = TASK.sample(3, seed=0).tokens
    changed = with_layer(copy.deepcopy(model).double(), 1, single)
    wanted = with_layer(model, 1, single)(tokens)
    torch.testing.assert_close(changed(tokens.double()), wanted.double(), rtol=1e-4, atol=1e-5)
    common = {"steps": 3, "batch_size": 8, "num_sequences": 256}
    found = linearize(model, TASK, **common)
    exactly = linearize(copy.deepcopy(model).double(), TASK, **common)
    assert exactly.distilled[0].query.weight.dtype is torch.float64
    torch.testing.assert_close(exactly.ratios, found.ratios, rtol=1e-3, atol=0)


def test_dropout_is_off_and_comes_back() -> None:
    model = SequenceModel(CONFIG, seed=1)
    settings = {"steps": 2, "batch_size": 8, "num_sequences": 256}
    wanted = linearize(model, TASK, **settings)
    model.embedding = nn.Sequential(model.embedding, nn.Dropout(0.5))
    found = linearize(model, TASK, **settings)
    assert torch.equal(found.ratios, wanted.ratios)
    assert torch.equal(found.unexplained, wanted.unexplained)
    assert model.embedding[1].training


def test_progress_is_reported_step_by_step() -> None:
    reported: list[tuple[int, int]] = []
    linearize(
        SequenceModel(CONFIG),
        TASK,
        steps=3,
        num_sequences=1,
        progress=lambda progress: reported.append((progress.done, progress.total)),
    )
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_settings_out_of_range_are_refused_at_once() -> None:
    model = SequenceModel(CONFIG)
    with pytest.raises(ValueError, match=r"^model: is a OneLayerModel: must be a SequenceModel"):
        linearize(make_model(MergedAttentionConfig(dim=2)), TASK)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=rf"^layers: {index}: must be between 0 and 2$"):
            linearize(model, TASK, layers=(index,))
        with pytest.raises(ValueError, match=rf"^index={index}: must be between 0 and 2$"):
            with_layer(model, index, LinearSelfAttention(4, 2, 4))
    with pytest.raises(ValueError, match=r"^layers=\(\): must not be empty$"):
        linearize(model, TASK, layers=())
    reported: list[tuple[int, int]] = []
    numbers = {"steps": 0, "batch_size": 0, "learning_rate": 0.0, "num_sequences": 0}
    for name, value in [*numbers.items(), ("learning_rate", math.inf)]:
        with pytest.raises(ValueError, match=rf"^{name}={value}: must be"):
            linearize(
                model,
                TASK,
                progress=lambda progress: reported.append((progress.done, progress.total)),
                **{name: value},
            )
    assert not reported
    with pytest.raises(ValueError, match=r"^layer: .*\(4, 1, 4, .*must be \(4, 2, 4"):
        with_layer(model, 1, LinearSelfAttention(4, 1, 4))


@pytest.mark.usefixtures("_unchecked")
def test_inputs_without_their_outputs_are_refused() -> None:
    x = torch.zeros(5, 4, 4)
    with pytest.raises(ValueError, match=r"inputs \(5, 4, 4\), outputs \(5, 3, 4\): must be"):
        distil(x, x[:, :3], num_heads=1, head_dim=2)


@pytest.mark.parametrize("mixer", get_args(MixerName))
def test_a_changed_configuration_makes_the_changed_model_or_is_refused(mixer: MixerName) -> None:
    model = SequenceModel(replace(CONFIG, mixers=(mixer, mixer), positions="none"))
    layer = LinearSelfAttention(4, 2, 4, frame=model.mixers[1].frame)
    if mixer in ("delta_rule", "gated_delta_rule", "mesanet2025"):
        with pytest.raises(ValueError, match="layer: its frame .* has no configuration"):
            with_layer(model, 1, layer)
        return
    changed = with_layer(model, 1, layer)
    again = SequenceModel(changed.config)
    again.load_state_dict(changed.state_dict())
    tokens = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(tokens), changed(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("unexplained", "failed"),
    [([0.1, 0.5, 0.9], ()), ([0.1, 0.94, 2.85], (2, 3)), ([float("nan"), 0.0, 1.0], (0, 3))],
)
def test_layers_that_could_not_be_distilled_are_named(
    unexplained: list[float], failed: tuple[int, ...]
) -> None:
    found = a_linearization((1.0,) * 3, layers=(0, 2, 3), unexplained=unexplained)
    assert found.failed == failed


def test_a_layer_named_twice_is_replaced_once() -> None:
    settings = {"steps": 2, "num_sequences": 256}
    once = linearize(SequenceModel(CONFIG), TASK, layers=[1], **settings)
    twice = linearize(SequenceModel(CONFIG), TASK, layers=[1, 1], **settings)
    assert twice.layers == (1,)
    assert torch.equal(twice.losses, once.losses)


def test_outputs_of_another_shape_are_not_repeated() -> None:
    bare, x = inspect.unwrap(unexplained), torch.randn(3, 4, 2)
    with pytest.raises(
        ValueError, match=r"shape \(3, 4, 2\), outputs \(1, 4, 2\): must be the same"
    ):
        bare(nn.Identity(), x, x[:1])
