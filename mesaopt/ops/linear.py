"""Linear attention, chunk by chunk."""

from jaxtyping import Float
from torch import Tensor

from mesaopt.ops import chunks


def linear_attention(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    chunk_size: int = 64,
) -> Float[Tensor, "batch time head value"]:
    """Causal linear attention, o_t = sum_{s <= t} v_s (k_s . q_t): no scaling, diagonal included.

    Time and memory grow linearly with the sequence: inside a chunk the products of queries and keys
    are formed, across chunks only their summed state.

    Args:
        q: queries [batch, time, head, key], any floating-point type.
        k: keys, the same shape.
        v: values [batch, time, head, value].
        chunk_size: positions processed in parallel, 1 or more; it changes rounding only.

    Returns:
        Outputs [batch, time, head, value].

    Raises:
        ValueError: the shapes do not fit together.

    Source: von Oswald et al., section "Linear self-attention".

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1, 1)
        >>> linear_attention(one, one, one, chunk_size=2).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    check_shapes(q, k, v, chunk_size)
    out = chunks.attend_back(*(chunks.split(x, chunk_size) for x in (q, k, v)))
    return chunks.join(out, q.shape[1])


def check_shapes(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> None:
    """Refuse queries, keys and values that do not belong together.

    Args:
        q: queries, wanted [batch, time, head, key].
        k: keys, wanted the shape of q.
        v: values, wanted [batch, time, head, value] with the first three as in q.
        chunk_size: wanted 1 or more.

    Raises:
        ValueError: naming the argument, what it is and what it should be.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, 5, 1, 3)
        >>> check_shapes(x, x[:, :4], x, 64)
        Traceback (most recent call last):
        ...
        ValueError: k has shape (2, 4, 1, 3): must be (2, 5, 1, 3), as q
    """
    shape = tuple(q.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"q has shape {shape}: must be [batch, time, head, key], none of them 0")
    if tuple(k.shape) != shape:
        raise ValueError(f"k has shape {tuple(k.shape)}: must be {shape}, as q")
    if v.dim() != 4 or tuple(v.shape[:3]) != shape[:3]:
        wanted = ", ".join(map(str, shape[:3]))
        raise ValueError(f"v has shape {tuple(v.shape)}: must be ({wanted}, value)")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be 1 or greater")
