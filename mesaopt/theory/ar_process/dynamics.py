"""Training the layer on any engine: gradient descent, and the gradient flow of the theory."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from mesaopt.errors import ConfigError, InitialisationWarning, RunError, StabilityWarning
from mesaopt.progress import AnyProgress, reporting
from mesaopt.theory.ar_process.statistics import Engine, stability_bound
from mesaopt.theory.ar_process.weights import Array, Weights, check_choice

OffDiagonal = Literal["trained", "masked"]
"""Whether gradients off the diagonals of V and K are followed or set to zero."""

_RELATIVE, _ABSOLUTE = 1e-10, 1e-12  # errors a step of the flow may make


@dataclass(frozen=True)
class Trajectory:
    """A training run: weights and losses at every recorded time.

    Args:
        times: steps taken, or the time of the flow, [time].
        weights: one entry per time along the first axis; further leading axes are several layers.
        loss: [time, ...].

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import ClosedForm, diagonal
        >>> engine = ClosedForm.of(initial_states("sparse"), dim=2, length=10)
        >>> start = diagonal(2, key_query=1.0, output_value=1.0)
        >>> run = descend(engine, start, learning_rate=1e-3, steps=3)
        >>> run.times.tolist(), run.loss.shape, run.product.round(9).tolist()
        ([0.0, 1.0, 2.0, 3.0], (4,), [1.0, 1.0, 1.0, 1.0])
    """

    times: Float[Array, " time"]
    weights: Weights
    loss: Float[Array, "time *batch"]

    @property
    def last(self) -> Weights:
        """The weights at the end."""
        return Weights(self.weights.output_value[-1], self.weights.key_query[-1])

    @property
    def product(self) -> Float[Array, "time *batch"]:
        """Mean over coordinates of Re(V_jj K_jj): the ab of the paper's figures."""
        return self.weights.products.mean(-1)


def descend(
    engine: Engine,
    start: Weights,
    *,
    learning_rate: float,
    steps: int,
    off_diagonal: OffDiagonal = "trained",
    progress: AnyProgress = True,
) -> Trajectory:
    """Train by gradient descent on the whole loss, without momentum.

    Args:
        engine: gives the loss and its gradient.
        start: weights to begin with; leading axes hold layers that are trained side by side.
        learning_rate: > 0; n steps are the time n * learning_rate of the flow.
        steps: 1 or more.
        off_diagonal: "masked" sets gradients off the diagonals of V and K to zero.
        progress: a bar, nothing, or a function of the number of finished steps: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        Weights and losses after 0, 1, ... steps.

    Raises:
        ConfigError: learning_rate or steps is out of range.
        RunError: the loss is no longer finite.

    Warns:
        InitialisationWarning: training cannot reach the solution from the start.
        StabilityWarning: the learning rate is past :func:`stability_bound`, which the message gives. The
            bound is local: a smaller rate can diverge on the way to the solution, and is not warned of.

    Source: Zheng et al. train in this way; their theory is about :func:`flow`.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import ClosedForm, diagonal
        >>> engine = ClosedForm.of(initial_states("gaussian"), dim=5, length=100)
        >>> start = diagonal(5, key_query=0.5, output_value=1.5)
        >>> run = descend(engine, start, learning_rate=1e-4, steps=25)
        >>> round(float(run.product[-1]), 6)
        0.19195
    """
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ConfigError(f"learning_rate={learning_rate}: must be greater than 0 and finite")
    if steps < 1:
        raise ConfigError(f"steps={steps}: must be 1 or greater")
    check_choice("off_diagonal", off_diagonal, OffDiagonal)
    warn_of_start(start)
    bound = stability_bound(engine, start)
    if learning_rate > bound:
        warnings.warn(
            f"learning_rate={learning_rate:g}: past {bound:.3g}, up to which descent is stable at the "
            "solution; gradient descent will circle around it or diverge (a local bound: a smaller step "
            "can diverge too, far from the solution)",
            StabilityWarning,
            stacklevel=2,
        )
    weights, history, losses = start, [], []
    with reporting(progress, "gradient descent") as report:
        for step in range(steps + 1):
            with np.errstate(over="ignore", invalid="ignore"):  # said more clearly below
                loss, gradient = engine.loss_and_gradient(weights)
            if not np.isfinite(loss).all():
                raise RunError(
                    f"step {step}: the loss is no longer finite; learning_rate={learning_rate:g} is too "
                    f"large for this start; {bound:.3g} is the bound at the solution, not on the way there"
                )
            history.append(weights)
            losses.append(loss)
            weights = weights.moved(_followed(gradient, off_diagonal), -learning_rate)
            report(step, steps)
    return Trajectory(np.arange(steps + 1.0), _stack(history), np.stack(losses))


