"""The diagonal theory in closed form: the limit of training, and its predictions."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Inexact, Num

from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates, SampledStates
from mesaopt.theory.ar_process.moments import StartMoments, start_moments
from mesaopt.theory.ar_process.population import check_size
from mesaopt.theory.ar_process.weights import Array, Weights

_SPREAD, _SAMPLED_SPREAD = 1e-9, 0.05
"""Largest relative difference between coordinates that counts as none. Moments by quadrature have errors
of 1e-10, those by sampling of about 1 % (a million Gaussian draws: 0.7 % in the sixth)."""


@functools.cache
def harmonic(length: int) -> float:
    """Return H = sum_{t=2}^{T-1} 1/(t-1), the harmonic number of T - 2.

    Args:
        length: T, 3 or more.

    Returns:
        H.

    Example:
        >>> harmonic(5)
        1.8333333333333333
    """
    return math.fsum(1 / n for n in range(1, length - 1))


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """The layer V K = c I where coordinates are exchangeable: one gradient step of size c/(t-1).

    With k0 = E x_j^2, k1 = E x_j^4, k2 = E x_j^6, k3 = sum_{r != j} E x_j^2 x_r^4 and
    H = sum_{t=2}^{T-1} 1/(t-1), the loss is

        L(c) = dim/2 ((T-2) (k2 c^2 - 2 k1 c + k0) + k3 H c^2).

    Args:
        dim: width of a state.
        length: T.
        k0: second moment.
        k1: fourth moment.
        k2: sixth moment.
        k3: mixed sixth moments.

    Source: Zheng et al., the limit of gradient flow (their Theorem 4.1); the loss is derived, and
    agrees with the exact population loss to 1e-12 (tests).

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> theory = one_step(initial_states("gaussian"), dim=5, length=100)
        >>> round(theory.product, 6), theory.limit, round(theory.unexplained_limit, 12)
        (0.191905, 0.2, 0.4)
    """

    dim: int
    length: int
    k0: float
    k1: float
    k2: float
    k3: float

    @property
    def curvature(self) -> float:
        """G = (T-2) k2 + k3 H: L(c) = dim/2 (G c^2 - 2 (T-2) k1 c + (T-2) k0)."""
        return (self.length - 2) * self.k2 + self.k3 * harmonic(self.length)

    @property
    def slope(self) -> float:
        """(T-2) k1."""
        return (self.length - 2) * self.k1

    @property
    def product(self) -> float:
        """(ab)* = k1 / (k2 + k3 H / (T-2)), what training converges to."""
        return self.slope / self.curvature

    @property
    def limit(self) -> float:
        """k1 / k2, the product for T to infinity."""
        return self.k1 / self.k2

    @property
    def minimal_loss(self) -> float:
        """L at the product: dim/2 (T-2) (k0 - k1 (ab)*)."""
        return self.dim / 2 * (self.length - 2) * (self.k0 - self.k1 * self.product)

    @property
    def unexplained(self) -> float:
        """Share of the targets' energy that the prediction leaves at the product: 1 - k1 (ab)* / k0."""
        return 1 - self.k1 * self.product / self.k0

    @property
    def unexplained_limit(self) -> float:
        """The same for T to infinity: 1 - k1^2 / (k0 k2), zero only if |x_j| is 0 or one constant."""
        return 1 - self.k1**2 / (self.k0 * self.k2)

    @property
    def ratio(self) -> float:
        """E prediction/target at the product, for distributions that never give 0: (ab)* k0."""
        return self.product * self.k0

    @property
    def regression_slope(self) -> float:
        """E prediction conj(target) / E |target|^2 at the product: (ab)* k1 / k0; not the mean ratio."""
        return self.product * self.k1 / self.k0

    def loss(self, product: float | Float[Array, "*batch"]) -> float | Float[Array, "*batch"]:
        """Return L(c).

        Args:
            product: c.

        Returns:
            The loss, summed over contexts t = 2 ... T-1 and coordinates.
        """
        parabola = self.curvature * product**2 - 2 * self.slope * product
        return self.dim / 2 * (parabola + (self.length - 2) * self.k0)

    def position_loss(
        self, t: int | Num[Array, " time"], product: float | None = None
    ) -> float | Float[Array, " time"]:
        """Return half the squared error after a context of t states.

        Args:
            t: 2 or more.
            product: c; the one training converges to if not given.

        Returns:
            dim/2 (k2 c^2 - 2 k1 c + k0 + k3 c^2 / (t-1)).
        """
        c = self.product if product is None else product
        return (
            self.dim / 2 * (self.k2 * c**2 - 2 * self.k1 * c + self.k0 + self.k3 * c**2 / (t - 1))
        )


