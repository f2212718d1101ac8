import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.ops import delta_rule, linear_attention, reference

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


@given(sizes)
def test_complex_numbers_are_not_conjugated(size: tuple[int, ...]) -> None:
    batch, length, heads, keys, values, chunk_size = size
    q, k = (torch.randn(batch, length, heads, keys, dtype=torch.complex128) for _ in range(2))
    v = torch.randn(batch, length, heads, values, dtype=torch.complex128)
    output, state = linear_attention(q, k, v, chunk_size=chunk_size)
    scores = torch.einsum("bthk,bshk->bhts", q, k).tril()
    expected = torch.einsum("bhts,bshv->bthv", scores, v)
    # As above, with four products of real numbers in each complex one.
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    whole = torch.einsum("bthv,bthk->bhvk", v, k)
    torch.testing.assert_close(state.cross, whole, rtol=1e-12, atol=1e-13)


def test_gradients_of_complex_numbers_and_of_a_continued_state() -> None:
    inputs = [
        torch.randn(1, 5, 2, n, dtype=torch.complex128, requires_grad=True) for n in (3, 3, 2)
    ]

    def continued(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        first = linear_attention(q[:, :2], k[:, :2], v[:, :2], chunk_size=2)
        rest = (x[:, 2:] for x in (q, k, v))
        return linear_attention(*rest, chunk_size=2, initial_state=first.state).output

    assert torch.autograd.gradcheck(continued, inputs)


def test_other_operators_refuse_complex_numbers() -> None:
    x = torch.zeros(2, 5, 1, 3, dtype=torch.complex64)
    with pytest.raises(
        ValueError, match="q has type torch.complex64: must be a floating-point type"
    ):
        delta_rule(x, x, x)
    integers = torch.zeros(2, 5, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be a floating-point or complex type"):
        linear_attention(integers, integers, integers)
