"""The inputs of a layer's operator, and its state between two calls."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from mesaopt.layers.checks import check_indices
from mesaopt.ops import KeyValueState, LinearState, MesaState
from mesaopt.ops.state import working_type

Memory = TypeVar("Memory", bound=LinearState | MesaState | KeyValueState)


class LayerState(NamedTuple):
    """State of a layer between two calls.

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> state = LinearSelfAttention(width=6, num_heads=2, head_dim=3).init_state(batch_size=4)
        >>> state.memory.cross.shape
        torch.Size([4, 2, 3, 3])
    """

    memory: LinearState | MesaState | KeyValueState
    """State of the operator."""
    recent: Float[Tensor, "batch before channel"] | None = None
    """Last projections of q, k and v, concatenated, for the convolutions; None without them."""
    seen: int | Int[Tensor, " sequence"] = 0
    """Number of tokens so far, for positions; stays 0 without them. One for each of sequences that were
    packed or filled up."""

    def to(self, *args: Any, **kwargs: Any) -> "LayerState":
        """Move the state to a device, or convert it to the type of a converted layer.

        Args:
            args: a device, a floating-point type, both, or a tensor that has them, as in
                :meth:`torch.Tensor.to`.
            kwargs: `device`, `dtype`, `non_blocking`, `copy`, as there.

        Returns:
            A state that a layer takes after the same call of its own `to`. The sums of an operator stay
            in float32 at least, as in :meth:`mesaopt.layers.SelfAttention.init_state`; numbers of tokens
            stay integers, and those of packed pairs stay where they are.

        Raises:
            ValueError: the type is not a floating-point type.

        Example:
            >>> from mesaopt.layers import MesaLayer
            >>> layer = MesaLayer.mesanet2025(width=6, num_heads=2, head_dim=3)
            >>> state = layer.extend(torch.randn(4, 7, 6))[1].to(torch.bfloat16)
            >>> state.memory.gram.dtype, state.recent.dtype
            (torch.float32, torch.bfloat16)
            >>> y, state = layer.to(torch.bfloat16).step(torch.randn(4, 6, dtype=torch.bfloat16), state)
        """

        def move(x: Tensor) -> Tensor:
            return moved(x, args, kwargs)

        if isinstance(self.memory, KeyValueState):
            keys, values, lengths = self.memory
            return self._around(KeyValueState(move(keys), move(values), lengths), move)
        sums = (moved(x, args, kwargs, is_sum=True) for x in self.memory)
        return self._around(self.memory._make(sums), move)

    def detach(self) -> "LayerState":
        """Cut the state off from the graph that computed it: gradients end here.

        Returns:
            The same values, without a history.

        Example:
            >>> from mesaopt.layers import LinearSelfAttention
            >>> layer = LinearSelfAttention(width=6, num_heads=2, head_dim=3)
            >>> state = layer.extend(torch.randn(4, 7, 6))[1]
            >>> state.memory.cross.requires_grad, state.detach().memory.cross.requires_grad
            (True, False)
        """
        return self._each(torch.Tensor.detach)

    def copy(self) -> "LayerState":
        """Copy the state, without a history of gradients.

        Returns:
            The same values in memory of their own.

        Example:
            >>> from mesaopt.layers import LinearSelfAttention
            >>> state = LinearSelfAttention(width=6, num_heads=2, head_dim=3).init_state(batch_size=4)
            >>> copy = state.copy()
            >>> _ = state.memory.cross.fill_(1.0)
            >>> copy.memory.cross.sum()
            tensor(0.)
        """
        return self._each(lambda x: x.detach().clone())

    def index_select(self, indices: Int[Tensor, " selected"]) -> "LayerState":
        """Choose sequences by number: to reorder them, to drop some, or to go on from one in several ways.

        After a step of beam search, `state.index_select(parents)` is the state of the beams that are left.

        Args:
            indices: numbers of sequences from 0, integers [selected], one or more, repetitions allowed.

        Returns:
            The state of these sequences, in this order. Pairs that were packed become a plain batch where
            all chosen sequences have equally many.

        Raises:
            ValueError: the indices are no list of integers or, where looking costs nothing, out of range.

        Example:
            >>> from mesaopt.layers import LinearSelfAttention
            >>> layer = LinearSelfAttention(width=6, num_heads=2, head_dim=3)
            >>> state = layer.extend(torch.randn(4, 7, 6))[1]
            >>> state.index_select(torch.tensor([2, 2, 0])).memory.cross.shape
            torch.Size([3, 2, 3, 3])
        """
        check_indices("indices", indices, ("selected",), limit=self.num_sequences)

        def select(x: Tensor) -> Tensor:
            return x.index_select(0, indices.to(x.device))

        if isinstance(self.memory, KeyValueState):
            return self._around(self.memory.index_select(indices), select)
        return self._around(self.memory._make(map(select, self.memory)), select)

    @property
    def num_sequences(self) -> int:
        """Number of sequences whose state this is."""
        if isinstance(self.memory, KeyValueState) and self.memory.lengths is not None:
            return len(self.memory.lengths)
        return len(self.memory[0])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LayerState":
        """Change every tensor."""
        parts = (None if part is None else change(part) for part in self.memory)
        return self._around(self.memory._make(parts), change)

    def _around(
        self, memory: LinearState | MesaState | KeyValueState, change: Callable[[Tensor], Tensor]
    ) -> "LayerState":
        """Replace the operator's state, and change the rest."""
        recent = None if self.recent is None else change(self.recent)
        seen = change(self.seen) if isinstance(self.seen, Tensor) else self.seen
        return LayerState(memory, recent, seen)