def one_step(initial: InitialStates, *, dim: int, length: int) -> OneStep:
    """Solve the theory of one step with the moments of a distribution.

    Args:
        initial: distribution of x_1.
        dim: width of a state, 1 or more.
        length: T, 3 or more.

    Returns:
        The theory.

    Raises:
        ConfigError: a size is out of range, a moment is not finite, or the coordinates differ: then
            the solution is not a multiple of the identity, and :class:`ClosedForm` has to be trained.

    Source: Zheng et al. define k3 by sums over one index; training needs it for both.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> round(one_step(initial_states("full_one"), dim=5, length=100).product, 6)
        0.825826
    """
    check_size(dim, length)
    moments = start_moments(initial, dim)
    mixed = np.stack([moments.mixed.sum(0), moments.mixed.sum(1)])
    spread = _SAMPLED_SPREAD if isinstance(initial, SampledStates) else _SPREAD
    for name, values in (
        ("fourth moments", moments.fourth),
        ("sixth moments", moments.sixth),
        ("mixed moments", mixed),
    ):
        if np.ptp(values) > spread * np.abs(values).max():
            raise ConfigError(
                f"initial states {initial.name!r}: its {name} are {np.round(values, 4).tolist()}: "
                "must be the same in all coordinates for a single product; train ClosedForm instead"
            )
    each = {"k0": moments.second, "k1": moments.fourth, "k2": moments.sixth, "k3": mixed}
    return OneStep(dim=dim, length=length, **{name: float(m.mean()) for name, m in each.items()})


@dataclass(frozen=True)
class ClosedForm:
    """The engine of diagonal weights, V = diag(b) and K = diag(a), for any distribution of x_1.

        L = 1/2 sum_j [(T-2) (C_j |a_j b_j|^2 - 2 B_j Re(a_j b_j) + A_j)
                       + H |b_j|^2 sum_{r != j} |a_r|^2 M_jr]

    with A, B, C = E |x_j|^{2, 4, 6} and M_jr = E |x_j|^2 |x_r|^4: all cross terms vanish through the
    eigenvalues, so no symmetry of x_1 is needed. Its gradients are diagonal: those of masked training
    always, and those of plain training where x_1 kills the off-diagonal ones (:func:`sign_flip_test`).

    Args:
        moments: of x_1.
        length: T, 3 or more.

    Source: derived.

    Example:
        >>> from mesaopt.tasks import initial_states
        >>> from mesaopt.theory.ar_process import diagonal
        >>> engine = ClosedForm.of(initial_states("sparse"), dim=2, length=5)
        >>> loss, gradient = engine.loss_and_gradient(diagonal(2, key_query=1.0, output_value=1.0))
        >>> round(float(loss), 9), gradient.key_query.round(9).tolist()
        (0.0, [[0.0, 0.0], [0.0, 0.0]])
    """

    moments: StartMoments
    length: int

    @classmethod
    def of(cls, initial: InitialStates, *, dim: int, length: int) -> "ClosedForm":
        """Make the engine from the moments of a distribution.

        Args:
            initial: distribution of x_1.
            dim: width of a state, 1 or more.
            length: T, 3 or more.

        Returns:
            The engine.

        Raises:
            ConfigError: a size is out of range, or a moment is not finite.
        """
        check_size(dim, length)
        return cls(start_moments(initial, dim), length)

    @property
    def dim(self) -> int:
        """Width of a state."""
        return self.moments.dim

    def loss_and_gradient(self, weights: Weights) -> tuple[Float[Array, " *batch"], Weights]:
        """See :meth:`mesaopt.theory.ar_process.Engine.loss_and_gradient`.

        Raises:
            ValueError: the weights are not diagonal, or have another width.
        """
        if weights.dim != self.dim:
            raise ValueError(
                f"weights have dim={weights.dim}: must be {self.dim} as in the moments"
            )
        b, a = _diagonals(weights)
        moments, contexts, h = self.moments, self.length - 2, harmonic(self.length)
        across_keys = h * (np.abs(a) ** 2 @ moments.mixed.T)  # H sum_r |a_r|^2 M_jr
        across_values = h * (np.abs(b) ** 2 @ moments.mixed)
        product = a * b
        own = moments.sixth * np.abs(product) ** 2 - 2 * moments.fourth * product.real
        loss = (contexts * (own + moments.second) + np.abs(b) ** 2 * across_keys).sum(-1) / 2
        pull = contexts * (moments.sixth * product - moments.fourth)
        value = pull * a.conj() + b * across_keys
        key = pull * b.conj() + a * across_values
        gradient = Weights(_matrices(value), _matrices(key))
        return loss, gradient if weights.blocks == "core" else gradient.embedded()


