"""Constructions: weights set by hand that make a sequence model run a known algorithm."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.config import TokenSlot, require_count
from mesaopt.theory.context import check_initial_map


def proposition_1(
    dim: int,
    *,
    step_size: float,
    initial_map: Float[Tensor, "dim dim"] | None = None,
    num_slots: int = 4,
    current_slot: int = 2,
    num_heads: int = 1,
    head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return weights of one linear self-attention layer that takes one step of gradient descent.

    On tokens with Phi_0 s_t in slot 0, s_t in slot `current_slot` and s_{t-1} in the slot behind it,

        W_k^T W_q copies the query's current state against the key's previous state,
        P W_v writes step_size * (s_t - Phi_0 s_{t-1}) of the value into slot 0,

    so that slot 0 becomes (Phi_0 - step_size * grad L_t(Phi_0)) s_t for all t at once: the prediction
    of :func:`mesaopt.theory.gradient_descent` with one step.

    Args:
        dim: width of a state and of a slot.
        step_size: of gradient descent, > 0.
        initial_map: Phi_0 [dim, dim]; zero if not given, and slot 0 of the tokens is then zero.
        num_slots: slots of a token, 3 or more: 4 for [0, s_t, s_t, s_{t-1}], 3 for
            [Phi_0 s_t, s_t, s_{t-1}].
        current_slot: slot of s_t, 1 to num_slots - 2; s_{t-1} is in the next one.
        num_heads: heads of the layer; the first one does the work, the others are zero.
        head_dim: width of a head, `dim` or more; `dim` if not given.
        dtype: of the weights.

    Returns:
        A state dictionary for :meth:`mesaopt.models.SequenceModel.load_state_dict` of one layer.

    Raises:
        ValueError: a size does not fit, or step_size is out of range.

    Source: von Oswald et al., Proposition 1.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> model = SequenceModel(ModelConfig(num_heads=2))
        >>> weights = proposition_1(10, step_size=0.03, num_heads=2, head_dim=20)
        >>> model.load_state_dict(weights)
        <All keys matched successfully>
    """
    require_count("num_slots", num_slots, smallest=3)
    require_count("current_slot", current_slot, smallest=1, largest=num_slots - 2)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size}: must be greater than 0 and finite")
    check_initial_map(initial_map, dim, dim)
    phi = torch.zeros(dim, dim) if initial_map is None else initial_map
    slots = _Slots(dim, num_slots, num_heads, head_dim, dtype)
    return slots.layer(
        0,
        query={current_slot: 1.0},
        key=current_slot + 1,
        value={current_slot: torch.eye(dim), current_slot + 1: -phi},
        output=0,
        scale=step_size,
    )


