import pytest
import torch

from mesaopt.analysis import block_energy, compressed_prediction, effective_coefficients
from mesaopt.layers import LinearSelfAttention
from mesaopt.tasks import tokens_from_states
from mesaopt.theory import proposition_1


def layer_of_blocks(dim: int, slots: int, heads: int) -> LinearSelfAttention:
    """A layer whose products are all blocks of scaled identities, nothing lost in compression."""
    layer = LinearSelfAttention(slots * dim, heads, slots * dim).double()
    for weight in layer.parameters():
        scalars = torch.randn(weight.shape[0] // dim, weight.shape[1] // dim, dtype=torch.float64)
        weight.data = torch.kron(scalars, torch.eye(dim, dtype=torch.float64))
    return layer


def test_gradient_descent_has_one_coefficient() -> None:
    layer = LinearSelfAttention(40, 2, 20)
    weights = proposition_1(10, step_size=0.03, num_heads=2, head_dim=20)
    layer.load_state_dict({name.removeprefix("blocks.0.mixer."): w for name, w in weights.items()})
    coefficients = effective_coefficients(layer, 10)
    assert coefficients[2, 3, 2].item() == pytest.approx(0.03)
    coefficients[2, 3, 2] = 0
    assert (coefficients == 0).all()


@pytest.mark.parametrize("heads", [1, 3])
def test_a_layer_of_identity_blocks_is_compressed_without_loss(heads: int) -> None:
    torch.manual_seed(0)
    layer = layer_of_blocks(dim=3, slots=4, heads=heads)
    states = torch.randn(2, 6, 3, dtype=torch.float64)
    tokens = tokens_from_states(states, ("zero", "current", "current", "previous"))
    compressed = compressed_prediction(effective_coefficients(layer, 3), tokens)
    torch.testing.assert_close(compressed, layer(tokens)[..., :3], rtol=1e-10, atol=1e-10)
    for products in layer.head_products():
        torch.testing.assert_close(block_energy(products, 3), torch.ones(heads).double())


def test_energy_outside_of_the_blocks_is_not_explained() -> None:
    matrix = torch.zeros(1, 4, 4)
    matrix[0, 0, 0] = matrix[0, 1, 1] = 1.0
    matrix[0, 0, 1] = 1.0
    assert block_energy(matrix, 2).item() == pytest.approx(2 / 3)


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=7: must be a divisor of 40"):
        effective_coefficients(LinearSelfAttention(40, 2, 20), 7)
    with pytest.raises(ValueError, match="slots=3: must be a divisor of 40"):
        compressed_prediction(torch.zeros(3, 3, 3), torch.zeros(1, 2, 40))
