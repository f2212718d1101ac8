"""The in-context regression problem: pairs of an input and the state that came next."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.nn.functional import pad

from mesaopt.ops import linear_attention

Pairs = Literal["all", "official"]
"""The pairs that an algorithm learns from: all, or all but the newest, as in the authors' code."""

_DELAYS: dict[Pairs, int] = {"all": 1, "official": 2}


@dataclass(frozen=True)
class Context:
    """The in-context regression problem at every position. Made by :func:`context_of`.

    At position t the pairs (inputs_s, targets_s) of s = 1 ... t are known, of which the first
    `delay` are empty. Their sums are the Gram matrix H_t = sum_s inputs_s inputs_s^* and the cross
    matrix G_t = sum_s targets_s inputs_s^*. Products with them are linear attention, so that no
    matrix of a position is ever formed.

    Example:
        >>> context = context_of(torch.tensor([[[1.0], [2.0], [3.0]]]))
        >>> context.gram_product(context.queries).flatten().tolist()  # H = 0, 1, 5
        [0.0, 2.0, 15.0]
    """

    queries: Inexact[Tensor, "batch time input"]
    """The newest input, which the prediction starts from."""
    inputs: Inexact[Tensor, "batch time input"]
    """Input of the pair that is complete since position t; zero where there is none."""
    targets: Inexact[Tensor, "batch time dim"]
    """The state that followed it."""
    delay: int
    """Number of positions from an input to the first one that can use its pair."""

    def gram_product(
        self, vectors: Inexact[Tensor, "batch time input"]
    ) -> Inexact[Tensor, "batch time input"]:
        """Multiply a vector of every position by the Gram matrix of that position.

        Args:
            vectors: [batch, time, input].

        Returns:
            H_t u_t, [batch, time, input].
        """
        return self._attend(vectors, self.inputs)

    def cross_product(
        self, vectors: Inexact[Tensor, "batch time input"]
    ) -> Inexact[Tensor, "batch time dim"]:
        """Multiply a vector of every position by the cross matrix of that position.

        Args:
            vectors: [batch, time, input].

        Returns:
            G_t u_t, [batch, time, dim].
        """
        return self._attend(vectors, self.targets)

    def frobenius_norm(self, ridge: float = 0.0) -> Float[Tensor, "batch time 1"]:
        """Return the Frobenius norm of H_t + ridge I.

        |H_t|^2 grows by 2 x^* H_t x - |x|^4 with every input x, the trace by |x|^2.

        Args:
            ridge: 0 or greater.

        Returns:
            [batch, time, 1].
        """
        squares = self.inputs.abs().square().sum(-1, keepdim=True)
        seen = (self.inputs.conj() * self.gram_product(self.inputs)).sum(-1, keepdim=True).real
        gram = (2 * seen - squares.square()).cumsum(1)
        size = self.inputs.shape[-1]
        return (gram + 2 * ridge * squares.cumsum(1) + ridge**2 * size).sqrt()

    def statistics(
        self,
    ) -> tuple[Inexact[Tensor, "batch time input input"], Inexact[Tensor, "batch time dim input"]]:
        """Return the matrices themselves, for all positions.

        Returns:
            H [batch, time, input, input] and G [batch, time, dim, input].
        """
        conjugates = self.inputs.conj()
        gram = torch.einsum("btd,bte->btde", self.inputs, conjugates).cumsum(1)
        cross = torch.einsum("btd,bte->btde", self.targets, conjugates).cumsum(1)
        return gram, cross

    def double(self) -> "Context":
        """Return the same problem in double precision.

        Returns:
            With float64 or complex128 in place of other types.
        """
        names = ("queries", "inputs", "targets")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: as_double(x) for name, x in tensors.items()})

    @property
    def num_pairs(self) -> Float[Tensor, "time 1"]:
        """Pairs known at every position."""
        length, device = self.queries.shape[1], self.queries.device
        return (torch.arange(1.0, length + 1, device=device) - self.delay).clamp(min=0)[:, None]

    def _attend(self, vectors: Tensor, values: Tensor) -> Tensor:
        query, key, value = (
            x.unsqueeze(2) for x in (vectors, self.inputs.conj(), values)
        )  # one head, [B,T,1,D]
        return linear_attention(query, key, value).output.squeeze(2)


