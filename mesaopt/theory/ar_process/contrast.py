"""Comparisons with one gradient step: several steps, and the exact solve of a mesa layer."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Inexact
from scipy.optimize import minimize_scalar

from mesaopt import ops
from mesaopt.config import require_count
from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates
from mesaopt.tasks.distributions import check_positive
from mesaopt.theory.ar_process.population import check_size
from mesaopt.theory.ar_process.sampled import Stream
from mesaopt.theory.ar_process.weights import Array
from mesaopt.theory.predictors import gradient_descent

_SHARE_KNOWN = 1e-6
"""Largest rounding error of the share that :func:`descent_limit` gives."""

Predict = Callable[
    [Inexact[Array, "batch time dim"]],
    Inexact[Array, "batch context dim"],
]
"""Called with states x_1 ... x_T; returns predictions of x_{t+1} for t = 2 ... T-1."""


def descent_predictions(
    states: Inexact[Array, "batch time dim"], *, step_size: float, num_steps: int
) -> Inexact[Array, "batch context dim"]:
    """Predict after steps of gradient descent on the context, W <- W - step_size/(t-1) grad L_OLS,t(W).

    Args:
        states: x_1 ... x_T, T at least 3.
        step_size: > 0; one step of size (ab)* is the trained layer.
        num_steps: 1 or more, from W = 0.

    Returns:
        W x_t for t = 2 ... T-1.

    Raises:
        ConfigError: step_size or num_steps is out of range, or the sequences have fewer than three states.

    Example:
        >>> states = np.exp(2j * np.arange(6.0))[None, :, None]  # |x| = 1: one step of size 1 is exact
        >>> predicted = descent_predictions(states, step_size=1.0, num_steps=1)
        >>> bool(np.allclose(predicted, states[:, 2:]))
        True
    """
    check_positive(step_size=step_size)
    check_size(states.shape[-1], states.shape[1])
    predictions = gradient_descent(
        torch.from_numpy(states), step_size=step_size, num_steps=num_steps, objective="mean"
    )
    return predictions[:, 1:-1].numpy()  # position 1 has no pair, and s_{T+1} no target


def mesa_predictions(
    states: Inexact[Array, "batch time dim"], *, ridge: float = 1e-3
) -> Inexact[Array, "batch context dim"]:
    """Predict with the exact ridge solution of the context, by the mesa operator.

    S_t (H_t + ridge)^{-1} x_t with H_t = sum_{i < t} x_i x_i^*. The operator is real: a complex
    number is two real ones, and every pair (x_i, x_{i+1}) goes in twice, once multiplied by the imaginary
    unit, which makes the real regression respect complex multiplication.

    Args:
        states: x_1 ... x_T, T at least 3.
        ridge: > 0.

    Returns:
        Predictions of x_{t+1} for t = 2 ... T-1.

    Raises:
        ConfigError: ridge is out of range, or the sequences have fewer than three states.

    Source: von Oswald et al., the mesa layer, on the process of Zheng et al.

    Example:
        >>> turn = np.exp(1j * np.array([0.3, 1.1, 2.5])) ** np.arange(8)[:, None]
        >>> states = (np.array([0.4, 1.7, -1.0]) * turn)[None]
        >>> error = np.abs(mesa_predictions(states, ridge=1e-9) - states[:, 2:]).max(-1)[0]
        >>> (error < 1e-6).tolist()  # exact once the context has three pairs
        [False, False, True, True, True, True]
    """
    check_positive(ridge=ridge)
    dim = states.shape[-1]
    check_size(dim, states.shape[1])
    now, before = states[:, 1:-1], states[:, :-2]
    query, key, value = (
        torch.from_numpy(_real(x)).unsqueeze(2)  # [B,2T,1,2D]
        for x in (
            np.stack([now, now], axis=2),
            np.stack([before, 1j * before], axis=2),
            np.stack([now, 1j * now], axis=2),
        )
    )
    output = ops.mesa(query, key, value, ridge=ridge).output.squeeze(2).numpy()
    both = output[:, 1::2]  # after both copies of a pair
    return both[..., :dim] + 1j * both[..., dim:]


def _real(pairs: Inexact[Array, "batch time 2 dim"]) -> Float[Array, "batch twice_time twice_dim"]:
    """Lay out two complex vectors of every time one after the other, as real vectors."""
    flat = pairs.reshape(len(pairs), -1, pairs.shape[-1])
    return np.concatenate([flat.real, flat.imag], axis=-1)


def unexplained(
    predict: Predict, stream: Stream
) -> tuple[Float[Array, " context"], Float[Array, " context"]]:
    """Measure the unexplained share of the targets' energy, by context.

    Args:
        predict: called with states; returns predictions.
        stream: of sequences.

    Returns:
        E |prediction - x_{t+1}|^2 / E |x_{t+1}|^2 for t = 2 ... T-1, and its standard error.

    Example:
        >>> states = np.exp(1j * np.random.default_rng(0).uniform(0, 6, (9, 1, 2)) * np.arange(30)[:, None])
        >>> share, error = unexplained(lambda x: x[:, 2:] / 2, lambda: [states])
        >>> round(float(share[-1]), 9)
        0.25
    """
    errors, energies = [], []
    for states in stream():
        target = states[:, 2:]
        errors.append((np.abs(predict(states) - target) ** 2).sum(-1))
        energies.append((np.abs(target) ** 2).sum(-1))
    error, energy = np.concatenate(errors), np.concatenate(energies)
    share = error.mean(0) / energy.mean(0)
    spread = (error - share * energy).std(0, ddof=1) / energy.mean(0)
    return share, spread / len(error) ** 0.5


class DescentLimit(NamedTuple):
    """The best step size of several gradient steps, and their unexplained share, for T to infinity.

    Example:
        >>> DescentLimit(step_size=0.2, unexplained=0.4).unexplained
        0.4
    """

    step_size: float
    """The best step size."""
    unexplained: float
    """The share of the energy left with it."""


def descent_limit(initial: InitialStates, *, num_steps: int) -> DescentLimit:
    """Find the best step size of several gradient steps, and their unexplained share, for T to infinity.

    H_t / (t-1) tends to diag(|x_j|^2), so that steps of size s multiply the error of coordinate j by
    (1 - s |x_j|^2)^num_steps; the share left is E |x|^2 (1 - s |x|^2)^{2 num_steps} / E |x|^2, a convex
    function of s.

    Args:
        initial: distribution of x_1, with the moments of one coordinate up to 4 num_steps + 2.
        num_steps: 1 or more, up to some 10 to 20: the share is a sum with alternating signs, whose
            rounding errors grow by a factor of 4 or more with each step.

    Returns:
        The best step size and the share, to 1e-6.

    Raises:
        ConfigError: num_steps is less than 1 or too large for the share to be known to 1e-6, or a moment is
            not finite.

    Source: derived; one step gives k1/k2 and 1 - k1^2/(k0 k2).

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> limit = descent_limit(initial_states("gaussian"), num_steps=1)
        >>> round(limit.step_size, 4), round(limit.unexplained, 4)
        (0.2, 0.4)
    """
    require_count("num_steps", num_steps, smallest=1)
    orders = np.arange(1, 2 * num_steps + 2)[:, None]
    moments = np.real(initial.moment(orders, orders))  # E |x|^2, E |x|^4, ...
    if not np.isfinite(moments).all():
        raise ConfigError(
            f"initial states {initial.name!r}: has no finite moment {4 * num_steps + 2}"
        )
    powers = np.arange(2 * num_steps + 1)
    binomials = np.array([float(math.comb(2 * num_steps, n)) for n in powers]) * (-1.0) ** powers

    def terms(step_size: float) -> Float[Array, " power"]:
        return binomials * step_size**powers * moments

    def share(step_size: float) -> float:
        return float(terms(step_size).sum() / moments[0])

    largest = 2 * float(moments[1] / moments[2])  # twice the best size of one step
    best = minimize_scalar(
        share, bounds=(0, largest), method="bounded", options={"xatol": 1e-9 * largest}
    )
    rounding = np.finfo(np.float64).eps * np.abs(terms(best.x)).sum() / moments[0]
    if rounding > _SHARE_KNOWN:
        raise ConfigError(
            f"num_steps={num_steps}: rounding hides the share left of {initial.name!r}: must be fewer"
        )
    return DescentLimit(float(best.x), share(float(best.x)))
