import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from mesaopt.errors import ConfigError
from mesaopt.theory import (
    PUBLISHED_INVERSES,
    ApproximateInverse,
    chebyshev_inverse,
    neumann_inverse,
    richardson_inverse,
)

STEPS = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=5)


@given(
    steps=STEPS,
    form=st.sampled_from(["equation_9", "richardson"]),
    ridge=st.floats(0, 2),
    scale=st.floats(0.1, 2),
    eigenvalue=st.floats(0, 2),
)
def test_coefficients_are_those_of_the_recursion(
    steps, form, ridge: float, scale: float, eigenvalue: float
) -> None:
    alphas, betas = zip(*steps, strict=True)
    inverse = ApproximateInverse(
        step_sizes=alphas, momenta=betas, ridge=ridge, scale=scale, form=form
    )
    coefficients = inverse.coefficients()
    assert len(coefficients) == inverse.degree + 1
    a = scale * (eigenvalue + ridge)
    # The recursion, written out once more with all its iterates kept.
    if form == "equation_9":
        xs, term = [1.0, 1.0], 1.0
        for alpha, beta in steps:
            term *= 1 - alpha * a
            xs.append(xs[-1] + term + beta * (xs[-1] - xs[-2]))
    else:
        xs = [0.0, 0.0]
        for alpha, beta in steps:
            xs.append(xs[-1] + alpha * (1 - a * xs[-1]) + beta * (xs[-1] - xs[-2]))
    # Terms of both sides stay below (1 + 2 * 8)^5 * 3^5 = 3e8; sixteen digits are carried.
    size = max(map(abs, xs)) + sum(abs(c) * eigenvalue**k for k, c in enumerate(coefficients))
    expected = scale * xs[-1]
    assert Polynomial(coefficients)(eigenvalue) == pytest.approx(
        expected, rel=1e-10, abs=1e-9 * (1 + size)
    )


@given(z=st.floats(0, 1.9), steps=st.integers(1, 20))
def test_the_neumann_series_is_the_geometric_sum(z: float, steps: int) -> None:
    actual = neumann_inverse(steps).apply(lambda x: z * x, 1.0)
    assert actual == pytest.approx(
        sum((1 - z) ** k for k in range(steps + 1)), rel=1e-12, abs=1e-12
    )


@given(z=st.floats(0, 1), steps=st.integers(1, 20), step_size=st.floats(0.1, 1.9))
def test_richardson_is_a_scaled_neumann_series(z: float, steps: int, step_size: float) -> None:
    actual = richardson_inverse(steps, step_size=step_size).apply(lambda x: z * x, 1.0)
    series = [step_size * (1 - step_size * z) ** k for k in range(steps)]
    assert actual == pytest.approx(sum(series), rel=1e-12, abs=1e-12)


@given(smallest=st.floats(0.01, 1), ratio=st.floats(1.1, 50), steps=st.integers(1, 12))
def test_the_chebyshev_residual_is_equal_ripple(smallest: float, ratio: float, steps: int) -> None:
    largest = smallest * ratio
    inverse = chebyshev_inverse(steps, smallest=smallest, largest=largest)
    z = np.linspace(smallest, largest, 200)
    residual = 1 - z * inverse.apply(lambda x: z * x, np.ones_like(z))
    bound = 1 / np.cosh(steps * np.arccosh((largest + smallest) / (largest - smallest)))
    # The ends are ripples, so the bound is reached there; the iterates are below 2 / smallest = 200,
    # and each step adds a few roundings of that times the eigenvalue.
    assert np.abs(residual).max() == pytest.approx(bound, rel=1e-9, abs=1e-12)


def test_published_steps_are_there_with_their_provenance() -> None:
    assert len(PUBLISHED_INVERSES) == 7
    for name, inverse in PUBLISHED_INVERSES.items():
        assert inverse.scale == "frobenius", name
        assert inverse.degree == (2 if name == "3-layer" else 6)
        # They do approximate an inverse where most eigenvalues of a normalised matrix are.
        assert abs(1 - 0.3 * inverse.apply(lambda x: 0.3 * x, 1.0)) < 0.9, name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: neumann_inverse(0), "num_steps=0: must be 1 or greater"),
        (lambda: neumann_inverse(True), "num_steps=True: must be a whole number"),
        (lambda: ApproximateInverse(step_sizes=(1.0,), momenta=()), "1 and momenta 0 entries"),
        (lambda: neumann_inverse(1, ridge=-1.0), "ridge=-1.0: must be 0 or greater"),
        (lambda: neumann_inverse(1, scale=0.0), "scale=0.0: must be greater than 0"),
        (lambda: richardson_inverse(2, step_size=0.0), "step_size=0.0"),
        (lambda: richardson_inverse(2, step_size=1.0, momentum=np.inf), "must be finite"),
        (lambda: chebyshev_inverse(2, smallest=0.0, largest=1.0), "smallest=0.0, largest=1.0"),
        (lambda: chebyshev_inverse(0, smallest=0.1, largest=1.0), "num_steps=0"),
        (lambda: PUBLISHED_INVERSES["7-layer"].coefficients(), "scale='frobenius'"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