def moved(
    x: Num[Tensor, "..."], args: tuple[Any, ...], kwargs: dict[str, Any], *, is_sum: bool = False
) -> Num[Tensor, "..."]:
    """Move or convert a tensor of a state.

    Args:
        x: of floating-point numbers, or integers, which stay integers of their type.
        args: of :meth:`torch.Tensor.to`.
        kwargs: of the same.
        is_sum: whether x is a sum, which stays in float32 at least.

    Returns:
        The tensor; x itself where nothing changes, as there.

    Raises:
        ValueError: the type is not a floating-point type.

    Example:
        >>> half = (torch.bfloat16,)
        >>> [moved(x, half, {}).dtype for x in (torch.ones(2), torch.tensor([3, 1]))]
        [torch.bfloat16, torch.int64]
    """
    found = x.to(*args, **kwargs)
    if not x.is_floating_point():
        kind = x.dtype
    elif not found.is_floating_point():
        raise ValueError(f"dtype={found.dtype}: must be a floating-point type")
    else:
        kind = working_type(found) if is_sum else found.dtype
    return found if found.dtype == kind else x.to(found.device, kind, copy=True)


class HeadInputs(NamedTuple):
    """Inputs of an operator: [batch, time, head, ...], or [batch, head, ...] for one token.

    Example:
        >>> from mesaopt.layers import LonghornLayer
        >>> inputs = LonghornLayer(width=6, num_heads=2, head_dim=3).head_inputs(torch.randn(4, 7, 6))
        >>> inputs.k.shape, inputs.beta.shape, inputs.log_decay is None
        (torch.Size([4, 7, 2, 3]), torch.Size([4, 7, 2]), True)
    """

    q: Float[Tensor, "*position head key"]
    """Queries."""
    k: Float[Tensor, "*position group key"]
    """Keys, of as many heads; in softmax attention, of as many as the layer has key-value heads."""
    v: Float[Tensor, "*position group value"]
    """Values, of as many heads as the keys."""
    log_decay: Float[Tensor, "*position group"] | None = None
    """Log of the forget gate, None in layers without it."""
    beta: Float[Tensor, "*position group"] | None = None
    """Write strength, None in layers without it."""
    sign: Float[Tensor, "*position group"] | None = None
    """Sign of the forget gate, None where that is never negative."""

    def repeat_heads(self, times: int) -> "HeadInputs":
        """Repeat everything but the queries, for operators that take as many of each.

        Args:
            times: queries that share a key, a value and gates; they are neighbours.

        Returns:
            The inputs of all heads.
        """
        if times == 1:
            return self
        k, v = (x.repeat_interleave(times, dim=-2) for x in self[1:3])
        gates = (None if x is None else x.repeat_interleave(times, dim=-1) for x in self[3:])
        return HeadInputs(self.q, k, v, *gates)

    def single(self) -> "HeadInputs":
        """Drop the time axis of a single token.

        Returns:
            The inputs of a step.
        """
        gates = (None if gate is None else gate.squeeze(1) for gate in self[3:])
        return HeadInputs(self.q.squeeze(1), self.k.squeeze(1), self.v.squeeze(1), *gates)


def repeat_heads(memory: Memory, times: int) -> Memory:
    """Give every query the state of its group.

    Args:
        memory: state of an operator, one per key-value head.
        times: queries that share one.

    Returns:
        One state per query.
    """
    if times == 1:
        return memory
    parts = cast(Sequence[Tensor], memory)
    return cast(Any, memory)._make(x.repeat_interleave(times, dim=1) for x in parts)


def keep_one_of(memory: Memory, times: int) -> Memory:
    """Undo :func:`repeat_heads`.

    Args:
        memory: state of an operator, the same for each of `times` neighbouring heads.
        times: queries that share one.

    Returns:
        One state per key-value head, in memory of its own.
    """
    if times == 1:
        return memory
    parts = cast(Sequence[Tensor], memory)
    return cast(Any, memory)._make(x[:, ::times].clone() for x in parts)