def context_of(
    states: Inexact[Tensor, "batch time dim"],
    *,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Context:
    """Set up the regression from inputs to next states, at every position at once.

    Args:
        states: s_1 ... s_T [batch, time, dim], real or complex.
        inputs: x_1 ... x_T [batch, time, input] of the same type; the pairs are then (x_s, s_{s+1}) and
            the query is x_t. The states themselves if not given.
        pairs: "all" pairs up to the one whose target is s_t; or "official", which leaves this newest
            pair out, as the authors' solvers do by an off-by-one.

    Returns:
        The context.

    Raises:
        ValueError: states are no floating-point or complex numbers [batch, time, dim], inputs do not fit
            them, or pairs is not one of the two.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> context_of(states).inputs.flatten().tolist()
        [0.0, 1.0, 2.0]
        >>> context_of(states, pairs="official").inputs.flatten().tolist()
        [0.0, 0.0, 1.0]
    """
    if pairs not in _DELAYS:
        raise ValueError(f"pairs={pairs!r}: must be 'all' or 'official'")
    if states.dim() != 3 or not (states.is_floating_point() or states.is_complex()):
        given = f"states has shape {tuple(states.shape)}, {states.dtype}"
        raise ValueError(f"{given}: must be [batch, time, dim], floating-point or complex")
    queries = states if inputs is None else inputs
    if queries.shape[:-1] != states.shape[:-1] or queries.dtype != states.dtype:
        wanted = f"[{states.shape[0]}, {states.shape[1]}, input] of {states.dtype}, as the states"
        given = f"inputs has shape {tuple(queries.shape)}, {queries.dtype}"
        raise ValueError(f"{given}: must be {wanted}")
    delay = _DELAYS[pairs]
    return Context(queries, delayed(queries, delay), delayed(states, delay - 1), delay)


def context_statistics(
    states: Inexact[Tensor, "batch time dim"],
    *,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> tuple[Inexact[Tensor, "batch time input input"], Inexact[Tensor, "batch time dim input"]]:
    """Sum up the pairs known at every position.

    H_t = sum_{s < t} x_s x_s^* and G_t = sum_{s < t} s_{s+1} x_s^*, for states s_1 ... s_T.

    Args:
        states: [batch, time, dim].
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all", or "official" without the newest one; see :func:`context_of`.

    Returns:
        The Gram matrices H [batch, time, input, input] and the cross matrices G
        [batch, time, dim, input]; zero at position 1, where no pair is known yet.

    Raises:
        ValueError: see :func:`context_of`.

    Example:
        >>> gram, cross = context_statistics(torch.tensor([[[1.0], [2.0], [3.0]]]))
        >>> gram.flatten().tolist(), cross.flatten().tolist()
        ([0.0, 1.0, 5.0], [0.0, 2.0, 8.0])
    """
    return context_of(states, inputs=inputs, pairs=pairs).statistics()


def as_double(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """Give a tensor in double precision, real or complex as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float64))


def check_initial_map(initial_map: Tensor | None, *shape: int) -> None:
    """Refuse a first map of another shape, which would be repeated to that shape without a word."""
    if initial_map is not None and initial_map.shape != shape:
        raise ValueError(f"initial_map has shape {tuple(initial_map.shape)}: must be {shape}")


def delayed(
    x: Inexact[Tensor, "batch time channel"], steps: int
) -> Inexact[Tensor, "batch time channel"]:
    """Move a sequence towards later positions, with zeros in front.

    Args:
        x: [batch, time, channel].
        steps: 0 or greater.

    Returns:
        x_{t - steps}, zero before the first, in the shape of x.

    Example:
        >>> delayed(torch.tensor([[[1.0], [2.0], [3.0]]]), 1).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    return pad(x, (0, 0, steps, 0))[:, : x.shape[1]]
