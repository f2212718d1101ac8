import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt import recipes
from mesaopt.config import ModelConfig
from mesaopt.errors import SolveError
from mesaopt.models import SequenceModel, join, separate, side_by_side

# One model of every kind of part: mixers, positions, norms, hidden layers, both ways to read out.
KINDS = {
    "linear": ModelConfig(mixers=("linear_attention",) * 2, initial_std=0.2),
    "mesa": ModelConfig(mixers=("mesa", "mesa"), initial_std=0.2),
    "plain": ModelConfig(
        mixers=("softmax_attention", "mesa"),
        embed_dim=12,
        readout="linear",
        positions="first_layer",
        unit_queries_keys="after_first",
        mlp_dim=7,
        initial_std=0.2,
        activation_clip=1.0,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_models_side_by_side_are_the_models(kind: str, count: int) -> None:
    config = KINDS[kind]
    tokens = torch.randn(count, 4, 9, config.token_dim, dtype=torch.float64)
    alone = [SequenceModel(config, seed=seed).double() for seed in range(count)]
    again = [SequenceModel(config, seed=seed).double() for seed in range(count)]
    outputs = [model(own) for model, own in zip(alone, tokens, strict=True)]
    torch.stack([out.square().mean() for out in outputs]).sum().backward()
    together = side_by_side(again)
    wide = together(torch.cat(list(tokens), dim=-1))
    torch.stack([own.square().mean() for own in wide.chunk(count, dim=-1)]).sum().backward()
    # float64 at values of about 1: the same sums, perhaps in another order.
    torch.testing.assert_close(wide, torch.cat(outputs, dim=-1), rtol=1e-10, atol=1e-12)
    gradients = {name: p.grad for name, p in together.named_parameters()}
    for model, found in zip(alone, separate(gradients, count), strict=True):
        wanted = {name: p.grad for name, p in model.named_parameters()}
        assert list(found) == list(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", recipes.MODELS)
def test_states_of_every_published_model_fit_both_ways(name: str) -> None:
    config = recipes.MODELS[name]
    states = [SequenceModel(config, seed=seed).state_dict() for seed in (5, 6)]
    together = side_by_side([SequenceModel(config, seed=seed) for seed in (5, 6)])
    for found, wanted in zip(separate(together.state_dict(), 2), states, strict=True):
        assert list(found) == list(wanted)
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    together.load_state_dict(join(states[::-1]))
    assert torch.equal(
        separate(together.state_dict(), 2)[0]["blocks.0.mixer.key.weight"],
        states[1]["blocks.0.mixer.key.weight"],
    )


@given(count=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_joining_undoes_separating(count: int, rows: int, columns: int) -> None:
    parts = [
        {"matrix": torch.randn(rows, columns), "vector": torch.randn(rows), "step": torch.tensor(7)}
        for _ in range(count)
    ]
    for found, wanted in zip(separate(join(parts), count), parts, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_checks_of_the_operators_stay() -> None:
    models = [SequenceModel(KINDS["mesa"], seed=seed) for seed in (0, 1)]
    models[1].mixers[1].inverse_ridge.data[2] = -1.0
    with pytest.raises((SolveError, ValueError), match="ridge"):
        side_by_side(models)(torch.randn(2, 5, 80))
