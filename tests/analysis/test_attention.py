import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mesaopt.analysis import attention_maps, attention_mass, capture
from mesaopt.config import ModelConfig
from mesaopt.layers import LinearSelfAttention
from mesaopt.models import SequenceModel
from mesaopt.theory import proposition_1

TIME, TOKEN = 12, 6


def make(mixer: str = "softmax_attention") -> SequenceModel:
    config = ModelConfig(
        mixers=(mixer, "linear_attention"),
        token_dim=TOKEN,
        output_dim=3,
        num_heads=2,
        head_dim=3,
        initial_std=0.7,
    )
    return SequenceModel(config).double()


def draw(batch: int = 300) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(batch, TIME, TOKEN, generator=random, dtype=torch.float64)


def softmax_maps(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, 3, TIME, TIME, generator=random, dtype=torch.float64)
    return scores.masked_fill(torch.ones(TIME, TIME).triu(1).bool(), -torch.inf).softmax(-1)


@given(st.integers(0, 100), st.integers(1, TIME))
def test_all_offsets_together_hold_all_that_softmax_gives(seed: int, start: int) -> None:
    maps = softmax_maps(seed)
    near = attention_mass(maps, offsets=range(start), start=start)
    assert near.shape == (2, 3, start)
    assert ((near >= 0) & (near <= 1)).all()
    only = attention_mass(maps[..., :start, :start], offsets=range(start), start=start)
    torch.testing.assert_close(only.sum(-1), torch.ones(2, 3).double())


@given(st.integers(0, 100), st.integers(0, 5))
def test_a_loop_over_positions(seed: int, offset: int) -> None:
    maps = softmax_maps(seed)
    found = attention_mass(maps, offsets=(offset,), start=6)[..., 0]
    wanted = torch.stack([maps[..., t, t - offset] for t in range(5, TIME)]).mean(0)
    torch.testing.assert_close(found, wanted)


def test_maps_with_signs_count_by_absolute_values() -> None:
    maps = torch.tensor([[[[1.0, 0.0], [-3.0, 1.0]]]])
    assert attention_mass(maps, start=2).tolist() == [[[0.25, 0.75]]]
    torch.testing.assert_close(attention_mass(-5 * maps, start=2), attention_mass(maps, start=2))


@pytest.mark.parametrize("mixer", ["softmax_attention", "linear_attention", "mesa"])
def test_mean_and_spread_of_many_are_those_of_all_at_once(mixer: str) -> None:
    model, tokens, done = make(mixer), draw(), []
    found = attention_maps(
        model,
        tokens,
        name="blocks.0.mixer",
        offsets=(0, 2),
        start=3,
        progress=lambda progress: done.append((progress.done, progress.total)),
    )
    maps = capture(model, tokens, ["blocks.0.mixer.attention"])["blocks.0.mixer.attention"]
    torch.testing.assert_close(found.mean, maps.mean(0))
    torch.testing.assert_close(found.spread, maps.std(0))
    torch.testing.assert_close(found.masses, attention_mass(maps, offsets=(0, 2), start=3))
    torch.testing.assert_close(found.mass_error, found.masses.std(0) / 300**0.5)
    assert done[-1] == (300, 300)
    assert found.offsets == (0, 2)


def test_a_head_that_looks_at_itself_and_one_that_looks_everywhere() -> None:
    model, tokens = make(), draw(20)
    tokens[..., 3:] = 0
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    for weight in (model.mixers[0].query.weight, model.mixers[0].key.weight):
        weight.data = 100 * torch.eye(TOKEN, dtype=torch.float64)  # the second head reads zeros
    mass = attention_maps(model, tokens, name="blocks.0.mixer").mass
    assert mass[0, 0] > 0.9
    assert mass[1, 0] == pytest.approx(sum(1 / t for t in range(6, 13)) / 7)


def test_arguments_out_of_range_are_refused() -> None:
    maps = softmax_maps(0)
    for start in (0, TIME + 1):
        with pytest.raises(ValueError, match=f"start={start}: must be between 1 and {TIME}"):
            attention_mass(maps, start=start)
    for offset in (-1, 6):
        with pytest.raises(ValueError, match=f"offsets: {offset}: must be 0 or greater and less"):
            attention_mass(maps, offsets=(0, offset))
    with pytest.raises(ValueError, match="^offsets: must not be empty$"):
        attention_mass(maps, offsets=())
    with pytest.raises(ValueError, match="^offsets: must not be empty$"):
        attention_maps(make(), draw(3), name="blocks.0.mixer", offsets=())
    with pytest.raises(ValueError, match=r"^tokens has shape \(1, 12, 6\): must be two sequences"):
        attention_maps(make(), draw(1), name="blocks.0.mixer")


def test_only_the_packages_layers_have_maps() -> None:
    for name, problem in (("blocks.0", "is a "), ("blocks.7", "is no part of the model")):
        message = f"^name: '{name}' {problem}.*, here: blocks.0.mixer, blocks.1.mixer$"
        with pytest.raises(ValueError, match=message):
            attention_maps(make(), draw(3), name=name)
    model = nn.TransformerEncoderLayer(TOKEN, 2, 8, batch_first=True).double()
    message = "^name: 'self_attn' is a MultiheadAttention: only the package's own .* here: none$"
    with pytest.raises(ValueError, match=message):
        attention_maps(model, draw(3), name="self_attn")


def test_a_layer_by_itself_has_maps() -> None:
    layer, x = make().mixers[0], draw(5)
    found = attention_maps(layer, x, name="")
    torch.testing.assert_close(found.mean, layer.attention_map(x).detach().mean(0))


def test_a_head_without_weights_has_no_mass() -> None:
    layer = LinearSelfAttention(width=40, num_heads=2, head_dim=20).double()
    weights = proposition_1(10, step_size=0.1, num_heads=2, head_dim=20)
    prefix = "blocks.0.mixer."
    layer.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if prefix in n})
    tokens = torch.randn(3, TIME, 40, generator=torch.Generator().manual_seed(0)).double()
    masses = attention_maps(layer, tokens, name="").masses
    assert (masses[:, 0] > 0).all()
    assert (masses[:, 1] == 0).all(), "proposition 1 needs one head"
    assert attention_mass(torch.full((1, 1, 2, 2), torch.nan), start=2).isnan().all()


def test_dropout_is_off_and_comes_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), make().mixers[0])
    found = attention_maps(model, draw(5), name="1")
    torch.testing.assert_close(found.mean, attention_maps(model[1], draw(5), name="").mean)
    assert model.training
    assert model[0].training
