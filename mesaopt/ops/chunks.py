"""Time cut into chunks: what every chunk-parallel operator shares."""

import torch
from jaxtyping import Float
from torch import Tensor


def split(
    x: Float[Tensor, "batch time head dim"], chunk_size: int
) -> Float[Tensor, "batch head chunk position dim"]:
    """Cut time into chunks of `chunk_size` positions, the last one filled up with zeros.

    Args:
        x: [batch, time, head, dim].
        chunk_size: positions in a chunk, 1 or more; a shorter sequence makes one short chunk.

    Returns:
        [batch, head, chunk, position, dim], contiguous.

    Example:
        >>> tuple(split(torch.zeros(2, 10, 3, 4), 4).shape)
        (2, 3, 3, 4, 4)
    """
    length = x.shape[1]
    size = min(chunk_size, length)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, -length % size))
    return padded.unflatten(2, (-1, size)).contiguous()


def join(
    x: Float[Tensor, "batch head chunk position dim"], length: int
) -> Float[Tensor, "batch time head dim"]:
    """Undo :func:`split`.

    Args:
        x: [batch, head, chunk, position, dim].
        length: positions to keep.

    Returns:
        [batch, length, head, dim], a view.

    Example:
        >>> x = torch.randn(2, 10, 3, 4)
        >>> bool((join(split(x, 4), 10) == x).all())
        True
    """
    return x.flatten(2, 3)[:, :, :length].transpose(1, 2)


def sum_before(
    x: Float[Tensor, "*group chunk row column"],
) -> Float[Tensor, "*group chunk row column"]:
    """Sum over all earlier chunks (an exclusive cumulative sum, without the cancellation of x - x).

    Args:
        x: one matrix per chunk.

    Returns:
        The same shape; zero for the first chunk.

    Example:
        >>> sum_before(torch.ones(3, 1, 1)).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    return torch.nn.functional.pad(x[..., :-1, :, :].cumsum(-3), (0, 0, 0, 0, 1, 0))


def sum_after(
    x: Float[Tensor, "*group chunk row column"],
) -> Float[Tensor, "*group chunk row column"]:
    """Sum over all later chunks.

    Args:
        x: one matrix per chunk.

    Returns:
        The same shape; zero for the last chunk.

    Example:
        >>> sum_after(torch.ones(3, 1, 1)).flatten().tolist()
        [2.0, 1.0, 0.0]
    """
    return sum_before(x.flip(-3)).flip(-3)


def attend_back(
    q: Float[Tensor, "*group chunk position key"],
    k: Float[Tensor, "*group chunk position key"],
    v: Float[Tensor, "*group chunk position value"],
) -> Float[Tensor, "*group chunk position value"]:
    """Causal linear attention on chunks: out_t = sum_{s <= t} (q_t . k_s) v_s.

    Args:
        q: queries.
        k: keys.
        v: values.

    Returns:
        One output per query.

    Example:
        >>> one = torch.ones(2, 3, 1)  # two chunks of three positions
        >>> attend_back(one, one, one).flatten().tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    out = (q @ k.mT).tril_() @ v
    return out if q.shape[-3] == 1 else out + q @ sum_before(k.mT @ v)


def attend_ahead(
    q: Float[Tensor, "*group chunk position key"],
    k: Float[Tensor, "*group chunk position key"],
    v: Float[Tensor, "*group chunk position value"],
) -> Float[Tensor, "*group chunk position value"]:
    """Linear attention to the present and the future: out_t = sum_{s >= t} (q_t . k_s) v_s.

    The transpose of :func:`attend_back`, which backward passes need.

    Args:
        q: queries.
        k: keys.
        v: values.

    Returns:
        One output per query.

    Example:
        >>> one = torch.ones(2, 3, 1)
        >>> attend_ahead(one, one, one).flatten().tolist()
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    """
    out = (q @ k.mT).triu_() @ v
    return out if q.shape[-3] == 1 else out + q @ sum_after(k.mT @ v)
