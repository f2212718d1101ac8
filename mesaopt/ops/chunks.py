"""Time cut into chunks: what every chunk-parallel operator shares."""

from typing import NamedTuple

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


class Decay(NamedTuple):
    """How much of the past is left, for every pair of positions of a chunk; no entry exceeds 1.

    All four are exponentials of differences of running sums that are 0 or less: a gate that closes
    completely underflows to 0, and nothing overflows.
    """

    since_start: Float[Tensor, "*group chunk position 1"]
    """What position t keeps of the state at its chunk's start."""
    between: Float[Tensor, "*group chunk position source"]
    """What position t keeps of what position s wrote; 0 for s after t."""
    until_end: Float[Tensor, "*group chunk position 1"]
    """What the chunk's end keeps of what position s wrote."""
    whole: Float[Tensor, "*group chunk 1 1"]
    """What the chunk's end keeps of the state at its start."""


def decays(log_decay: Float[Tensor, "*group chunk position 1"]) -> Decay:
    """Turn the logarithms of forget gates into the decays inside every chunk.

    Args:
        log_decay: log of the forget gate at every position, 0 or less; -inf forgets all.

    Returns:
        The decays, in the precision of the input.

    Example:
        >>> half = torch.full((1, 2, 1), 0.5).log()
        >>> decays(half).between[0].tolist()
        [[1.0, 0.0], [0.5, 1.0]]
    """
    # Differences of large sums would lose the small gates behind one that closed; -1000 is exp's zero.
    running = log_decay.double().clamp(min=-1000.0).cumsum(-2)  # [*G,N,C,1]
    later = torch.ones(running.shape[-2], running.shape[-2], device=running.device).triu(1).bool()
    between = (running - running.mT).masked_fill(later, -torch.inf)
    until_end = running[..., -1:, :] - running
    logs = (running, between, until_end, running[..., -1:, :])
    return Decay(*(x.to(log_decay.dtype).exp() for x in logs))


def carry(
    written: Float[Tensor, "*group chunk row column"],
    initial: Float[Tensor, "*group row column"] | None = None,
    whole: Float[Tensor, "*group chunk 1 1"] | None = None,
) -> tuple[Float[Tensor, "*group chunk row column"], Float[Tensor, "*group row column"]]:
    """Carry a state from chunk to chunk: S_{n+1} = whole_n S_n + written_n.

    Args:
        written: what every chunk adds.
        initial: the state before the first chunk; zero if not given.
        whole: what every chunk keeps of the state at its start; all of it if not given.

    Returns:
        The state at the start of every chunk, and the state at the end of the last one.

    Example:
        >>> starts, end = carry(torch.ones(3, 1, 1), whole=torch.full((3, 1, 1), 0.5))
        >>> starts.flatten().tolist(), end.item()
        ([0.0, 1.0, 1.5], 1.75)
    """
    first = torch.zeros_like(written[..., 0, :, :]) if initial is None else initial
    if whole is None and initial is None and written.shape[-3] == 1:
        return first.unsqueeze(-3), written[..., 0, :, :]
    if whole is None:
        states = torch.cat([first.unsqueeze(-3), written], dim=-3).cumsum(-3)
        return states[..., :-1, :, :], states[..., -1, :, :]
    starts = [first]
    for kept, added in zip(whole.unbind(-3), written.unbind(-3), strict=True):
        starts.append(torch.addcmul(added, starts[-1], kept))
    end = starts.pop()
    return torch.stack(starts, dim=-3), end


def weigh_past(
    scores: Float[Tensor, "*group chunk position source"],
    between: Float[Tensor, "*group chunk position source"] | None,
) -> Float[Tensor, "*group chunk position source"]:
    """Keep of the scores what lies in the past, weighted by the decays if there are any.

    The scores may be overwritten.

    Args:
        scores: one number for every position and source.
        between: decays as in :class:`Decay`; none means that nothing is forgotten.

    Returns:
        The scores, zero where the source comes after the position.

    Example:
        >>> weigh_past(torch.ones(1, 2, 2), None)[0].tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    if between is None:
        # Faster than tril, which is not vectorised over a batch, and much so in its gradient.
        return scores.mul_(causal(scores))
    return scores * between


def causal(
    scores: Float[Tensor, "*group position source"],
) -> Float[Tensor, "position source"]:
    """One where the source does not come after the position, or else zero.

    Args:
        scores: what the mask is for.

    Returns:
        The mask.

    Example:
        >>> causal(torch.zeros(5, 2, 2)).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    return torch.ones(scores.shape[-2:], dtype=scores.dtype, device=scores.device).tril_()
