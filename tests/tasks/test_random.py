import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesaopt.errors import ConfigError
from mesaopt.tasks import contracting, generator, haar_orthogonal

seeds = st.integers(0, 2**64 - 1)


@given(seed=seeds, step=seeds)
def test_a_generator_is_a_pure_function(seed: int, step: int) -> None:
    first, second = (generator(seed, "train", step).random(5) for _ in range(2))
    assert (first == second).all()


@given(seed=st.integers(0, 2**64 - 2), step=st.integers(0, 2**64 - 2))
def test_neighbours_differ(seed: int, step: int) -> None:
    ours = generator(seed, "train", step).random(5)
    for other in (
        generator(seed + 1, "train", step),
        generator(seed, "train", step + 1),
        generator(seed, "test", step),
    ):
        assert not np.isin(ours, other.random(1000)).any()


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1), (2**64, 0)])
def test_seeds_out_of_range_are_refused(seed: int, step: int) -> None:
    with pytest.raises(ConfigError, match="must be between 0 and"):
        generator(seed, "train", step)


def haar_deviations(q: torch.Tensor) -> list[float]:
    """How far moments are from those of the Haar distribution, in standard errors.

    Under Haar on O(n), n >= 4: E tr Q = 0, E (tr Q)^2 = 1, E (tr Q)^4 = 3, E tr Q^2 = 1, E det Q = 0
    (Diaconis and Shahshahani, 1994).
    """
    trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (q @ q).diagonal(dim1=-2, dim2=-1).sum(-1)
    moments = [trace, trace**2 - 1, trace**4 - 3, square - 1, torch.linalg.det(q)]
    return [abs(x.mean() / (x.std() / len(x) ** 0.5)).item() for x in moments]


def test_orthogonal_matrices_are_haar() -> None:
    q = haar_orthogonal(generator(1, "test"), 20_000, 6)
    identity = torch.eye(6, dtype=torch.float64)
    # Each entry of Q^T Q is a sum of 6 products, each rounded to 1.1e-16.
    torch.testing.assert_close(q.mT @ q, identity.expand_as(q), atol=5e-15, rtol=0)
    # Five moments, four standard errors: a Haar sampler fails once in 3000 seeds, and this seed is fixed.
    assert max(haar_deviations(q)) < 4
    rotation = haar_orthogonal(generator(2, "test"), 1, 6)
    assert max(haar_deviations(rotation @ q)) < 4


def test_the_haar_test_sees_a_sampler_without_the_sign_fix() -> None:
    a = torch.from_numpy(generator(1, "test").standard_normal((20_000, 6, 6)))
    assert max(haar_deviations(torch.linalg.qr(a).Q)) > 10


def test_contracting_matrices_have_the_eigenvalues_of_their_distribution() -> None:
    w = contracting(generator(1, "test"), 4000, 6)
    eigenvalues = torch.linalg.eigvals(w)
    # An eigenvalue is as wrong as a rounding times the condition of the eigenvectors; G is that of
    # random normals, whose condition exceeds 1e4 once in some 2000 matrices of size 6.
    assert eigenvalues.imag.abs().quantile(0.99) < 1e-8
    ordered = eigenvalues.real.sort(dim=-1).values
    assert (ordered[:, -1] - 0.9).abs().quantile(0.99) < 1e-8
    others = ordered[:, :-1].flatten()
    inside = (others > 0.3 - 1e-8) & (others < 0.9 + 1e-8)
    assert inside.double().mean() > 0.99
    # Five standard errors of a mean and of a second moment about it; uniform on an interval of 0.6.
    trace = w.diagonal(dim1=-2, dim2=-1).sum(-1) - 0.9
    assert abs(trace.mean() - 5 * 0.6) < 5 * (5 * 0.6**2 / 12 / 4000) ** 0.5
    squares = (others - 0.6).square()
    assert abs(squares.mean() - 0.6**2 / 12) < 5 * squares.std() / len(squares) ** 0.5


def test_contracting_matrices_let_states_grow_first() -> None:
    w = contracting(generator(1, "test"), 4000, 10)
    grows = torch.linalg.matrix_norm(w, ord=2) > 1
    assert grows.double().mean() > 0.9, "not orthogonal eigenvectors"
    later = torch.linalg.matrix_power(w, 400)  # 0.9^400 is 5e-19
    assert later.abs().flatten(1).amax(1).quantile(0.99) < 1e-8
