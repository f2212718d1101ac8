"""State of the mesa operator: all that it remembers of the past."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class MesaState(NamedTuple):
    """Statistics of the past: constant in size, however long the past.

    Example:
        >>> from mesaopt.ops import mesa
        >>> one = torch.ones(1, 3, 1, 1)
        >>> mesa(one, one, one, ridge=1.0).state.gram.item()
        3.0
    """

    gram: Float[Tensor, "batch head key key"]
    """H_t = sum_s (decay from s to t) beta_s k_s k_s^T, without the ridge."""
    cross: Float[Tensor, "batch head value key"]
    """G_t = sum_s (decay from s to t) beta_s v_s k_s^T."""
    log_decay: Float[Tensor, "batch head"]
    """Sum of all log_decay so far, which a decayed ridge needs."""

    @classmethod
    def empty(
        cls, batch: int, heads: int, key: int, value: int, *, like: Tensor | None = None
    ) -> "MesaState":
        """Return the state of an empty past.

        Args:
            batch: number of sequences.
            heads: number of heads.
            key: width of a key.
            value: width of a value.
            like: a tensor whose device is used, and whose type if that is float64; otherwise the state
                is float32.

        Returns:
            Zeros.

        Example:
            >>> MesaState.empty(2, 3, 4, 5).cross.shape
            torch.Size([2, 3, 5, 4])
        """
        like = torch.zeros(()) if like is None else like
        dtype = torch.promote_types(like.dtype, torch.float32)
        sizes = ((key, key), (value, key), ())
        return cls(*(torch.zeros(batch, heads, *s, dtype=dtype, device=like.device) for s in sizes))
