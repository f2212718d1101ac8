from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesaopt import recipes
from mesaopt.analysis import (
    block_energy,
    compress,
    effective_coefficients,
    effective_ridges,
    interpolate,
    product_form,
)
from mesaopt.analysis.diagnosis.candidates import fit_ridge
from mesaopt.analysis.diagnosis.model_target import ModelAsTarget
from mesaopt.analysis.prompts import prompt_task
from mesaopt.config import LinearSystemConfig, ModelConfig
from mesaopt.layers import (
    Frame,
    GatedLinearSelfAttention,
    LinearSelfAttention,
    MesaLayer,
    SelfAttention,
    SoftmaxSelfAttention,
)
from mesaopt.models import SequenceModel, make_model
from mesaopt.tasks import LinearSystem, generator
from mesaopt.theory import proposition_1, proposition_2, proposition_2_slots, ridge_least_squares

EXACT = {
    "rtol": 1e-9,
    "atol": 1e-9,
}  # float64 has 1e-16; sums over layers and tokens of large numbers


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Linear layers of any depth, heads, head width, slots and clip."""
    dim, slots = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return ModelConfig(
        mixers=("linear_attention",) * draw(st.integers(1, 4)),
        token_dim=dim * slots,
        output_dim=dim,
        num_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 2 * dim * slots)),
        activation_clip=draw(st.sampled_from([None, 1.0, 4.0])),
        initial_std=0.4,
    )


def random_model(config: ModelConfig, seed: int = 0) -> SequenceModel:
    return SequenceModel(config, seed=seed).double()


def model_of_blocks(config: ModelConfig) -> SequenceModel:
    """A model whose products are all blocks of scaled identities, nothing lost in compression."""
    dim = config.output_dim
    model = random_model(replace(config, head_dim=2 * dim))
    for weight in model.parameters():
        small = torch.randn(weight.shape[0] // dim, weight.shape[1] // dim, dtype=torch.float64)
        weight.data = torch.kron(0.4 * small, torch.eye(dim, dtype=torch.float64))
    return model


def tokens_of(config: ModelConfig) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, config.token_dim, dtype=torch.float64, generator=random)


@given(configs())
def test_products_in_place_of_weights_are_the_same_model(config: ModelConfig) -> None:
    model, tokens = random_model(config), tokens_of(config)
    torch.testing.assert_close(product_form(model)(tokens), model(tokens), **EXACT)


@given(configs())
def test_a_model_of_identity_blocks_is_compressed_without_loss(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model, tokens = model_of_blocks(config), tokens_of(config)
    compressed = compress(model)
    torch.testing.assert_close(compressed.model(tokens), model(tokens), **EXACT)
    for energy in (compressed.key_query_energy, compressed.output_value_energy):
        torch.testing.assert_close(energy, torch.ones_like(energy))


@given(configs())
def test_the_compressed_model_is_the_scalar_algorithm(config: ModelConfig) -> None:
    compressed, tokens = compress(random_model(config)), tokens_of(config)
    dim, clip = config.output_dim, config.activation_clip
    slots = config.token_dim // dim
    assert compressed.num_scalars == config.depth * config.num_heads * 2 * slots**2
    stream = tokens.unflatten(-1, (slots, dim))
    for scores, writes in zip(compressed.key_query, compressed.output_value, strict=True):
        change = torch.zeros_like(stream)
        for now in range(stream.shape[1]):
            for then in range(now + 1):
                key, query = stream[:, then], stream[:, now]
                for score, write in zip(scores, writes, strict=True):
                    match = torch.einsum("nbd,ba,nad->n", key, score, query)
                    change[:, now] += match[:, None, None] * (write @ key)
        stream = stream + change
        stream = stream if clip is None else stream.clamp(-clip, clip)
    torch.testing.assert_close(compressed.model(tokens), stream[:, :, 0], **EXACT)


@pytest.mark.parametrize("heads", [1, 3])
def test_one_layer_is_its_effective_coefficients(heads: int) -> None:
    config = ModelConfig(token_dim=12, output_dim=3, num_heads=heads, activation_clip=None)
    model, tokens = random_model(config), tokens_of(config)
    parts = tokens.unflatten(-1, (4, 3))
    coefficients = effective_coefficients(model.mixers[0], 3)
    scores = torch.einsum("nsbd,ntad->nabts", parts, parts).tril()
    predicted = torch.einsum("abc,nabts,nscd->ntd", coefficients, scores, parts)
    torch.testing.assert_close(compress(model).model(tokens), parts[:, :, 0] + predicted, **EXACT)


def test_gradient_descent_has_one_coefficient() -> None:
    layer = LinearSelfAttention(40, 2, 20)
    weights = proposition_1(10, step_size=0.03, num_heads=2, head_dim=20)
    layer.load_state_dict({name.removeprefix("blocks.0.mixer."): w for name, w in weights.items()})
    coefficients = effective_coefficients(layer, 10)
    assert coefficients[2, 3, 2].item() == pytest.approx(0.03)
    coefficients[2, 3, 2] = 0
    assert (coefficients == 0).all()


def test_both_propositions_are_algorithms_of_scalars() -> None:
    dim, coefficients = 3, [0.5, -0.2, 0.1]
    one = random_model(ModelConfig(token_dim=12, output_dim=dim, num_heads=2, head_dim=4))
    one.load_state_dict(proposition_1(dim, step_size=0.1, num_heads=2, head_dim=4))
    slots = len(proposition_2_slots(degree=2))
    config = ModelConfig(
        mixers=("linear_attention",) * 3,
        token_dim=slots * dim,
        output_dim=dim,
        num_heads=2,
        head_dim=dim,
        activation_clip=None,
    )
    several = random_model(config)
    several.load_state_dict(proposition_2(dim, coefficients=coefficients, num_heads=2))
    for model in (one, several):
        tokens = tokens_of(model.config)
        compressed = compress(model)
        torch.testing.assert_close(compressed.model(tokens), model(tokens), **EXACT)
        assert (compressed.key_query_energy == 1).all(), "heads without weights included"


def test_compression_keeps_the_model_and_comes_to_an_end() -> None:
    model = random_model(ModelConfig(mixers=("linear_attention",) * 2, initial_std=0.1))
    before = [weight.clone() for weight in model.parameters()]
    once = compress(model)
    twice = compress(once.model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(twice.key_query, once.key_query)
    torch.testing.assert_close(twice.output_value, once.output_value)
    assert (once.key_query_energy < 0.5).all()
    assert (once.model(tokens_of(model.config)) != model(tokens_of(model.config))).any()


@given(configs(), st.floats(0, 1))
def test_interpolation_goes_from_one_model_to_the_other(config: ModelConfig, weight: float) -> None:
    model = random_model(config)
    other = random_model(replace(config, head_dim=5, initial_std=0.3), seed=1)
    tokens = tokens_of(config)
    torch.testing.assert_close(interpolate(model, other, 0.0)(tokens), model(tokens), **EXACT)
    torch.testing.assert_close(interpolate(model, other, 1.0)(tokens), other(tokens), **EXACT)
    mixed = interpolate(model, other, weight)
    for ours, theirs, between in zip(model.mixers, other.mixers, mixed.mixers, strict=True):
        pairs = zip(
            ours.head_products(), theirs.head_products(), between.head_products(), strict=True
        )
        for a, b, c in pairs:
            torch.testing.assert_close((1 - weight) * a + weight * b, c, **EXACT)


def test_signs_and_turns_that_change_nothing_change_no_product() -> None:
    config = ModelConfig(mixers=("linear_attention",) * 2, num_heads=2, head_dim=3, initial_std=0.1)
    model, same = random_model(config), random_model(config)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turns = torch.block_diag(-torch.eye(3, dtype=torch.float64), turn)  # flips head 1, turns head 2
    for mixer in same.mixers:
        for weight in (mixer.query.weight, mixer.key.weight, mixer.value.weight):
            weight.data = turns @ weight.data
        mixer.output.weight.data = mixer.output.weight.data @ turns.T
    assert not torch.allclose(same.mixers[0].query.weight, model.mixers[0].query.weight)
    torch.testing.assert_close(compress(same).key_query, compress(model).key_query)
    torch.testing.assert_close(compress(same).output_value, compress(model).output_value)
    halfway, tokens = interpolate(model, same), tokens_of(config)
    torch.testing.assert_close(halfway(tokens), model(tokens), **EXACT)


def test_energy_outside_of_the_blocks_is_not_explained() -> None:
    matrices = torch.zeros(2, 1, 4, 4)
    matrices[0, 0, 0, 0] = matrices[0, 0, 1, 1] = 1.0
    matrices[0, 0, 0, 1] = 1.0
    assert block_energy(matrices, 2).tolist() == [[pytest.approx(2 / 3)], [1.0]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mixers": ("linear_attention", "mesa")}, r"mixers=.*'mesa'\): must be linear_attention"),
    ({"mixers": ("softmax_attention",)}, r"mixers=.*must be linear_attention alone"),
    ({"mlp_dim": 8}, "mlp_dim=8: must be None; an MLP"),
    ({"embed_dim": 40}, "embed_dim=40: must be None; an embedding"),
    ({"readout": "linear"}, "readout='linear': must be 'first_slot'"),
    ({"positions": "first_layer"}, "positions='first_layer': must be 'none'"),
    ({"unit_queries_keys": "after_first"}, "unit_queries_keys='after_first': must be 'none'"),
    ({"unit_queries_values": "after_first"}, "unit_queries_values='after_first': must be 'none'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda x: str(x)[:24])
def test_models_that_are_more_than_products_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    model = SequenceModel(ModelConfig(**changes))
    for refuse in (compress, product_form, lambda m: interpolate(SequenceModel(ModelConfig()), m)):
        with pytest.raises(ValueError, match=message):
            refuse(model)


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=7: must be a divisor of 40"):
        effective_coefficients(LinearSelfAttention(40, 2, 20), 7)
    with pytest.raises(ValueError, match="output_dim=7: must be a divisor of 40"):
        compress(SequenceModel(ModelConfig(output_dim=7)))


@pytest.mark.parametrize(
    "layer",
    [
        SoftmaxSelfAttention(8, 2, 2),
        MesaLayer(8, 2, 2),
        GatedLinearSelfAttention(8, 2, 2),
        LinearSelfAttention(8, 2, 2, frame=Frame(positions=True)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_are_more_than_products_have_no_coefficients(layer: SelfAttention) -> None:
    with pytest.raises(
        ValueError, match="must be linear self-attention without positions or norms"
    ):
        effective_coefficients(layer, 2)


def test_other_kinds_of_models_and_unlike_pairs_are_refused() -> None:
    model = SequenceModel(ModelConfig())
    with pytest.raises(ValueError, match="model: is a OneLayerModel: must be a SequenceModel"):
        compress(make_model(recipes.get("ar-gaussian").model))
    with pytest.raises(ValueError, match=r"other: must be as model.*num_heads: 4, not 2"):
        interpolate(model, SequenceModel(ModelConfig(num_heads=2)))
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"weight=.*: must be between 0 and 1"):
            interpolate(model, model, weight)


def mesa_of_states(scale: float, ridge: float, *, gain: float = 1.0) -> MesaLayer:
    """One head on slots of width 3, of which the last gives keys: rotated states times a scale."""
    layer = MesaLayer(width=12, num_heads=1, head_dim=5).double()
    normal = torch.from_numpy(generator(0, "test").standard_normal((5, 3)))
    rotation = torch.linalg.qr(normal).Q  # [5,3]
    for weight in (layer.query.weight, layer.key.weight, layer.value.weight, layer.output.weight):
        weight.data.zero_()
    layer.key.weight.data[:, 9:] = scale * rotation
    layer.query.weight.data[:, 6:9] = scale * rotation
    layer.value.weight.data[:3, 6:9] = gain * torch.eye(3)
    layer.output.weight.data[:3, :3] = torch.eye(3)
    layer.inverse_ridge.data.fill_(1 / ridge)
    return layer


SYSTEMS = LinearSystem(
    LinearSystemConfig(dim=3, length=9, token_slots=("zero", "current", "current", "previous"))
)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("ridge", [0.1, 2.0])
def test_larger_keys_are_a_smaller_ridge_on_the_states(scale: float, ridge: float) -> None:
    layer, batch = mesa_of_states(scale, ridge), SYSTEMS.sample(16, seed=0, dtype=torch.float64)
    effective = effective_ridges(layer, dim=3, slot=3)
    torch.testing.assert_close(effective, torch.full((1, 3), ridge / scale**2).double())
    predicted = layer(batch.tokens)[..., :3]
    wanted = ridge_least_squares(batch.observed, ridge=ridge / scale**2)
    torch.testing.assert_close(predicted, wanted, **EXACT)
    target = ModelAsTarget(
        prompt_task(SYSTEMS), lambda b: layer(b.tokens.double())[..., :3].float()
    )
    assert fit_ridge(target) == pytest.approx(ridge / scale**2, rel=0.02)


def test_a_larger_output_makes_up_for_shrinkage() -> None:
    plain, larger = (
        fit_ridge(
            ModelAsTarget(
                prompt_task(SYSTEMS), lambda b, m=m: m(b.tokens.double())[..., :3].float()
            )
        )
        for m in (mesa_of_states(1.0, 0.5), mesa_of_states(1.0, 0.5, gain=1.1))
    )
    assert larger < 0.9 * plain


def test_ridges_of_skewed_keys_are_those_of_their_second_moments() -> None:
    layer = MesaLayer(width=12, num_heads=2, head_dim=5).double()
    layer.inverse_ridge.data = torch.tensor([0.5, 4.0]).double()
    keys = layer.key.weight.detach().view(2, 5, 12)[..., 3:6]
    wanted = [torch.linalg.eigvalsh(torch.linalg.inv(k.mT @ k)) for k in keys]
    found = effective_ridges(layer, dim=3, slot=1)
    torch.testing.assert_close(found, torch.stack([2.0 * wanted[0], 0.25 * wanted[1]]))


@pytest.mark.parametrize(
    ("layer", "dim", "slot", "message"),
    [
        (MesaLayer(12, 1, 5), 3, 4, "slot=4: must be between 0 and 3"),
        (MesaLayer(12, 1, 5), 5, 1, "dim=5: must be a divisor of 12, the width of a token"),
        (MesaLayer(12, 1, 5), 0, 0, "dim=0: must be a divisor of 12, the width of a token"),
        (MesaLayer(12, 1, 5), -3, 0, "dim=-3: must be a divisor of 12, the width of a token"),
        (MesaLayer(12, 1, 2), 3, 0, "dim=3: must be at most 2, the width of a key"),
        (MesaLayer(12, 1, 5, ridge_floor=0.1), 3, 0, "must have one ridge per head"),
        (MesaLayer(12, 1, 5, frame=Frame(unit_keys=True)), 3, 0, "without positions or norms"),
    ],
)
def test_layers_whose_ridge_means_something_else_are_refused(
    layer: MesaLayer, dim: int, slot: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        effective_ridges(layer, dim=dim, slot=slot)
