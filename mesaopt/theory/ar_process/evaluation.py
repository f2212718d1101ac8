"""The prediction after the longest context: its loss, ratio to the target, and regression slope."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Inexact

from mesaopt.theory.ar_process.sampled import Stream, parts, sampled_loss
from mesaopt.theory.ar_process.statistics import QuadraticLoss
from mesaopt.theory.ar_process.weights import Array, Weights


@dataclass(frozen=True)
class LastToken:
    """Statistics of the prediction of x_T, from which those of any core weights follow.

    Args:
        quadratic: the loss after the context t = T-1.
        inverse: sum of F / x_{T,j} over sequences in which x_{T,j} is not 0, over how many of these a
            coordinate has on average, [dim, features].

    Example:
        >>> from mesaopt.theory.ar_process import diagonal
        >>> turn = np.exp(1j * np.random.default_rng(0).uniform(0, 6, (8, 1, 2)))
        >>> states = np.eye(2)[[0, 1] * 4][:, None] * turn ** np.arange(6)[:, None]  # sparse
        >>> test = last_token(lambda: [states])
        >>> solution = diagonal(2, key_query=1.0, output_value=1.0)
        >>> round(float(test.ratio(solution)), 9), round(float(test.slope(solution)), 9)
        (1.0, 1.0)
    """

    quadratic: QuadraticLoss
    inverse: Inexact[Array, "dim feature"]

    def rescaled(self, scale: float) -> "LastToken":
        """Return the statistics of the same sequences times a number.

        Args:
            scale: > 0.

        Returns:
            The statistics.
        """
        return LastToken(self.quadratic.rescaled(scale), self.inverse * scale**2)

    def loss(self, weights: Weights) -> Float[Array, " *batch"]:
        """Return half the squared error, summed over coordinates.

        Args:
            weights: core weights; leading axes hold several layers.

        Returns:
            One loss per layer, [...].
        """
        return self.quadratic.loss_and_gradient(weights)[0]

    def ratio(self, weights: Weights) -> Float[Array, " *batch"]:
        """Return the mean of Re(prediction/target) over sequences and coordinates whose target is not 0.

        Off-diagonal weights give it the tails of a quotient. Where the target has a positive density at 0,
        no mean exists, and the number is that of this sample only.

        Args:
            weights: core weights; leading axes hold several layers.

        Returns:
            One mean per layer, [...].
        """
        return _contract(weights, self.inverse).real / self.quadratic.dim

    def slope(self, weights: Weights) -> Float[Array, " *batch"]:
        """Return the slope of predictions on targets, Re E prediction conj(target) / E |target|^2.

        Args:
            weights: core weights; leading axes hold several layers.

        Returns:
            One slope per layer, [...].
        """
        return _contract(weights, self.quadratic.cross.T).real / self.quadratic.energy


def last_token(stream: Stream) -> LastToken:
    """Collect the statistics of the last prediction from sequences.

    Args:
        stream: of the sequences; one chunk at a time is in memory.

    Returns:
        The statistics, for core weights.

    Example:
        >>> from mesaopt.config import ARProcessConfig
        >>> from mesaopt.tasks import ARProcess
        >>> from mesaopt.theory.ar_process import diagonal, sequences
        >>> test = last_token(sequences(ARProcess(ARProcessConfig(start="sparse")), 100, seed=0))
        >>> bool(abs(test.loss(diagonal(5, key_query=1.0, output_value=1.0))) < 1e-12)
        True
    """
    quadratic = cast(QuadraticLoss, sampled_loss(stream, contexts="last", largest_gram=2**62))
    inverse = np.zeros((quadratic.dim, len(quadratic.gram)), dtype=np.complex128)
    count = 0
    for states in stream():
        memory, query, target = (x[:, 0] for x in parts(states, contexts="last"))
        features = np.einsum("zab,zc->zabc", memory, query).reshape(len(states), -1)
        nonzero = target != 0
        inverse += np.divide(1, target, out=np.zeros_like(target), where=nonzero).T @ features
        count += int(nonzero.sum())
    return LastToken(quadratic, inverse * quadratic.dim / max(count, 1))


def _contract(
    weights: Weights, features: Inexact[Array, "dim feature"]
) -> Inexact[Array, " *batch"]:
    """Sum U_{j,abc} features_{j,abc} over everything."""
    dim = weights.dim
    return np.einsum(
        "...ja,...bc,jabc->...",
        weights.output_value,
        weights.key_query,
        features.reshape(dim, dim, dim, dim),
        optimize=True,
    )
