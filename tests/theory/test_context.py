import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.theory import context_of, context_statistics
from mesaopt.theory.context import delayed

KINDS = st.sampled_from([False, True])


def numbers(*shape: int, seed: int, imaginary: bool = False) -> torch.Tensor:
    random = np.random.default_rng(seed)
    real = random.standard_normal(shape)
    return torch.from_numpy(real + 1j * random.standard_normal(shape) if imaginary else real)


@given(
    length=st.integers(1, 9),
    dim=st.integers(1, 4),
    size=st.integers(1, 5),
    pairs=st.sampled_from(["all", "official"]),
    imaginary=KINDS,
    seed=st.integers(0, 99),
)
def test_products_and_norms_are_those_of_the_matrices(
    length: int, dim: int, size: int, pairs, imaginary: bool, seed: int
) -> None:
    s = numbers(2, length, dim, seed=seed, imaginary=imaginary)
    x = numbers(2, length, size, seed=seed + 100, imaginary=imaginary)
    u = numbers(2, length, size, seed=seed + 200, imaginary=imaginary)
    context = context_of(s, inputs=x, pairs=pairs)
    grams, crosses = context_statistics(s, inputs=x, pairs=pairs)
    dropped = 1 if pairs == "official" else 0
    for t in range(length):
        known = max(t - dropped, 0)
        gram = torch.einsum("btd,bte->bde", x[:, :known], x[:, :known].conj())
        cross = torch.einsum("btd,bte->bde", s[:, 1 : known + 1], x[:, :known].conj())
        # Sums of at most 9 products of numbers below 5: thousands of roundings would not reach this.
        close = {"rtol": 1e-11, "atol": 1e-11}
        torch.testing.assert_close(grams[:, t], gram, **close)
        torch.testing.assert_close(crosses[:, t], cross, **close)
        product = (gram @ u[:, t, :, None]).squeeze(-1)
        torch.testing.assert_close(context.gram_product(u)[:, t], product, **close)
        product = (cross @ u[:, t, :, None]).squeeze(-1)
        torch.testing.assert_close(context.cross_product(u)[:, t], product, **close)
        norm = torch.linalg.matrix_norm(gram + 0.3 * torch.eye(size).double())
        torch.testing.assert_close(context.frobenius_norm(0.3)[:, t, 0], norm, **close)
        assert context.num_pairs[t].item() == known


def test_a_delay_longer_than_the_sequence_leaves_nothing() -> None:
    s = numbers(2, 5, 3, seed=0)
    assert torch.equal(delayed(s, 6), torch.zeros_like(s))
    assert torch.equal(delayed(s, 2)[:, 2:], s[:, :3])


def test_what_does_not_fit_is_refused() -> None:
    # The types that tests check in every call come before our own messages: look behind them.
    bare = inspect.unwrap(context_of)
    s = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"inputs has shape \(2, 4, 3\).*must be \[2, 5, input\]"):
        bare(s, inputs=s[:, :4])
    with pytest.raises(ValueError, match=r"torch.float64: must be .* of torch.float32"):
        bare(s, inputs=s.double())
    for wrong in (s.long(), s[0], s.bool()):
        given = f"states has shape .*{wrong.dtype}: must be .batch, time, dim., floating-point"
        with pytest.raises(ValueError, match=given):
            bare(wrong)
    with pytest.raises(ValueError, match="pairs='newest': must be 'all' or 'official'"):
        bare(s, pairs="newest")
