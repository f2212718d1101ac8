"""Arithmetic of time cut into chunks, shared by all chunk-parallel operators."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.ops.validation import differentiated, in_graph, refuse_nested_forward_mode


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
    x = x.transpose(1, 2)
    if length <= chunk_size:
        return x.unsqueeze(2).contiguous()
    count = count_chunks(length, chunk_size)
    missing = count * chunk_size - length
    if torch.compiler.is_compiling():  # for any length; with nothing missing, pad() keeps strides
        x = torch.nn.functional.pad(x.contiguous(), (0, 0, 0, missing))
    elif missing:  # pad() copies even without anything to fill up
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (count, chunk_size)).contiguous()


def count_chunks(length: int, chunk_size: int) -> int:
    """Return the number of chunks that a sequence fills, the last one perhaps in part."""
    return (length + chunk_size - 1) // chunk_size


def join(
    x: Float[Tensor, "batch head chunk position dim"], length: int
) -> Float[Tensor, "batch time head dim"]:
    """Undo :func:`split`.

    Args:
        x: [batch, head, chunk, position, dim].
        length: positions to keep.

    Returns:
        [batch, length, head, dim], a view where nothing is compiled.

    Example:
        >>> x = torch.randn(2, 10, 3, 4)
        >>> bool((join(split(x, 4), 10) == x).all())
        True
    """
    several = x.shape[2] > 1
    x = x.flatten(2, 3)
    if torch.compiler.is_compiling() and several:
        # Of a slice, the strides would tell lengths that fill their chunks from others.
        x = x.index_select(2, torch.arange(length, device=x.device))
    return x[:, :, :length].transpose(1, 2)


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
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 1, -1)).cumsum(-3)


def weigh_past(
    scores: Float[Tensor, "*group chunk position source"],
    between: Float[Tensor, "*group chunk position source"] | None,
) -> Float[Tensor, "*group chunk position source"]:
    """Set scores of the future to zero, and weight those of the past by the decays if there are any.

    The scores may be overwritten.

    Args:
        scores: one number for every position and source.
        between: decays as in :class:`Decays`; none means that nothing is forgotten.

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
        scores: the scores that the mask is for.

    Returns:
        The mask.

    Example:
        >>> causal(torch.zeros(5, 2, 2)).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    return torch.ones(scores.shape[-2:], dtype=scores.dtype, device=scores.device).tril_()


def causal_scores(
    q: Float[Tensor, "*group position key"], k: Float[Tensor, "*group position key"]
) -> Float[Tensor, "*group position position"]:
    """Products q_t . k_s of a chunk, zero for s > t.

    Args:
        q: queries.
        k: keys.

    Returns:
        Indexed [t, s].

    Example:
        >>> causal_scores(torch.ones(2, 1), torch.ones(2, 1))
        tensor([[1., 0.],
                [1., 1.]])
    """
    return weigh_past(q @ k.mT, None)


def decay_between(
    log_decay: Float[Tensor, "*group position"],
) -> Float[Tensor, "*group position position"]:
    """Return the share of a write at s that is left at t: exp(sum of log_decay over s < r <= t).

    The exponents are sums of the gates between the two positions alone, not differences of running sums:
    no exponent is positive, and a strong gate does no harm to the digits of those after it.

    Args:
        log_decay: one number per position, 0 or less; minus infinity forgets everything.

    Returns:
        Indexed [t, s]: 1 on the diagonal, 0 above it.

    Example:
        >>> decay_between(torch.tensor([-100.0, -1.0, 0.0]))
        tensor([[1.0000, 0.0000, 0.0000],
                [0.3679, 1.0000, 0.0000],
                [0.3679, 1.0000, 1.0000]])
    """
    if not differentiated(log_decay):
        return _DecayBetween.forward(log_decay)
    if torch.compiler.is_compiling():
        function = _DecayBetween
    else:
        refuse_nested_forward_mode()
        function = _DualDecayBetween
    decay: Tensor = function.apply(log_decay)
    return decay


class _DecayBetween(torch.autograd.Function):
    """D[t, s] = exp(sum_{s < r <= t} l_r), with a gradient in few passes over memory.

    With E the product of D and its gradient, entry by entry: dl_r = sum_{s < r <= t} E[t, s], a running
    sum along s, then a sum over t. Like the exponents it takes no differences of sums.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_decay: Tensor) -> Tensor:
        size = log_decay.shape[-1]
        causal = torch.ones(size, size, dtype=log_decay.dtype, device=log_decay.device).tril_()
        # exp(-1e4) is zero in every type, and other than minus infinity it can be masked by a product.
        gates = log_decay.clamp(min=-1e4).unsqueeze(-1) * causal.tril(-1)
        return gates.cumsum(-2).exp_().mul_(causal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        earlier = (grads[0] * decay).cumsum(-1)[..., 1:, :-1]  # [t, r]: sum over s < r
        return torch.nn.functional.pad(earlier.tril().sum(-2), (1, 0))


class _DualDecayBetween(_DecayBetween):
    """The same with forward mode, which compilation cannot follow."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        # No decay is left where a gate is minus infinity, whatever its slope.
        between = tangents[0].unsqueeze(-1) * torch.ones_like(decay).tril(-1)
        return decay * between.cumsum(-2)


