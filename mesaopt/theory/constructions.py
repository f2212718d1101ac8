"""Weights set by hand, which make a sequence model run a known algorithm."""

import torch
from jaxtyping import Float
from torch import Tensor


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
    """Weights of one linear self-attention layer that takes one step of gradient descent.

    On tokens with Phi_0 s_t in slot 0, s_t in slot `current_slot` and s_{t-1} in the slot behind it,

        W_k^T W_q copies the query's current state against the key's previous state,
        P W_v writes step_size * (s_t - Phi_0 s_{t-1}) of the value into slot 0,

    so that slot 0 becomes (Phi_0 - step_size * grad L_t(Phi_0)) s_t for all t at once: the prediction
    of :func:`mesaopt.theory.gradient_descent` with one step.

    Args:
        dim: width of a state and of a slot.
        step_size: of gradient descent, > 0.
        initial_map: Phi_0 [dim, dim]; zero if not given, and slot 0 of the tokens is then zero.
        num_slots: slots of a token: 4 for [0, s_t, s_t, s_{t-1}], 3 for [Phi_0 s_t, s_t, s_{t-1}].
        current_slot: where s_t stands, 1 to num_slots - 2; s_{t-1} stands behind it.
        num_heads: heads of the layer; the first one does the work, the others are zero.
        head_dim: width of a head, `dim` or more; `dim` if not given.
        dtype: of the weights.

    Returns:
        A state dictionary for :meth:`mesaopt.models.SequenceModel.load_state_dict` of one layer.

    Raises:
        ValueError: a size does not fit.

    Source: von Oswald et al., Proposition 1.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> model = SequenceModel(ModelConfig(num_heads=2))
        >>> weights = proposition_1(10, step_size=0.03, num_heads=2, head_dim=20)
        >>> model.load_state_dict(weights)
        <All keys matched successfully>
    """
    head_dim = dim if head_dim is None else head_dim
    if head_dim < dim:
        raise ValueError(f"head_dim={head_dim}: must be {dim} or greater, the width of a state")
    if not 1 <= current_slot <= num_slots - 2:
        raise ValueError(f"current_slot={current_slot}: must be between 1 and {num_slots - 2}")
    phi = torch.zeros(dim, dim) if initial_map is None else initial_map
    identity = torch.eye(dim, dtype=dtype)
    head = slice(0, dim)
    prediction, current, previous = (
        slice(slot * dim, (slot + 1) * dim) for slot in (0, current_slot, current_slot + 1)
    )
    query, key, value = (
        torch.zeros(num_heads * head_dim, num_slots * dim, dtype=dtype) for _ in range(3)
    )
    output = torch.zeros(num_slots * dim, num_heads * head_dim, dtype=dtype)
    query[head, current] = identity
    key[head, previous] = identity
    value[head, current] = identity
    value[head, previous] = -phi.to(dtype)
    output[prediction, head] = step_size * identity
    weights = {"query": query, "key": key, "value": value, "output": output}
    return {f"mixers.0.{name}.weight": weight for name, weight in weights.items()}
