"""The loss of the layer as a quadratic form in products of its weights: one pass over data, then none."""

import functools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Inexact

from mesaopt.theory.ar_process.weights import Array, Blocks, Weights


@runtime_checkable
class Engine(Protocol):
    """The loss of the layer and its gradient, for any weights.

    L = sum_{t=2}^{T-1} E 1/2 |yhat_t - x_{t+1}|^2: summed over contexts and coordinates, averaged over
    sequences. Three engines: :class:`ClosedForm` (diagonal weights, from moments),
    :class:`QuadraticLoss` (any weights, from exact or sampled statistics) and :class:`DirectLoss` (any
    weights, from the sequences themselves).

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import ClosedForm
        >>> isinstance(ClosedForm.of(initial_states("sparse"), dim=2, length=5), Engine)
        True
    """

    @property
    def dim(self) -> int:
        """Width of a state."""
        ...

    def loss_and_gradient(self, weights: Weights) -> tuple[Float[Array, " *batch"], Weights]:
        """Return the loss and dL/dRe + i dL/dIm of every entry, the convention of PyTorch.

        Args:
            weights: of the layer; leading axes hold several layers.

        Returns:
            One loss per layer and the gradients, shaped like the weights.
        """
        ...


@dataclass(frozen=True)
class QuadraticLoss:
    """The loss from second moments of the features, which the prediction is linear in.

    With M_t = E_t E_t^* / (t - 1) (or S_t / (t - 1) for core blocks) and the features
    F_abc = M_t[a, b] e_t[c], the prediction is U F with U_{j,abc} = W_PV[j, a] W_KQ[b, c], and

        L = 1/2 (tr U G U^* - 2 Re tr U C + y),  G = sum_t E F F^*, C = sum_t E F x_{t+1}^*,
        y = sum_t E |x_{t+1}|^2.

    A gradient costs the same however many sequences, of whatever length, the statistics hold.

    Args:
        gram: G [features, features].
        cross: C [features, dim].
        energy: y.

    Source: derived.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import diagonal, population_loss
        >>> loss = population_loss(initial_states("sparse"), dim=2, length=5)
        >>> loss.gram.shape, loss.cross.shape
        ((8, 8), (8, 2))
        >>> value, gradient = loss.loss_and_gradient(diagonal(2, key_query=0.0, output_value=1.0))
        >>> round(float(value), 9), gradient.key_query.shape
        (1.5, (2, 2))
    """

    gram: Inexact[Array, "feature feature"]
    cross: Inexact[Array, "feature dim"]
    energy: float

    @functools.cached_property
    def dim(self) -> int:
        """Width of a state."""
        return self.cross.shape[-1]

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Blocks that the features are made of."""
        return "core" if len(self.gram) == self.dim**3 else "all"

    def rescaled(self, scale: float) -> "QuadraticLoss":
        """Return the loss on the same sequences times a number.

        Args:
            scale: > 0.

        Returns:
            The loss: features grow with the third power of the states.
        """
        return QuadraticLoss(
            self.gram * scale**6, self.cross * scale**4, float(self.energy * scale**2)
        )

    def loss_and_gradient(self, weights: Weights) -> tuple[Float[Array, " *batch"], Weights]:
        """See :meth:`Engine.loss_and_gradient`.

        Raises:
            ValueError: the weights have other blocks or another width.
        """
        self._check(weights)
        p, q = weights.output_value, weights.key_query
        batch, outer, inner = p.shape[:-2], (*p.shape[:-2], -1, 1), (*p.shape[:-2], 1, -1)
        left, right = p.reshape(outer), q.reshape(inner)
        u = (left * right).reshape(*batch, self.dim, -1)  # [...,D,F]
        target = self.cross.conj().T  # [D,F]
        product = _multiply(u, self.gram)
        loss = _real_dot(product - 2 * target, u) / 2 + self.energy / 2
        pull = (product - target).reshape(*batch, left.shape[-2], -1)  # [...,D A,B C]
        value = (pull @ q.conj().reshape(outer)).reshape(p.shape)
        key = (p.conj().reshape(inner) @ pull).reshape(q.shape)
        return loss, Weights(value, key)

    def _check(self, weights: Weights) -> None:
        if (weights.dim, weights.blocks) != (self.dim, self.blocks):
            raise ValueError(
                f"weights have dim={weights.dim}, blocks={weights.blocks!r}: "
                f"must be {self.dim}, {self.blocks!r} as in the statistics"
            )


@dataclass(frozen=True)
class TiedLoss:
    """The loss of V K = c I as a parabola in c: L(c) = dim/2 (curvature c^2 - 2 slope c) + L(0).

    Example:
        >>> TiedLoss(curvature=4.0, slope=1.0).optimum
        0.25
    """

    curvature: float
    """(T-2) k2 + k3 H in the population."""
    slope: float
    """(T-2) k1 in the population."""

    @property
    def optimum(self) -> float:
        """The best c: (ab)* in the population, the best one on this sample otherwise."""
        return self.slope / self.curvature


def tied_loss(engine: Engine, blocks: Blocks = "core") -> TiedLoss:
    """Fit the parabola through three losses of an engine.

    Args:
        engine: any.
        blocks: of the engine's weights.

    Returns:
        The parabola.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import population_loss
        >>> loss = population_loss(initial_states("gaussian"), dim=5, length=100)
        >>> round(tied_loss(loss).optimum, 6)
        0.191905
    """
    one = np.eye(engine.dim)
    signs = np.array([-1.0, 0.0, 1.0])[:, None, None]
    weights = Weights(signs * one, np.broadcast_to(one, (3, *one.shape)))
    low, zero, high = engine.loss_and_gradient(weights if blocks == "core" else weights.embedded())[
        0
    ].tolist()
    return TiedLoss((low + high - 2 * zero) / engine.dim, (low - high) / (2 * engine.dim))


def stability_bound(engine: Engine, weights: Weights) -> float:
    """Return a step size past which gradient descent cannot reach the solution and stay there.

    Smaller ones may be too large as well: the bound is that of the first step and of the neighbourhood of
    the solution, for weights that are multiples of the identity. In between descent can overshoot, most of
    all from large entries off the diagonals, which the bound does not see.

    A step multiplies a + b by 1 - step_size g and a - b by 1 + step_size g, with g = G (ab - (ab)*), so
    that 2 / |g| is too large at the start. At the limit a*, b* the loss has curvature
    (|a*|^2 + |b*|^2) G along the joint direction of all coordinates, so that 2 / ((|a*|^2 + |b*|^2) G) is
    too large there; a* b* = (ab)*, and |a|^2 - |b|^2 is as in the beginning.

    Args:
        engine: of the loss.
        weights: the beginning; their diagonals are looked at.

    Returns:
        The smaller of the two, for the worst of all layers in `weights`. Where the coordinates of x_1 have
        different distributions, it is that of their mean, and the steepest one may need less.

    Source: linearisation of the reduced flow.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import ClosedForm, diagonal
        >>> engine = ClosedForm.of(initial_states("gaussian"), dim=5, length=100)
        >>> round(stability_bound(engine, diagonal(5, key_query=0.1, output_value=0.1)), 4)
        0.0034
    """
    tied = tied_loss(engine, weights.blocks)
    k, v = (
        np.abs(np.diagonal(block, axis1=-2, axis2=-1)) ** 2
        for block in (weights.key_block, weights.value_block)
    )
    imbalance = np.abs((k - v).mean(-1)).max()
    distance = np.abs(weights.products.mean(-1) - tied.optimum).max()
    return 2 / (tied.curvature * max(math.hypot(imbalance, 2 * tied.optimum), float(distance)))


def _multiply(
    u: Inexact[Array, "*batch dim feature"], gram: Inexact[Array, "feature feature"]
) -> Inexact[Array, "*batch dim feature"]:
    """Multiply with torch: NumPy's waiting threads occupy cores that other programs need (docs/log.md)."""
    if np.iscomplexobj(u) and not np.iscomplexobj(gram):
        return _multiply(u.real, gram) + 1j * _multiply(u.imag, gram)
    left = torch.from_numpy(np.ascontiguousarray(u.astype(gram.dtype)))
    return (left @ torch.from_numpy(gram)).numpy()


def _real_dot(
    x: Inexact[Array, "*batch dim feature"], y: Inexact[Array, "*batch dim feature"]
) -> Float[Array, " *batch"]:
    """Return Re tr x y^*."""
    return np.einsum("...jf,...jf->...", x, y.conj()).real