class Decays(NamedTuple):
    """Shares of the past that are left at the positions of a chunk, each between 0 and 1.

    Example:
        >>> decays(torch.zeros(2, 3)).total.shape
        torch.Size([2, 1, 1])
    """

    between: Float[Tensor, "*group position position"]
    """Of a write at s, at t; see :func:`decay_between`."""
    from_start: Float[Tensor, "*group position 1"]
    """Of the chunk's initial state, at t."""
    to_end: Float[Tensor, "*group position 1"]
    """Of a write at s, at the chunk's end."""
    total: Float[Tensor, "*group 1 1"]
    """Of the chunk's initial state, at its end."""


def decays(log_decay: Float[Tensor, "*group position"]) -> Decays:
    """Turn the gates of chunks into the decays that chunkwise operators need.

    Args:
        log_decay: one number per position, 0 or less.

    Returns:
        The decays.

    Example:
        >>> decays(torch.tensor([-1.0, 0.0])).to_end.flatten()
        tensor([1., 1.])
    """
    between = decay_between(log_decay)
    from_start = log_decay.cumsum(-1).exp().unsqueeze(-1)
    return Decays(between, from_start, between[..., -1, :].unsqueeze(-1), from_start[..., -1:, :])


def sum_states(
    initial: Float[Tensor, "batch head value key"] | None,
    increments: Float[Tensor, "batch head chunk value key"],
) -> tuple[Float[Tensor, "batch head chunk value key"], Float[Tensor, "batch head value key"]]:
    """Add up the chunks' contributions to a state.

    Args:
        initial: the state before the first chunk, zero if None.
        increments: what each chunk adds.

    Returns:
        The state before each chunk, and the state after the last one.

    Example:
        >>> starts, last = sum_states(None, torch.ones(1, 1, 3, 1, 1))
        >>> starts.flatten().tolist(), last.item()
        ([0.0, 1.0, 2.0], 3.0)
    """
    starts = sum_before(increments)
    if initial is not None:
        starts = starts + initial.unsqueeze(2)
    return starts, starts[:, :, -1] + increments[:, :, -1]


def chain_states(
    initial: Float[Tensor, "batch head value key"] | None,
    increments: Float[Tensor, "batch head chunk value key"],
    transitions: Float[Tensor, "batch head chunk #key #key"],
) -> tuple[Float[Tensor, "batch head chunk value key"], Float[Tensor, "batch head value key"]]:
    """Run a state through the chunks: S_next = S A + U.

    Args:
        initial: the state before the first chunk, zero if None.
        increments: U of each chunk.
        transitions: A of each chunk, a matrix, or [.., 1, 1] for a multiple of the identity.

    Returns:
        The state before each chunk, and the state after the last one.

    Example:
        >>> one = torch.ones(1, 1, 3, 1, 1)
        >>> starts, last = chain_states(None, one, 0.5 * one)
        >>> starts.flatten().tolist(), last.item()
        ([0.0, 1.0, 1.5], 1.75)
    """
    if initial is None:
        initial = torch.zeros_like(increments[:, :, 0])
    if in_graph():
        return _chain_operation(initial, increments, transitions)
    return _chain(initial, increments, transitions)


def _chain(initial: Tensor, increments: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
    # One number per chunk also multiplies a matrix of one column rightly.
    scalar, state = transitions.shape[-1] == 1, initial
    starts = []
    # unbind() and stack(), since indexing in a loop would make the backward pass quadratic.
    for increment, transition in zip(increments.unbind(-3), transitions.unbind(-3), strict=True):
        starts.append(state)
        state = increment + (state * transition if scalar else state @ transition)
    return torch.stack(starts, dim=-3), state


@torch.library.custom_op("mesaopt::chain_states", mutates_args=())
def _chain_operation(
    initial: Tensor, increments: Tensor, transitions: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the same as one operation of a compiled graph, which would have one step for every chunk."""
    return _chain(initial, increments, transitions)


@_chain_operation.register_fake
def _chain_shapes(
    initial: Tensor, increments: Tensor, transitions: Tensor
) -> tuple[Tensor, Tensor]:
    return increments.new_empty(increments.shape), initial.new_empty(initial.shape)


def _save_chain(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], inputs[2])


def _pull_back_chain(ctx: Any, d_starts: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients: those of the states are a chain too, from the last chunk to the first."""
    starts, transitions = ctx.saved_tensors
    backward = (x.flip(-3) for x in (d_starts, transitions.mT))
    d_ends, d_initial = _chain_operation(d_last, *backward)
    d_ends = d_ends.flip(-3)
    if transitions.shape[-1] == 1:
        return d_initial, d_ends, (starts * d_ends).sum((-2, -1), keepdim=True)
    return d_initial, d_ends, starts.mT @ d_ends


_chain_operation.register_autograd(_pull_back_chain, setup_context=_save_chain)
