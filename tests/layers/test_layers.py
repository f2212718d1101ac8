import pytest
import torch

from mesaopt.layers import LinearSelfAttention, MesaLayer, SelfAttention
from mesaopt.ops import reference

LAYERS = [LinearSelfAttention, MesaLayer]


def make(layer: type[SelfAttention]) -> SelfAttention:
    torch.manual_seed(0)
    return layer(6, 2, 5).double()


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_causal(layer: type[SelfAttention]) -> None:
    module, x = make(layer), torch.randn(2, 9, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = module(x), module(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] != after[:, 5]).any(), "the diagonal belongs to the context"


@pytest.mark.parametrize("layer", LAYERS)
def test_sequences_do_not_see_one_another(layer: type[SelfAttention]) -> None:
    module, x = make(layer), torch.randn(3, 9, 6, dtype=torch.float64)
    # A matrix product may split its sums otherwise for another batch size: a few roundings.
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", LAYERS)
def test_head_products_are_all_that_matters(layer: type[SelfAttention]) -> None:
    module, x = make(layer), torch.randn(2, 9, 6, dtype=torch.float64)
    key_query, value_output = module.head_products()
    if layer is LinearSelfAttention:
        scores = torch.einsum("bsd,hde,bte->bhts", x, key_query, x).tril()
        expected = torch.einsum("bhts,hde,bse->btd", scores, value_output, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-12)
    assert key_query.shape == value_output.shape == (2, 6, 6)


def test_the_mesa_layer_learns_its_ridge() -> None:
    module, x = make(MesaLayer), torch.randn(2, 9, 6, dtype=torch.float64)
    module.inverse_ridge.data = torch.tensor([0.5, 4.0], dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (2, 5)) for p in (module.query, module.key, module.value))
    ridge = torch.tensor([[2.0], [0.25]], dtype=torch.float64)
    expected = module.output(reference.mesa(q, k, v, ridge=ridge)[0].flatten(-2))
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-11)
    module(x).sum().backward()
    assert (module.inverse_ridge.grad != 0).all()


def test_a_ridge_that_left_its_range_is_an_error() -> None:
    module = make(MesaLayer)
    module.inverse_ridge.data[0] = -1.0
    with pytest.raises(ValueError, match="ridge has the value -1: must be greater than 0"):
        module(torch.randn(1, 3, 6, dtype=torch.float64))
