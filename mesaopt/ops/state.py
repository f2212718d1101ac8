"""Recurrent states and single steps of the linear-attention variants."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from mesaopt.ops.validation import (
    check_finite,
    check_gates,
    check_state,
    check_step,
    is_finite,
    readable,
)


class LinearState(NamedTuple):
    """Linear map learnt from the past.

    Example:
        >>> LinearState(torch.zeros(2, 4, 5, 3)).cross.shape  # 2 sequences, 4 heads, V = 5, K = 3
        torch.Size([2, 4, 5, 3])
    """

    cross: Inexact[Tensor, "batch head value key"]
    """A prediction for key k is cross @ k. float32, or float64 or complex where the inputs are."""


class KeyValueState(NamedTuple):
    """All pairs of the past, or the last of them: without a window, the only state that grows.

    Example:
        >>> KeyValueState(torch.zeros(2, 7, 4, 3), torch.zeros(2, 7, 4, 5)).lengths is None
        True
    """

    keys: Float[Tensor, "batch past head key"]
    """Of packed sequences of several lengths: one sequence after another in a batch of 1."""
    values: Float[Tensor, "batch past head value"]
    """In the same order."""
    lengths: Int[Tensor, " sequence"] | None = None
    """Pairs of every packed sequence, best on the CPU; None where each has `past`."""

    def split(self) -> list["KeyValueState"]:
        """Split the state by sequence.

        Returns:
            A batch of one for every sequence.
        """
        if self.lengths is None:
            pairs = zip(self.keys.split(1), self.values.split(1), strict=True)
        else:
            lengths = self.lengths.tolist()
            pairs = zip(self.keys.split(lengths, 1), self.values.split(lengths, 1), strict=True)
        return [KeyValueState(keys, values) for keys, values in pairs]

    @classmethod
    def pack(cls, states: Sequence["KeyValueState"]) -> "KeyValueState":
        """Pack the states of single sequences; those of one length are a plain batch.

        Args:
            states: batches of one, as :meth:`split` returns them.

        Returns:
            One state.

        Example:
            >>> one, two = (KeyValueState(*torch.zeros(2, 1, past, 4, 3)) for past in (5, 7))
            >>> KeyValueState.pack([one, two]).lengths, KeyValueState.pack([one, one]).keys.shape
            (tensor([5, 7]), torch.Size([2, 5, 4, 3]))
        """
        lengths = [state.keys.shape[1] for state in states]
        keys, values = (
            torch.cat(xs, dim=1) for xs in ([s.keys for s in states], [s.values for s in states])
        )
        if min(lengths) == max(lengths):
            batch = (len(lengths), lengths[0])
            return cls(*(x.reshape(*batch, *x.shape[2:]) for x in (keys, values)))
        return cls(keys, values, torch.tensor(lengths))

    def index_select(self, indices: Int[Tensor, " selected"]) -> "KeyValueState":
        """Choose sequences by number.

        Args:
            indices: numbers from 0, integers [selected], one or more where sequences are packed.

        Returns:
            Their pairs, in this order, packed where they are of several lengths.
        """
        if self.lengths is None:
            chosen = indices.to(self.keys.device)
            return KeyValueState(*(x.index_select(0, chosen) for x in self[:2]))
        states = self.split()
        return KeyValueState.pack([states[i] for i in indices.tolist()])


class Output(NamedTuple):
    """Result of every operator but mesa, for a whole sequence and for one token alike.

    Example:
        >>> from mesaopt.ops import linear_attention
        >>> one = torch.ones(1, 3, 1, 1)
        >>> output, state = linear_attention(one, one, one)
        >>> state.cross.item()
        3.0
    """

    output: Inexact[Tensor, "*position head value"]
    """Predictions, of the same type as the queries."""
    state: LinearState | KeyValueState
    """State to continue from: pass it to the next call or step."""


def working_type(x: Tensor) -> torch.dtype:
    """Return the type states are kept and sums are formed in: that of x, but float32 at least.

    Args:
        x: an input.

    Returns:
        float32 or float64; that of x if it is complex.

    Example:
        >>> working_type(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast does not lower the precision of products.

    Args:
        x: a tensor on the device in question.

    Returns:
        A context manager.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu"), full_precision(x):
        ...     (x @ x).dtype
        torch.float32
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def cross_of(
    state: LinearState | None, sequences: int, q: Tensor, v: Tensor, name: str = "state"
) -> Float[Tensor, "batch head value key"] | None:
    """Take the matrix out of a state, if it fits the call.

    Args:
        state: from an earlier call, or None.
        sequences: number of sequences.
        q: queries [..., head, key].
        v: values [..., head, value].
        name: name of the caller's argument.

    Returns:
        [sequences, head, value, key], or None.

    Raises:
        ValueError: the state is another operator's, or has another shape, type or device.

    Example:
        >>> x = torch.zeros(1, 5, 2, 3)
        >>> cross_of(LinearState(torch.zeros(1, 2, 3, 4)), 1, x, x)
        Traceback (most recent call last):
        ...
        ValueError: state.cross has shape (1, 2, 3, 4): must be (1, 2, 3, 3)
    """
    if state is None:
        return None
    shape = (sequences, q.shape[-2], v.shape[-1], q.shape[-1])
    like = torch.empty((), dtype=working_type(q), device=q.device).expand(shape)
    check_state(name, state, LinearState(like))
    return state.cross


def online_step(
    q: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    state: LinearState | None,
    *,
    beta: Float[Tensor, "batch head"] | None = None,
    log_decay: Float[Tensor, "batch head"] | None = None,
    of_error: bool = False,
    implicit: bool = False,
) -> Output:
    """Forget, write one pair and predict.

    S' = exp(log_decay) S; S_new = S' + beta (v - of_error S' k) k^T; output = S_new q.

    Args:
        q: queries [batch, head, key], any floating-point type.
        k: keys, the same shape.
        v: values [batch, head, value].
        state: S, zero if None.
        beta: write strength [batch, head] in [0, 1], 1 if None.
        log_decay: logarithm of the share of the state that is kept [batch, head], <= 0; 0 if None.
        of_error: write the error of the prediction for k, and not the value alone.
        implicit: divide beta by 1 + beta |k|^2.

    Returns:
        Output [batch, head, value] and S_new.

    Raises:
        ValueError: shapes, types or values that do not fit.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> online_step(one, one, one, None, beta=0.5 * one[..., 0]).output
        tensor([[[0.5000]]])
    """
    check_step(q, k, v)
    check_gates(q, beta=beta, log_decay=log_decay)
    cross = cross_of(state, len(q), q, v)
    kind = working_type(q)
    query, key, value = (x.to(kind).unsqueeze(-1) for x in (q, k, v))  # [B,H,K,1], [B,H,V,1]
    if cross is None:
        cross = torch.zeros(*v.shape, q.shape[-1], dtype=kind, device=q.device)
    if log_decay is not None:
        cross = cross * log_decay.to(kind).exp()[..., None, None]
    if of_error:
        value = value - (cross * key.mT).sum(-1, keepdim=True)
    if implicit:
        beta = implicit_strength(k, beta)
    if beta is not None:
        value = value * beta.to(kind)[..., None, None]
    cross = cross + value * key.mT
    # Products and sums instead of matrix products: autocast leaves them in full precision.
    return Output((cross * query.mT).sum(-1).to(q.dtype), LinearState(cross))


def implicit_strength(
    k: Float[Tensor, "*position key"], beta: Float[Tensor, "*position"] | None
) -> Float[Tensor, "*position"]:
    """Return the write strength with which the delta rule makes an implicit step: beta / (1 + beta |k|^2).

    Args:
        k: keys.
        beta: step size of the implicit step, 1 if None.

    Returns:
        One strength per key, less than beta and less than 1 / |k|^2.

    Raises:
        ValueError: where looking costs nothing, a key that is not finite, or whose squared norm is not: it
            has no implicit step.

    Example:
        >>> implicit_strength(torch.ones(3, 4), torch.ones(3))
        tensor([0.2000, 0.2000, 0.2000])
    """
    kind = working_type(k)
    squared = k.to(kind).square().sum(-1)
    if readable(k) and not is_finite(squared):
        check_finite({"k": k}, _refuse)
        count = f"{int(squared.isinf().sum())} of {squared.numel()}"
        _refuse(f"k has {count} keys whose squared norms overflow {kind}: must have none")
    strength = torch.ones_like(squared) if beta is None else beta.to(kind)
    return strength / (1 + strength * squared)


def _refuse(message: str) -> None:
    raise ValueError(message)
