import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.ops import mesa, reference

sizes = st.tuples(*(st.integers(1, n) for n in (2, 12, 3, 4, 5)), st.integers(1, 13))


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


@given(sizes)
def test_every_chunk_size_equals_the_definition(size: tuple[int, ...]) -> None:
    batch, length, heads, keys, values, chunk_size = size
    q, k = draw(batch, length, heads, keys), draw(batch, length, heads, keys)
    v, ridge = draw(batch, length, heads, values), torch.rand(heads, keys).double() + 0.3
    ours = mesa(q, k, v, ridge=ridge, chunk_size=chunk_size)
    # Condition numbers stay below about 300, so some 300 * 48 roundings of 1.1e-16.
    torch.testing.assert_close(ours, reference.mesa(q, k, v, ridge=ridge), rtol=1e-10, atol=1e-11)


def test_it_is_ridge_regression_on_the_prefix() -> None:
    q, k, v = (draw(1, 9, 1, 3) for _ in range(3))
    ours = mesa(q, k, v, ridge=0.1, chunk_size=4)[0, :, 0].numpy()
    for t in range(9):
        inputs = np.vstack(
            [k[0, : t + 1, 0], np.sqrt(0.1) * np.eye(3)]
        )  # ridge as three more pairs
        targets = np.vstack([v[0, : t + 1, 0], np.zeros((3, 3))])
        phi = scipy.linalg.lstsq(inputs, targets)[0].T
        np.testing.assert_allclose(ours[t], phi @ q[0, t, 0].numpy(), rtol=1e-9, atol=1e-11)


def test_a_huge_ridge_leaves_linear_attention() -> None:
    q, k, v = (draw(2, 20, 2, 4) for _ in range(3))
    # (H + r)^{-1} = (1 - H/r + ...) / r, with H below about 100 and r = 1e9.
    ours = mesa(q, k, v, ridge=1e9) * 1e9
    torch.testing.assert_close(ours, reference.linear_attention(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 64])
@pytest.mark.parametrize("ridge_shape", [(), (2,), (2, 3)])
def test_gradients_of_every_order(chunk_size: int, ridge_shape: tuple[int, ...]) -> None:
    inputs = [draw(1, 5, 2, n).requires_grad_() for n in (3, 3, 2)]
    inputs.append((torch.rand(ridge_shape).double() + 0.5).requires_grad_())

    def call(*x: torch.Tensor) -> torch.Tensor:
        return mesa(*x[:3], ridge=x[3], chunk_size=chunk_size)

    assert torch.autograd.gradcheck(call, inputs)
    if ridge_shape == (2,):
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_float32_gradients_are_as_exact_at_every_scale(scale: float) -> None:
    torch.manual_seed(0)
    # Unit keys and ridge 0.25: the condition number is below 100 / 0.25 / 8 = 50 or so.
    q, k, v, upstream = (draw(1, 100, 2, 8) for _ in range(4))
    k = k / k.norm(dim=-1, keepdim=True)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = mesa(*inputs, ridge=0.25, chunk_size=32)
        return [*torch.autograd.grad(out, inputs, (upstream * scale).to(dtype))]

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        error = (single.double() - double).norm() / double.norm()
        assert error < 1e-5  # 50 times the rounding of 6e-8, with room for the sums


def test_bad_input_is_refused() -> None:
    x = torch.zeros(2, 5, 3, 4)
    with pytest.raises(ValueError, match=r"ridge has shape \(2,\): must be a number, \(3,\)"):
        mesa(x, x, x, ridge=torch.ones(2))
    with pytest.raises(ValueError, match="ridge has the value 0: must be greater than 0"):
        mesa(x, x, x, ridge=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"k has shape \(2, 4, 3, 4\): must be \(2, 5, 3, 4\)"):
        mesa(x, x[:, :4], x, ridge=1.0)