def flow(
    engine: Engine,
    start: Weights,
    times: Float[Array, " time"],
    *,
    off_diagonal: OffDiagonal = "trained",
) -> Trajectory:
    """Train by gradient flow, dW/dtime = -dL/dW, to a relative accuracy of about 1e-9.

    Args:
        engine: gives the loss and its gradient.
        start: weights to begin with.
        times: when to record, ascending from 0 or later.
        off_diagonal: "masked" sets gradients off the diagonals of V and K to zero.

    Returns:
        Weights and losses at the times.

    Raises:
        ConfigError: times are not finite and ascending.
        RuntimeError: the integrator gave up.

    Warns:
        InitialisationWarning: training cannot reach the solution from the start.

    Source: Zheng et al., gradient flow; integrated with scipy's DOP853.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import ClosedForm, diagonal
        >>> engine = ClosedForm.of(initial_states("gaussian"), dim=5, length=100)
        >>> start = diagonal(5, key_query=0.1, output_value=0.1)
        >>> run = flow(engine, start, np.array([0.0, 0.002, 0.02]))
        >>> run.product.round(8).tolist()
        [0.01, 0.02902394, 0.19187783]
    """
    check_choice("off_diagonal", off_diagonal, OffDiagonal)
    times = checked_times(times)
    warn_of_start(start)

    def velocity(_: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        gradient = engine.loss_and_gradient(_unflatten(y, start))[1]
        return -_flatten(_followed(gradient, off_diagonal))

    path = integrated(velocity, _flatten(start), times, relative=_RELATIVE, absolute=_ABSOLUTE)
    history = [_unflatten(y, start) for y in path]
    losses = [engine.loss_and_gradient(weights)[0] for weights in history]
    return Trajectory(times, _stack(history), np.stack(losses))


def integrated(
    velocity: Callable[[float, NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    times: NDArray[np.float64],
    *,
    relative: float,
    absolute: float,
) -> NDArray[np.float64]:
    """Solve y' = velocity(time, y) from y(0) = start with scipy's DOP853.

    Args:
        velocity: of y.
        start: y at time 0.
        times: when to record, checked.
        relative: error a step may make.
        absolute: error a step may make.

    Returns:
        y at the times, [time, ...].

    Raises:
        RuntimeError: the integrator gave up.
    """
    end = float(times[-1])
    if end == 0:  # scipy records nothing on an interval of length zero
        return start[None].copy()
    solution = solve_ivp(
        velocity, (0.0, end), start, method="DOP853", t_eval=times, rtol=relative, atol=absolute
    )
    if not solution.success:
        reached = (
            f"before {times[len(solution.t)]:g}" if len(solution.t) < len(times) else "at the end"
        )
        raise RuntimeError(f"gradient flow stopped {reached}: {solution.message}")
    return np.ascontiguousarray(solution.y.T)


def checked_times(times: Float[Array, " time"]) -> NDArray[np.float64]:
    """Return the times at which a flow is recorded, as numbers.

    Args:
        times: one or more, finite, ascending from 0 or later.

    Raises:
        ConfigError: they are not.
    """
    times = np.asarray(times, dtype=np.float64)
    one_row = times.ndim == 1 and len(times) > 0 and np.isfinite(times).all()
    if not (one_row and times[0] >= 0 and (np.diff(times) > 0).all()):
        raise ConfigError(f"times={times.tolist()}: must be finite, ascending, from 0 or later")
    return times


def warn_of_start(start: Weights) -> None:
    """Warn of weights from which training does not reach the solution.

    Args:
        start: V = b I and K = a I are checked for a = b = 0 and for a = -b, every layer by itself.

    Warns:
        InitialisationWarning: with the reason.
    """
    if not (start.output_value.any((-2, -1)) | start.key_query.any((-2, -1))).all():
        _warn_start("V = K = 0 (a0 = b0 = 0): the gradient is zero there, and training is stuck")
        return
    v, k = (np.diagonal(x, axis1=-2, axis2=-1) for x in (start.value_block, start.key_block))
    product = v * k
    # |a| = |b| is kept by the flow, and a negative product then cannot cross zero.
    balanced = np.isclose(np.abs(v), np.abs(k), rtol=1e-12, atol=0)
    if (balanced & (product.real < 0) & (np.abs(product.imag) < 1e-12 * np.abs(product))).any():
        _warn_start("a0 = -b0: the flow keeps a = -b and ends in the saddle a = b = 0")


def _warn_start(reason: str) -> None:
    warnings.warn(f"start: {reason}; start from a0, b0 > 0", InitialisationWarning, stacklevel=4)


def _followed(gradient: Weights, off_diagonal: OffDiagonal) -> Weights:
    return gradient.masked() if off_diagonal == "masked" else gradient


def _stack(history: list[Weights]) -> Weights:
    return Weights(
        np.stack([w.output_value for w in history]), np.stack([w.key_query for w in history])
    )


def _flatten(weights: Weights) -> NDArray[np.float64]:
    """Lay out weights as one vector of real numbers."""
    parts = [x.astype(np.complex128).ravel() for x in (weights.output_value, weights.key_query)]
    return np.concatenate(parts).view(np.float64)


def _unflatten(y: NDArray[np.float64], like: Weights) -> Weights:
    """Undo :func:`_flatten` for weights of the shapes of others."""
    values, cut = y.view(np.complex128), like.output_value.size
    return Weights(
        values[:cut].reshape(like.output_value.shape), values[cut:].reshape(like.key_query.shape)
    )
