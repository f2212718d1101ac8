"""What the mesa operator accepts, and how it says no: the argument, what it is, what it must be."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesaopt.errors import suggest
from mesaopt.ops.checks import check_tensor, readable, traced

RidgeMode = Literal["static", "decayed"]
Method = Literal["auto", "exact", "cg", "recursive", "neumann", "chebyshev"]
OnFailure = Literal["raise", "warn", "ignore"]


def check_choices(
    ridge_mode: str, method: str, on_failure: str, rtol: float | None, max_steps: int | None
) -> None:
    """Refuse words that are not among the choices, and limits out of range.

    Args:
        ridge_mode: one of `RidgeMode`.
        method: one of `Method`.
        on_failure: one of `OnFailure`.
        rtol: wanted greater than 0, or none.
        max_steps: wanted 0 or more, or none.

    Raises:
        ValueError: naming the argument and what it should be.

    Example:
        >>> check_choices("static", "exakt", "raise", None, None)
        Traceback (most recent call last):
        ...
        ValueError: method='exakt': did you mean 'exact'?
    """
    words = (
        ("ridge_mode", ridge_mode, RidgeMode),
        ("method", method, Method),
        ("on_failure", on_failure, OnFailure),
    )
    for name, word, choices in words:
        if word not in get_args(choices):
            raise ValueError(f"{name}={word!r}: {suggest(str(word), get_args(choices))}")
    if rtol is not None and not rtol > 0:
        raise ValueError(f"rtol={rtol}: must be greater than 0")
    if max_steps is not None and max_steps < 0:
        raise ValueError(f"max_steps={max_steps}: must be 0 or greater")


def check_finite(given: dict[str, Tensor], fail: Callable[[str], None]) -> None:
    """Point out tensors with a NaN or an infinity; a gate may be closed by -inf.

    Args:
        given: tensors under their names.
        fail: what to do with a message.

    Example:
        >>> check_finite({"q": torch.tensor([0.0, torch.nan])}, print)
        q has 1 of 2 values that are not finite: must have none
    """
    for name, x in given.items():
        if is_finite(x):
            continue
        bad = x.isnan() if name == "log_decay" else ~x.isfinite()
        if bad.any():
            count = f"{int(bad.sum())} of {bad.numel()}"
            fail(f"{name} has {count} values that are not finite: must have none")


def is_finite(x: Float[Tensor, "..."]) -> bool:
    """Look for a NaN or an infinity; under compilation and vmap, where one cannot, see none.

    Args:
        x: any floating-point tensor.

    Returns:
        Whether all values are finite.

    Example:
        >>> is_finite(torch.tensor([1.0, torch.inf]))
        False
    """
    if traced(x):
        return True
    # One pass that finds no NaN nor infinity is the usual case; large numbers may still overflow it.
    total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(total.isfinite()) or bool(x.isfinite().all())


def check_state(state: tuple[Tensor, ...], like: Any) -> None:
    """Refuse a state that does not fit.

    Args:
        state: a :class:`mesaopt.ops.MesaState`.
        like: one that would fit.

    Raises:
        ValueError: naming the part, what it is and what it should be.

    Example:
        >>> from mesaopt.ops import MesaState
        >>> check_state(MesaState.empty(1, 2, 3, 3), MesaState.empty(1, 2, 3, 4))
        Traceback (most recent call last):
        ...
        ValueError: initial_state.cross has shape (1, 2, 3, 3): must be (1, 2, 4, 3)
    """
    for name, part, wanted in zip(like._fields, state, like, strict=True):
        check_tensor(f"initial_state.{name}", part, tuple(wanted.shape), wanted)


def ridge_per_channel(
    ridge: Tensor | float, q: Float[Tensor, "batch time head key"]
) -> Float[Tensor, "head key"]:
    """Bring a ridge of any shape to one number per head and channel.

    Args:
        ridge: a number, or a tensor [head] or [head, key], > 0.
        q: queries, which say how many heads and channels there are, and the precision.

    Returns:
        The ridge of every head and channel.

    Raises:
        ValueError: its shape, device or a value is wrong.

    Example:
        >>> ridge_per_channel(0.5, torch.zeros(1, 1, 2, 3)).shape
        torch.Size([2, 3])
    """
    if isinstance(ridge, Tensor) and ridge.device != q.device and ridge.dim() > 0:
        raise ValueError(f"ridge is on {ridge.device}: must be on {q.device}, as q")
    ridge = torch.as_tensor(ridge, dtype=q.dtype, device=q.device)
    heads, width = q.shape[-2:]
    if tuple(ridge.shape) not in ((), (heads,), (heads, width)):
        wanted = f"a number, ({heads},) or ({heads}, {width})"
        raise ValueError(f"ridge has shape {tuple(ridge.shape)}: must be {wanted}")
    if readable(ridge) and not bool((ridge > 0).all()):
        raise ValueError(f"ridge has the value {ridge.min().item():g}: must be greater than 0")
    return (ridge.unsqueeze(-1) if ridge.dim() == 1 else ridge).expand(heads, width)


class Unpacking(NamedTuple):
    """How packed sequences become a batch of padded ones, and back."""

    index: Int[Tensor, "sequence longest"]
    valid: Bool[Tensor, "sequence longest"]

    def unpack(self, x: Float[Tensor, "1 time *rest"]) -> Float[Tensor, "sequence longest *rest"]:
        """Give every sequence a row of its own, filled up with zeros.

        Args:
            x: packed [1, time, ...].

        Returns:
            [sequence, longest, ...].
        """
        padding = ~self.valid.view(*self.valid.shape, *[1] * (x.dim() - 2))
        return x[0][self.index].masked_fill(padding, 0.0)

    def pack(self, x: Float[Tensor, "sequence longest *rest"]) -> Float[Tensor, "1 time *rest"]:
        """Undo :meth:`unpack`.

        Args:
            x: [sequence, longest, ...].

        Returns:
            [1, time, ...].
        """
        return x[self.valid].unsqueeze(0)


def unpacking(cu_seqlens: Int[Tensor, "offsets"], shape: tuple[int, ...]) -> Unpacking:
    """Read the offsets of packed sequences.

    Args:
        cu_seqlens: offsets, from 0 to time and never falling.
        shape: of the packed batch, wanted (1, time).

    Returns:
        What unpacks and packs.

    Raises:
        ValueError: the batch is not 1, or the offsets do not cover it.

    Example:
        >>> unpacking(torch.tensor([0, 2, 5]), (1, 5)).valid.sum(-1).tolist()
        [2, 3]
    """
    batch, time = shape
    if batch != 1:
        raise ValueError(f"q has a batch of {batch}: must be 1 with cu_seqlens")
    lengths = cu_seqlens.diff()
    offsets = [int(x) for x in (cu_seqlens[0], cu_seqlens[-1], lengths.min(), lengths.max())]
    if offsets[0] != 0 or offsets[1] != time or offsets[2] < 0:
        raise ValueError(f"cu_seqlens={cu_seqlens.tolist()}: must rise from 0 to {time}")
    position = torch.arange(offsets[3], device=cu_seqlens.device)
    valid = position < lengths.unsqueeze(-1)  # [S,longest]
    return Unpacking(torch.where(valid, cu_seqlens[:-1, None] + position, 0), valid)
