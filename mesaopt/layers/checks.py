"""The check of what a layer or a model is given, with one sentence for every mistake."""

import torch
from torch import Tensor

from mesaopt.errors import wrong_type


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


def _converted(x: Tensor) -> bool:
    """Say whether autocast brings an input and the weights to one type."""
    return x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
