"""Gradient flow of two numbers: a of the key-query block and b of the value block.

On a distribution that keeps V = b I and K = a I, with c = a b, gradient flow is

    a' = -b (G c - K0),  b' = -a (G c - K0),  G = (T-2) k2 + k3 H,  K0 = (T-2) k1.

a^2 - b^2 = P is conserved, so that c' = -sqrt(P^2 + 4 c^2) (G c - K0) is all there is to integrate.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad

from mesaopt.errors import ConfigError
from mesaopt.theory.ar_process.closed_form import OneStep
from mesaopt.theory.ar_process.dynamics import checked_times, integrated, warn_of_start
from mesaopt.theory.ar_process.weights import Array, diagonal


def reduced_flow(
    theory: OneStep, *, key_query: float, output_value: float, times: Float[Array, " time"]
) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """Integrate the reduced gradient flow.

    Args:
        theory: of the distribution and the length.
        key_query: a at time 0.
        output_value: b at time 0.
        times: when to record, ascending from 0 or later; n steps of gradient descent with learning rate r
            are n r.

    Returns:
        a and b at the times; a^2 - b^2 is what it was, to rounding.

    Raises:
        ConfigError: times are not finite and ascending.
        RuntimeError: the integrator gave up.

    Warns:
        InitialisationWarning: a = b = 0, or a = -b.

    Source: derived; the reduced dynamics of Zheng et al., by scipy's DOP853, or by formula if |a| = |b|.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import one_step
        >>> theory = one_step(initial_states("sparse"), dim=5, length=100)
        >>> a, b = reduced_flow(theory, key_query=0.5, output_value=1.5, times=np.array([1.0]))
        >>> a.round(6).tolist(), b.round(6).tolist()
        ([0.643594], [1.553774])
    """
    times = checked_times(times)
    warn_of_start(diagonal(1, key_query=key_query, output_value=output_value))
    start, imbalance = key_query * output_value, key_query**2 - output_value**2
    if imbalance == 0:  # an integrator may step across the saddle at 0, the flow cannot
        return _split(_balanced(theory, start, times), key_query, output_value)

    curvature, slope = theory.curvature, theory.slope

    def velocity(_: float, c: Float[Array, "1"]) -> Float[Array, "1"]:
        return -np.hypot(imbalance, 2 * c) * (curvature * c - slope)

    path = integrated(velocity, np.array([start]), times, relative=1e-12, absolute=1e-14)
    return _split(path[:, 0], key_query, output_value)


def limit_weights(theory: OneStep, *, key_query: float, output_value: float) -> tuple[float, float]:
    """Return the a and b that the flow ends in: a b = (ab)*, a^2 - b^2 as in the beginning.

    Args:
        theory: of the distribution and the length.
        key_query: a at time 0.
        output_value: b at time 0.

    Returns:
        a and b.

    Warns:
        InitialisationWarning: a = b = 0, or a = -b; the flow does not get there.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import one_step
        >>> theory = one_step(initial_states("gaussian"), dim=5, length=100)
        >>> a, b = limit_weights(theory, key_query=0.5, output_value=1.5)
        >>> round(a, 6), round(b, 6)
        (0.135083, 1.42065)
    """
    warn_of_start(diagonal(1, key_query=key_query, output_value=output_value))
    a, b = _split(np.array([theory.product]), key_query, output_value)
    return a.item(), b.item()


def logistic(
    theory: OneStep, *, start: float, times: Float[Array, " time"]
) -> Float[Array, " time"]:
    """Return c = a b under gradient flow from a = b: c* / (1 + (c*/c0 - 1) exp(-2 K0 time)).

    Args:
        theory: of the distribution and the length.
        start: c at time 0, > 0.
        times: 0 or later.

    Returns:
        c at the times.

    Raises:
        ConfigError: start is not greater than 0.

    Source: derived; the reduced dynamics of Zheng et al. with P = 0.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import one_step
        >>> theory = one_step(initial_states("sparse"), dim=5, length=100)
        >>> logistic(theory, start=0.01, times=np.array([0.02, 0.05])).round(8).tolist()
        [0.02164454, 0.06691208]
    """
    if not 0 < start < math.inf:
        raise ConfigError(f"start={start}: must be greater than 0 and finite")
    return _balanced(theory, start, np.asarray(times, dtype=np.float64))


def time_to_within(
    theory: OneStep, *, key_query: float, output_value: float, tolerance: float = 0.01
) -> float:
    """Return the time after which the flow has a b within a relative tolerance of its limit.

    Args:
        theory: of the distribution and the length.
        key_query: a at time 0.
        output_value: b at time 0.
        tolerance: between 0 and 1.

    Returns:
        The time, a number of steps times the learning rate; infinity if it never gets there.

    Raises:
        ConfigError: tolerance is not between 0 and 1.

    Warns:
        InitialisationWarning: a = b = 0, or a = -b.

    Source: derived; from a = b it is ln((c*/c0 - 1) (1 - tolerance) / tolerance) / (2 K0).

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import one_step
        >>> theory = one_step(initial_states("gaussian"), dim=5, length=100)
        >>> time = time_to_within(theory, key_query=0.1, output_value=0.1)
        >>> round(time / 1e-4, 1)  # steps at learning rate 1e-4
        127.5
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance={tolerance}: must be between 0 and 1")
    warn_of_start(diagonal(1, key_query=key_query, output_value=output_value))
    start, imbalance = key_query * output_value, key_query**2 - output_value**2
    if abs(start / theory.product - 1) <= tolerance:
        return 0.0
    if imbalance == 0 and start <= 0:
        return math.inf
    end = theory.product * (1 + math.copysign(tolerance, start - theory.product))

    curvature, slope = theory.curvature, theory.slope

    def slowness(c: float) -> float:
        return 1 / (math.hypot(imbalance, 2 * c) * (slope - curvature * c))

    return quad(slowness, start, end, epsabs=0, epsrel=1e-10, limit=200)[0]


def _balanced(theory: OneStep, start: float, times: Float[Array, " time"]) -> Float[Array, " time"]:
    """Return c under c' = 2 |c| (K0 - G c): the logistic curve, run backwards below 0."""
    if start == 0:
        return np.zeros_like(times)
    faded = np.exp(-2 * theory.slope * times)
    ratio = theory.product / start - 1
    return theory.product * (1 / (1 + ratio * faded) if start > 0 else faded / (faded + ratio))


def _split(
    product: Float[Array, " time"], key_query: float, output_value: float
) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """Find a and b from their product and a^2 - b^2: the larger one never changes its sign."""
    imbalance = key_query**2 - output_value**2
    larger = np.sqrt((abs(imbalance) + np.hypot(imbalance, 2 * product)) / 2)
    larger = np.copysign(larger, key_query if imbalance >= 0 else output_value)
    smaller = np.divide(product, larger, out=np.zeros_like(product), where=larger != 0)
    return (larger, smaller) if imbalance >= 0 else (smaller, larger)
