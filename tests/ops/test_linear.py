import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.ops import linear_attention, reference

sizes = st.tuples(*(st.integers(1, n) for n in (2, 12, 3, 4, 5)), st.integers(1, 13))


@given(sizes)
def test_every_chunk_size_equals_the_definition(size: tuple[int, ...]) -> None:
    batch, length, heads, keys, values, chunk_size = size
    q, k = (torch.randn(batch, length, heads, keys, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, length, heads, values, dtype=torch.float64)
    ours = linear_attention(q, k, v, chunk_size=chunk_size).output
    # Sums of at most 48 products of normals: a few hundred roundings of 1.1e-16.
    torch.testing.assert_close(ours, reference.linear_attention(q, k, v), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 64])
def test_gradients(chunk_size: int) -> None:
    inputs = [torch.randn(1, 5, 2, n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 2)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: linear_attention(q, k, v, chunk_size=chunk_size).output, inputs
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2, 5, 1, 3)
    with pytest.raises(ValueError, match=r"q has shape \(5, 1, 3\): must be \[batch, time"):
        linear_attention(x[0], x, x)
    with pytest.raises(ValueError, match=r"v has shape \(1, 5, 1, 3\): must be \(2, 5, 1, value\)"):
        linear_attention(x, x, x[:1])
    with pytest.raises(ValueError, match="chunk_size=0: must be 1 or greater"):
        linear_attention(x, x, x, chunk_size=0)
