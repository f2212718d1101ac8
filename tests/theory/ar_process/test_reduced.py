"""The reduced flow of a and b: its conserved quantity, its limit, and the time to it."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesaopt.errors import ConfigError, InitialisationWarning, RunError, StabilityWarning
from mesaopt.tasks import initial_states
from mesaopt.theory.ar_process import (
    ClosedForm,
    OneStep,
    descend,
    diagonal,
    flow,
    limit_weights,
    logistic,
    one_step,
    population_loss,
    reduced_flow,
    stability_bound,
    time_to_within,
)

SIX = 5.001e-7
SPLITS = {  # limits (a, b) from (0.5, 1.5), and both from a0 = b0, at dim 5 and T = 100
    "gaussian": (0.135083, 1.420650, 0.438070),
    "sparse": (0.643594, 1.553774, 1.0),
    "full_one": (0.544899, 1.515558, 0.908750),
}


def theory_of(name: str, length: int = 100) -> OneStep:
    return one_step(initial_states(name), dim=5, length=length)


@pytest.mark.parametrize("name", SPLITS)
def test_printed_limits(name: str) -> None:
    theory, (a, b, both) = theory_of(name), SPLITS[name]
    actual = limit_weights(theory, key_query=0.5, output_value=1.5)
    np.testing.assert_allclose(actual, (a, b), rtol=0, atol=SIX)
    for start in (0.1, 2.0):
        actual = limit_weights(theory, key_query=start, output_value=start)
        np.testing.assert_allclose(actual, (both, both), rtol=0, atol=SIX)


@pytest.mark.parametrize(
    ("name", "rate", "steps", "products"),
    [
        ("gaussian", 1e-4, (20, 50, 200), (0.02902394, 0.09782818, 0.19187783)),
        ("sparse", 1e-3, (20, 50, 200), (0.02164454, 0.06691208, 0.96248870)),
        ("full_one", 5e-4, (20, 50, 200), (0.06611052, 0.51372931, 0.82582551)),
    ],
)
def test_printed_products_along_the_way(
    name: str, rate: float, steps: tuple[int, ...], products: tuple[float, ...]
) -> None:
    theory, times = theory_of(name), rate * np.array(steps)
    a, b = reduced_flow(theory, key_query=0.1, output_value=0.1, times=times)
    np.testing.assert_allclose(a * b, products, rtol=0, atol=5.001e-9)
    by_formula = logistic(theory, start=0.01, times=times)
    np.testing.assert_allclose(by_formula, products, rtol=0, atol=5.001e-9)


# Starts in all quadrants, with a product away from the line a = -b that the flow cannot leave.
away = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).filter(
    lambda start: abs(start[0] ** 2 - start[1] ** 2) > 1e-2
)
distributions = st.sampled_from(("gaussian", "sparse", "full_one", "uniform"))


@given(name=distributions, start=away)
def test_the_difference_of_squares_is_conserved(name: str, start: tuple[float, float]) -> None:
    theory = theory_of(name)
    times = np.linspace(0, 20 / theory.slope, 7)
    a, b = reduced_flow(theory, key_query=start[0], output_value=start[1], times=times)
    # a and b come from their product and this difference, in a handful of roundings of the squares.
    conserved = start[0] ** 2 - start[1] ** 2
    assert (np.abs(a**2 - b**2 - conserved) <= 1e-12 * np.maximum(a**2 + b**2, 1)).all()
    np.testing.assert_allclose((a[0], b[0]), start, rtol=1e-12, atol=1e-12)


@given(name=distributions, start=away)
def test_every_quadrant_ends_in_the_limit(name: str, start: tuple[float, float]) -> None:
    theory = theory_of(name)
    end = limit_weights(theory, key_query=start[0], output_value=start[1])
    # c falls to |P| = 0.01 and rises again like exp(2 K0 time), 6 / K0 in all, then closes in as fast.
    late = np.array([25 / theory.slope])
    a, b = reduced_flow(theory, key_query=start[0], output_value=start[1], times=late)
    np.testing.assert_allclose((a[0], b[0]), end, rtol=1e-9, atol=1e-9)
    assert end[0] * end[1] == pytest.approx(theory.product, rel=1e-13)
    conserved = start[0] ** 2 - start[1] ** 2
    assert end[0] ** 2 - end[1] ** 2 == pytest.approx(conserved, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("start", [(0.1, 0.1), (0.5, 1.5), (2.0, 2.0), (-0.3, -0.2), (-0.3, 0.6)])
def test_it_is_the_flow_of_all_weights(name: str, start: tuple[float, float]) -> None:
    theory = theory_of(name)
    a0, b0 = start
    times = np.array([0.0, 0.3, 1.0, 4.0]) / theory.slope
    a, b = reduced_flow(theory, key_query=a0, output_value=b0, times=times)
    engine = ClosedForm.of(initial_states(name), dim=5, length=100)
    run = flow(engine, diagonal(5, key_query=a0, output_value=b0), times)
    # The integrator of the full flow keeps 1e-10 a step, over tens of steps.
    np.testing.assert_allclose(run.weights.key_query[:, 2, 2], a, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(run.weights.output_value[:, 2, 2], b, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(run.product, a * b, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(run.loss, theory.loss(a * b), rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("start", [(-0.3, 0.6), (0.7, -0.4), (-1.0, 0.99)])
def test_a_negative_product_crosses_zero(start: tuple[float, float]) -> None:
    theory = theory_of("gaussian")
    times = np.linspace(0, 30 / theory.slope, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = reduced_flow(theory, key_query=start[0], output_value=start[1], times=times)
    product = a * b
    assert product[0] < 0 < product[-1]
    assert (np.diff(product) > -1e-9).all()  # to the integrator's errors
    larger = a if abs(start[0]) > abs(start[1]) else b
    assert (np.sign(larger) == np.sign(larger[0])).all()  # the larger one keeps its sign
    assert np.sign((a + b - larger)[-1]) == np.sign(larger[0])  # the smaller one takes it over


@pytest.mark.parametrize(("turn", "back"), [(0.7, -0.7), (2.0, -2.0), (np.pi, -np.pi)])
def test_a_phase_and_its_opposite_change_nothing(turn: float, back: float) -> None:
    theory = theory_of("gaussian")
    times = np.array([0.5, 1.0, 3.0]) / theory.slope
    a, b = reduced_flow(theory, key_query=0.2, output_value=0.4, times=times)
    start = diagonal(5, key_query=0.2 * np.exp(1j * turn), output_value=0.4 * np.exp(1j * back))
    for engine in (
        ClosedForm.of(initial_states("gaussian"), dim=5, length=100),
        population_loss(initial_states("gaussian"), dim=5, length=100),
    ):
        run = flow(engine, start, times)
        np.testing.assert_allclose(run.product, a * b, rtol=1e-8)
        keys = run.weights.key_query[:, 0, 0]
        np.testing.assert_allclose(keys, a * np.exp(1j * turn), rtol=1e-8)


def test_a_phase_of_the_product_dies_out() -> None:
    theory = theory_of("sparse")
    start = diagonal(5, key_query=0.3 * np.exp(2j), output_value=0.8)
    engine = ClosedForm.of(initial_states("sparse"), dim=5, length=100)
    run = flow(engine, start, np.array([0.0, 60 / theory.slope]))
    product = run.last.value_block[0, 0] * run.last.key_block[0, 0]
    assert abs(product - theory.product) < 1e-8
    conserved = np.abs(run.weights.key_query[:, 0, 0]) ** 2
    conserved = conserved - np.abs(run.weights.output_value[:, 0, 0]) ** 2
    assert conserved[1] == pytest.approx(conserved[0], abs=1e-8)
    end = limit_weights(theory, key_query=0.3, output_value=0.8)
    moduli = np.abs([run.last.key_block[0, 0], run.last.value_block[0, 0]])
    np.testing.assert_allclose(moduli, end, rtol=1e-7)


@settings(max_examples=5)
@given(name=distributions, start=st.floats(0.03, 2), last=st.floats(0.1, 5))
def test_equal_weights_follow_the_logistic_curve(name: str, start: float, last: float) -> None:
    theory = theory_of(name)
    times = np.linspace(0, last, 4) / theory.slope
    wanted = logistic(theory, start=start**2, times=times)
    a, b = reduced_flow(theory, key_query=start, output_value=start, times=times)
    np.testing.assert_allclose(a, b, rtol=1e-15)
    np.testing.assert_allclose(a * b, wanted, rtol=1e-14)
    # By the integrator, which keeps 1e-12 a step: from weights that are not quite equal, and from all.
    a, b = reduced_flow(theory, key_query=start, output_value=start * (1 + 1e-9), times=times)
    np.testing.assert_allclose(a * b, wanted, rtol=1e-7)
    engine = ClosedForm.of(initial_states(name), dim=5, length=100)
    run = flow(engine, diagonal(5, key_query=start, output_value=start), times)
    np.testing.assert_allclose(run.product, wanted, rtol=1e-7)


@given(name=distributions, start=away, tolerance=st.sampled_from((0.01, 0.1, 1e-4)))
def test_the_time_to_the_limit_is_that_of_the_flow(
    name: str, start: tuple[float, float], tolerance: float
) -> None:
    theory = theory_of(name)
    a0, b0 = start
    time = time_to_within(theory, key_query=a0, output_value=b0, tolerance=tolerance)
    gap = abs(a0 * b0 / theory.product - 1)
    if gap <= tolerance:
        assert time == 0
        return
    a, b = reduced_flow(theory, key_query=a0, output_value=b0, times=np.array([time]))
    assert abs(a[0] * b[0] / theory.product - 1) == pytest.approx(tolerance, rel=1e-6)


@pytest.mark.parametrize("imbalance", [1e-3, 1e-6, 1e-9])
def test_starts_near_the_saddle_take_long_and_are_timed(imbalance: float) -> None:
    theory = theory_of("sparse")
    start = {"key_query": 0.5 + imbalance, "output_value": -0.5}
    time = time_to_within(theory, **start)
    a, b = reduced_flow(theory, **start, times=np.array([time]))
    # c passes 0 at the speed |P| K0: relative errors of 1e-12 are enlarged by the logarithm's 1 / P.
    assert a[0] * b[0] / theory.product == pytest.approx(0.99, rel=1e-5)
    # Half of ln(1/|P|) to fall from 1/2 to |P|, and as much to rise again, at rate 2 K0.
    assert time == pytest.approx(math.log(1 / imbalance) / theory.slope, rel=1.0)


def test_printed_time_to_the_limit() -> None:
    theory = theory_of("gaussian")
    time = time_to_within(theory, key_query=0.1, output_value=0.1)
    assert time / 1e-4 == pytest.approx(127.5, abs=0.05)
    formula = math.log((theory.product / 0.01 - 1) * 99) / (2 * theory.slope)
    assert time == pytest.approx(formula, rel=1e-9)
    run = descend(
        population_loss(initial_states("gaussian"), dim=5, length=100),
        diagonal(5, key_query=0.1, output_value=0.1),
        learning_rate=1e-4,
        steps=150,
    )
    within = np.abs(run.product / theory.product - 1) <= 0.01
    assert int(within.argmax()) == 126


def test_a_time_from_above() -> None:
    theory = theory_of("sparse")
    time = time_to_within(theory, key_query=2.0, output_value=2.0)
    # c* / (1 + (c*/c0 - 1) e^{-2 K0 t}) = 1.01 c*.
    wanted = math.log((1 - 1 / 4) / (1 - 1 / 1.01)) / (2 * theory.slope)
    assert time == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("a0", "b0"), [(0.3, -0.3), (0.0, 0.0)])
def test_starts_that_do_not_get_there_are_warned_of(a0: float, b0: float) -> None:
    theory = theory_of("gaussian")
    times = np.array([0.0, 1.0])
    with pytest.warns(InitialisationWarning):
        assert time_to_within(theory, key_query=a0, output_value=b0) == math.inf
    with pytest.warns(InitialisationWarning):
        a, b = reduced_flow(theory, key_query=a0, output_value=b0, times=times)
    np.testing.assert_allclose((a[0], b[0]), (a0, b0), rtol=1e-14)
    np.testing.assert_allclose((a[1], b[1]), (0.0, 0.0), atol=1e-6)
    with pytest.warns(InitialisationWarning):
        limit_weights(theory, key_query=a0, output_value=b0)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("start", [(0.1, 0.1), (0.5, 1.5), (1.5, 0.5)])
def test_steps_below_the_bound_stay_and_steps_above_leave(
    name: str, start: tuple[float, float]
) -> None:
    theory = theory_of(name)
    engine = population_loss(initial_states(name), dim=5, length=100)
    a, b = limit_weights(theory, key_query=start[0], output_value=start[1])
    bound = stability_bound(engine, diagonal(5, key_query=start[0], output_value=start[1]))
    assert bound == pytest.approx(2 / (theory.curvature * (a**2 + b**2)), rel=1e-9)
    nudge = 1e-4
    near = diagonal(5, key_query=a + nudge * b, output_value=b + nudge * a)
    gaps = {}
    for factor in (0.95, 1.05):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = descend(
                engine, near, learning_rate=factor * bound, steps=60, off_diagonal="masked"
            )
        gaps[factor] = np.abs(run.product - theory.product)
    # Every step multiplies the gap by 1 - 2 * factor: 0.9^60 = 0.002, 1.1^60 = 300 while it is small.
    assert gaps[0.95][-1] < 0.01 * gaps[0.95][0]
    assert gaps[1.05][-1] > 20 * gaps[1.05][0]


def test_far_from_the_solution_the_start_sets_the_bound() -> None:
    engine = ClosedForm.of(initial_states("full_one"), dim=5, length=20)
    start = diagonal(5, key_query=2.0, output_value=2.0)
    theory = theory_of("full_one", length=20)
    bound = stability_bound(engine, start)
    # The first step multiplies a + b by 1 - rate * G (4 - (ab)*): by -1 at the bound.
    assert bound == pytest.approx(2 / (theory.curvature * (4 - theory.product)))
    assert bound < 1 / (theory.curvature * theory.product)  # the bound at the solution
    diverges = pytest.raises(RunError, match=r"no longer finite; learning_rate=.*the bound")
    with pytest.warns(StabilityWarning), diverges:
        descend(engine, start, learning_rate=1.2 * bound, steps=100)
    near = descend(engine, start, learning_rate=0.8 * bound, steps=400)
    assert near.product[-1] == pytest.approx(theory.product)


def test_of_several_layers_the_smallest_bound_counts() -> None:
    engine = ClosedForm.of(initial_states("gaussian"), dim=2, length=20)
    starts = [diagonal(2, key_query=a, output_value=b) for a, b in ((0.1, 0.1), (0.1, 2.0))]
    both = type(starts[0])(
        np.stack([w.output_value for w in starts]), np.stack([w.key_query for w in starts])
    )
    bounds = [stability_bound(engine, start) for start in starts]
    assert bounds[1] < bounds[0]
    assert stability_bound(engine, both) == pytest.approx(min(bounds), rel=1e-14)


@pytest.mark.parametrize(
    "times", [[], [1.0, 0.5], [1.0, 1.0], [-1.0, 1.0], [math.nan], [0.0, math.inf], [math.nan, 1.0]]
)
def test_times_that_do_not_ascend_are_refused(times: list[float]) -> None:
    theory = theory_of("gaussian")
    engine = ClosedForm.of(initial_states("gaussian"), dim=2, length=20)
    with pytest.raises(ConfigError, match="times=.*must be finite, ascending, from 0 or later"):
        reduced_flow(theory, key_query=0.1, output_value=0.1, times=np.array(times))
    with pytest.raises(ConfigError, match="times=.*must be finite, ascending, from 0 or later"):
        flow(engine, diagonal(2, key_query=0.1, output_value=0.1), np.array(times))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: logistic(t, start=0.0, times=np.zeros(1)), "start=0.0: must be greater than 0"),
        (lambda t: logistic(t, start=-1.0, times=np.zeros(1)), "start=-1.0"),
        (lambda t: logistic(t, start=math.inf, times=np.zeros(1)), "start=inf"),
        (
            lambda t: time_to_within(t, key_query=1.0, output_value=1.0, tolerance=0.0),
            "tolerance=0.0",
        ),
        (
            lambda t: time_to_within(t, key_query=1.0, output_value=1.0, tolerance=1.0),
            "tolerance=1.0",
        ),
    ],
)
def test_values_out_of_range_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(theory_of("gaussian"))


def test_a_flow_may_end_at_once() -> None:
    a, b = reduced_flow(
        theory_of("gaussian"), key_query=0.1, output_value=0.2, times=np.array([0.0])
    )
    np.testing.assert_allclose((a[0], b[0]), (0.1, 0.2), rtol=1e-14)