def proposition_2(
    dim: int,
    *,
    coefficients: Sequence[float],
    num_heads: int = 1,
    head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return weights of K + 1 linear self-attention layers that take a preconditioned gradient step.

    The preconditioner is a polynomial in the Gram matrix. On tokens with the slots of
    :func:`proposition_2_slots`, [prediction, s_t, s_{t-1}, u^1, ..., u^K], the first and the last K of them
    empty, and with u^0 = s_t and H_t = sum_{s < t} s_s s_s^T,

        layer k = 1 ... K writes u^k_t = H_t u^{k-1}_t: query u^{k-1}, key and value the previous state;
        the last one writes sum_{s < t} s_{s+1} s_s^T (c_0 u^0_t + ... + c_K u^K_t) into slot 0,

    the prediction of :func:`mesaopt.theory.polynomial_prediction`. Any ridge and step sizes go into the
    coefficients: :meth:`mesaopt.theory.ApproximateInverse.coefficients`.

    Args:
        dim: width of a state and of a slot.
        coefficients: c_0 ... c_K of the polynomial in H_t, 1 or more of them; K + 1 layers.
        num_heads: heads of every layer; the first one does the work, the others are zero.
        head_dim: width of a head, `dim` or more; `dim` if not given.
        dtype: of the weights. Slots grow like |H|^K: from K = 4 on double precision is worth it.

    Returns:
        A state dictionary for :meth:`mesaopt.models.SequenceModel.load_state_dict` of K + 1 layers, whose
        `activation_clip` should be None.

    Raises:
        ValueError: a size does not fit, or there are no coefficients or some are not finite.

    Source: von Oswald et al., Proposition 2. Its matrices add scaled copies of slots to each other, which
    linear attention alone cannot do, and write -alpha twice; this layout needs neither.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> slots = proposition_2_slots(degree=1)
        >>> config = ModelConfig(
        ...     mixers=("linear_attention",) * 2,
        ...     token_dim=len(slots) * 10,
        ...     num_heads=1,
        ...     head_dim=10,
        ...     activation_clip=None,
        ... )
        >>> weights = proposition_2(10, coefficients=[0.05, -0.0005])
        >>> SequenceModel(config).load_state_dict(weights)
        <All keys matched successfully>
    """
    if len(coefficients) == 0 or not all(map(math.isfinite, coefficients)):
        raise ValueError(f"coefficients={coefficients}: must be 1 or more finite numbers")
    degree = len(coefficients) - 1
    powers = [1, *range(3, 3 + degree)]  # the slots of u^0 ... u^K
    slots = _Slots(dim, 3 + degree, num_heads, head_dim, dtype)
    identity = torch.eye(dim)
    weights: dict[str, Tensor] = {}
    for index, (query, output) in enumerate(itertools.pairwise(powers)):
        weights |= slots.layer(
            index, query={query: 1.0}, key=2, value={2: identity}, output=output, scale=1.0
        )
    query = dict(zip(powers, coefficients, strict=True))
    return weights | slots.layer(
        degree, query=query, key=2, value={1: identity}, output=0, scale=1.0
    )


def proposition_2_slots(degree: int) -> tuple[TokenSlot, ...]:
    """Return the token layout that :func:`proposition_2` needs.

    Args:
        degree: K, 0 or greater: one less than there are coefficients.

    Returns:
        [0, s_t, s_{t-1}, and K times 0], for `token_slots` of a task.

    Raises:
        ValueError: degree is negative.

    Example:
        >>> proposition_2_slots(degree=2)
        ('zero', 'current', 'previous', 'zero', 'zero')
    """
    if degree < 0:
        raise ValueError(f"degree={degree}: must be 0 or greater")
    return ("zero", "current", "previous", *("zero",) * degree)


class _Slots:
    """Writes the weights of linear attention layers slot by slot, into the first head."""

    def __init__(
        self, dim: int, num_slots: int, num_heads: int, head_dim: int | None, dtype: torch.dtype
    ):
        require_count("dim", dim, smallest=1)
        require_count("num_heads", num_heads, smallest=1)
        head_dim = dim if head_dim is None else head_dim
        if head_dim < dim:
            raise ValueError(f"head_dim={head_dim}: must be {dim} or greater, the width of a state")
        self.dim, self.dtype = dim, dtype
        self.width, self.inner = num_slots * dim, num_heads * head_dim

    def layer(
        self,
        index: int,
        *,
        query: dict[int, float],
        key: int,
        value: dict[int, Tensor],
        output: int,
        scale: float,
    ) -> dict[str, Tensor]:
        """Return weights that read the given combinations of slots and write into one slot."""
        head = slice(0, self.dim)
        names = ("query", "key", "value")
        weights = {name: self._zeros(self.inner, self.width) for name in names}
        weights["output"] = self._zeros(self.width, self.inner)
        identity = torch.eye(self.dim, dtype=self.dtype)
        for slot, factor in query.items():
            weights["query"][head, self._slot(slot)] = factor * identity
        weights["key"][head, self._slot(key)] = identity
        for slot, matrix in value.items():
            weights["value"][head, self._slot(slot)] = matrix.to(self.dtype)
        weights["output"][self._slot(output), head] = scale * identity
        return {f"blocks.{index}.mixer.{name}.weight": weight for name, weight in weights.items()}

    def _slot(self, slot: int) -> slice:
        return slice(slot * self.dim, (slot + 1) * self.dim)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype)