def _matrices(entries: Inexact[Array, "*batch dim"]) -> Inexact[Array, "*batch dim dim"]:
    """Put entries on diagonals; all others are zero even where entries are not finite."""
    return np.where(np.eye(entries.shape[-1], dtype=bool), entries[..., None], 0.0)


def _diagonals(
    weights: Weights,
) -> tuple[Inexact[Array, "*batch dim"], Inexact[Array, "*batch dim"]]:
    """Return the diagonals of V and K after making sure that all other entries are zero."""
    blocks, matrices = (
        (weights.value_block, weights.key_block),
        (weights.output_value, weights.key_query),
    )
    v, k = (np.diagonal(block, axis1=-2, axis2=-1) for block in blocks)
    if sum(map(np.count_nonzero, matrices)) != np.count_nonzero(v) + np.count_nonzero(k):
        raise ValueError(
            "weights have entries off the diagonals of V and K: must be diagonal for the closed form; "
            "use population_loss"
        )
    return v, k


def off_diagonal_gradients(
    *, dim: int, length: int, key_query: float, output_value: float
) -> tuple[float, float]:
    """Return the gradients off the diagonals at V = b I, K = a I for x_1 = (1, ..., 1).

        dL/dV_pq = a^2 b H,   dL/dK_pq = b (a b (2 H + (dim - 2) H2) - H),   p != q,

    with H = sum_{s=1}^{T-2} 1/s and H2 = sum_{s=1}^{T-2} 1/s^2. They are never zero together, so training
    leaves the diagonal shape unless they are masked.

    Args:
        dim: width of a state, 2 or more.
        length: T, 3 or more.
        key_query: a.
        output_value: b.

    Returns:
        dL/dV_pq and dL/dK_pq.

    Raises:
        ConfigError: a size is out of range.

    Source: derived; the case that Zheng et al. treat beyond their Theorem 4.1.

    Example:
        >>> value, key = off_diagonal_gradients(dim=5, length=100, key_query=0.7, output_value=1.1)
        >>> round(value, 6), round(key, 6)
        (2.785162, 7.223343)
    """
    check_size(dim, length)
    if dim < 2:
        raise ConfigError(f"dim={dim}: must be 2 or greater: one coordinate has no off-diagonal")
    a, b, h = key_query, output_value, harmonic(length)
    h2 = math.fsum(1 / n**2 for n in range(1, length - 1))
    return a**2 * b * h, b * (a * b * (2 * h + (dim - 2) * h2) - h)
