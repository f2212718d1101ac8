"""What every operator refuses, in messages that say what was given and what was wanted."""

from collections.abc import Callable

import torch
from torch import Tensor


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, chunk_size: int = 1, *, allow_complex: bool = False
) -> None:
    """Refuse queries, keys and values that do not belong together.

    Args:
        q: queries, wanted [batch, time, head, key].
        k: keys, wanted the shape of q.
        v: values, wanted [batch, time, head, value] with the first three as in q.
        chunk_size: wanted 1 or more.
        allow_complex: whether complex numbers make sense to the operator.

    Raises:
        ValueError: naming the argument, what it is and what it should be.

    Example:
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
    _check_kind(q, allow_complex=allow_complex, k=k, v=v)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be 1 or greater")


def check_step(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse one token's queries, keys and values that do not belong together.

    Args:
        q: queries, wanted [batch, head, key].
        k: keys, wanted the shape of q.
        v: values, wanted [batch, head, value] with the first two as in q.

    Raises:
        ValueError: naming the argument, what it is and what it should be.

    Example:
        >>> x = torch.zeros(2, 1, 3)
        >>> check_step(x, x, x[:1])
        Traceback (most recent call last):
        ...
        ValueError: v has shape (1, 1, 3): must be (2, 1, value)
    """
    shape = tuple(q.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"q has shape {shape}: must be [batch, head, key], none of them 0")
    if tuple(k.shape) != shape:
        raise ValueError(f"k has shape {tuple(k.shape)}: must be {shape}, as q")
    if v.dim() != 3 or tuple(v.shape[:2]) != shape[:2]:
        raise ValueError(f"v has shape {tuple(v.shape)}: must be ({shape[0]}, {shape[1]}, value)")
    _check_kind(q, k=k, v=v)


def check_gates(q: Tensor, *, beta: Tensor | None = None, log_decay: Tensor | None = None) -> None:
    """Refuse gates of the wrong shape or, where looking costs nothing, out of range.

    A value on another device than the CPU is not looked at: that would make every call wait for the
    device.

    Args:
        q: queries; the gates are wanted in its shape without the last axis, and on its device.
        beta: write strength, wanted within [0, 1].
        log_decay: logarithm of what is kept of the past at each position, wanted 0 or less.

    Raises:
        ValueError: naming the argument, what it is and what it should be.

    Example:
        >>> check_gates(torch.zeros(2, 5, 1, 3), log_decay=torch.full((2, 5, 1), 0.5))
        Traceback (most recent call last):
        ...
        ValueError: log_decay has the value 0.5: must be 0 or less
    """
    shape = tuple(q.shape[:-1])
    for name, gate in (("beta", beta), ("log_decay", log_decay)):
        if gate is not None and tuple(gate.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(gate.shape)}: must be {shape}")
        if gate is not None and gate.device != q.device:
            raise ValueError(f"{name} is on {gate.device}: must be on {q.device}, as q")
    if beta is not None:
        _check_range("beta", beta, lambda x: (x >= 0) & (x <= 1), "between 0 and 1")
    if log_decay is not None:
        _check_range("log_decay", log_decay, lambda x: x <= 0, "0 or less")


def check_tensor(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a part of a state with another shape, type or device than this call's.

    Args:
        name: how to call it.
        x: the part.
        shape: wanted.
        like: a tensor of the type and on the device wanted.

    Raises:
        ValueError: naming the part, what it is and what it should be.

    Example:
        >>> check_tensor("state.cross", torch.zeros(2, 3), (2, 4), torch.zeros(1))
        Traceback (most recent call last):
        ...
        ValueError: state.cross has shape (2, 3): must be (2, 4)
    """
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: must be {shape}")
    if x.dtype != like.dtype:
        raise ValueError(f"{name} has type {x.dtype}: must be {like.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}: must be on {like.device}")


def _check_kind(q: Tensor, *, allow_complex: bool = False, **others: Tensor) -> None:
    if not (q.dtype.is_floating_point or (allow_complex and q.dtype.is_complex)):
        wanted = "a floating-point or complex type" if allow_complex else "a floating-point type"
        raise ValueError(f"q has type {q.dtype}: must be {wanted}")
    for name, x in others.items():
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has type {x.dtype}: must be {q.dtype}, as q")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}: must be on {q.device}, as q")


def _check_range(name: str, x: Tensor, allowed: Callable[[Tensor], Tensor], wanted: str) -> None:
    if readable(x) and not bool(allowed(x).all()):
        worst = x[~allowed(x)].flatten()[0].item()
        raise ValueError(f"{name} has the value {worst:g}: must be {wanted}")


def readable(x: Tensor) -> bool:
    """Say whether looking at a value is possible and free: not on a GPU, in a graph, or under vmap.

    Args:
        x: any tensor.

    Returns:
        Whether its values may decide what to do.

    Example:
        >>> readable(torch.ones(1)), readable(torch.ones(1, device="meta"))
        (True, False)
    """
    return x.device.type == "cpu" and not traced(x)


def traced(x: Tensor) -> bool:
    """Say whether a tensor stands for many or for none, so that nothing can depend on its values.

    Args:
        x: any tensor.

    Returns:
        Whether we are being compiled, or transformed by torch.func.

    Example:
        >>> traced(torch.ones(1)), torch.vmap(lambda x: x + traced(x))(torch.zeros(1)).item()
        (False, 1.0)
    """
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)
