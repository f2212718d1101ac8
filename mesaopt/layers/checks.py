"""The checks of what a layer or a model is given, with one sentence for every mistake."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mesaopt.errors import wrong_type
from mesaopt.ops.validation import readable


def check_input(
    argument: str,
    x: Tensor,
    axes: tuple[str, ...],
    *,
    width: int,
    dtype: torch.dtype,
    hint: str = "",
) -> None:
    """Refuse an input of another kind, shape or type than a layer takes.

    Args:
        argument: name of the input.
        x: the input, [*axes, width].
        axes: names of all axes but the last.
        width: of the last.
        dtype: of the weights. Under autocast that of x may be another.
        hint: what else may be meant by another number of axes.

    Raises:
        TypeError: it is no tensor.
        ValueError: its shape or type is another.

    Example:
        >>> check_input("x", torch.zeros(3, 64), ("batch", "time"), width=64, dtype=torch.float32)
        Traceback (most recent call last):
        ...
        ValueError: x has shape (3, 64): must be [batch, time, 64]
    """
    if not isinstance(x, Tensor):
        tokens = ", such as its .tokens" if hasattr(x, "tokens") else ""
        raise wrong_type(argument, x, f"a tensor{tokens}")
    if x.dim() != len(axes) + 1 or x.shape[-1] != width:
        other = f"; {hint}" if hint and x.dim() != len(axes) + 1 else ""
        shape = f"[{', '.join(axes)}, {width}]"
        raise ValueError(f"{argument} has shape {tuple(x.shape)}: must be {shape}{other}")
    if x.dtype != dtype and not _converted(x):
        wanted = f"{dtype}, as the weights; {argument}.to({dtype}) makes it so"
        raise ValueError(f"{argument} has type {x.dtype}: must be {wanted}")


def check_indices(
    argument: str, x: Any, axes: tuple[str | int, ...], *, limit: int
) -> Int[Tensor, "..."]:
    """Refuse numbers of tokens, positions or sequences that are none, of another shape or out of range.

    Values on another device than the CPU are not looked at: every call would have to wait for the device.

    Args:
        argument: name of the input.
        x: what was given.
        axes: names of its axes, each of 1 or more, or a size where that is known.
        limit: how many there are to choose from.

    Returns:
        The numbers, in int64.

    Raises:
        ValueError: it is no tensor of int64 or int32, or its shape or a value is another.

    Example:
        >>> check_indices("tokens", torch.tensor([[3, 16]]), ("batch", "time"), limit=16)
        Traceback (most recent call last):
        ...
        ValueError: tokens has the value 16: must be from 0 to 15
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{argument} is of {_kind(x)}: must be a tensor of torch.int64")
    sizes = zip(x.shape, axes, strict=False)
    fits = (size == axis if isinstance(axis, int) else size > 0 for size, axis in sizes)
    if x.dim() != len(axes) or not all(fits):
        wanted = f"[{', '.join(map(str, axes))}]"
        raise ValueError(f"{argument} has shape {tuple(x.shape)}: must be {wanted}")
    if readable(x):
        smallest, largest = (int(value) for value in x.aminmax())
        if smallest < 0 or largest >= limit:
            worst = smallest if smallest < 0 else largest
            raise ValueError(f"{argument} has the value {worst}: must be from 0 to {limit - 1}")
    return x.long()


def check_mask(mask: Any, x: Tensor, argument: str) -> None:
    """Refuse a mask of another kind or shape than the tokens that it is for.

    Args:
        mask: true where a token is.
        x: [batch, time, ...].
        argument: name of x.

    Raises:
        ValueError: it is no tensor of torch.bool, or its shape is another.

    Example:
        >>> check_mask(torch.ones(3), torch.zeros(3, 5), "tokens")
        Traceback (most recent call last):
        ...
        ValueError: mask is of torch.float32: must be a tensor of torch.bool, true at tokens
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        wanted = "must be a tensor of torch.bool, true at tokens"
        raise ValueError(f"mask is of {_kind(mask)}: {wanted}")
    if mask.shape != x.shape[:2]:
        wanted = f"must be {tuple(x.shape[:2])}, as {argument}"
        raise ValueError(f"mask has shape {tuple(mask.shape)}: {wanted}")


def check_sequences(state: Any, kind: type[Any], sequences: int) -> None:
    """Refuse a state of another kind, or of another number of sequences.

    Args:
        state: from an earlier call.
        kind: what it must be.
        sequences: their number in this call.

    Raises:
        TypeError: it is something else.
        ValueError: it has more or fewer sequences.

    Example:
        >>> from mesaopt.layers import LayerState, LinearSelfAttention
        >>> state = LinearSelfAttention(width=6, num_heads=2, head_dim=3).init_state(batch_size=4)
        >>> check_sequences(state, LayerState, 3)
        Traceback (most recent call last):
        ...
        ValueError: state has 4 sequences: must have 3
    """
    if not isinstance(state, kind):
        raise wrong_type("state", state, f"a {kind.__name__}")
    if state.num_sequences != sequences:
        raise ValueError(f"state has {state.num_sequences} sequences: must have {sequences}")


def _kind(x: Any) -> Any:
    """Return the type of a tensor's numbers, or the name of another type."""
    return x.dtype if isinstance(x, Tensor) else type(x).__name__


def _converted(x: Tensor) -> bool:
    """Say whether autocast brings an input and the weights to one type."""
    return x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
