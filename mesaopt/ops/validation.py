"""Checks of arguments, the same for every operator.

A message names the argument, its value and what it must be.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from mesaopt.config import require_count
from mesaopt.errors import ConfigError, suggest, wrong_type

RidgeMode = Literal["static", "decayed"]
"""Whether the ridge stays as it is, or is forgotten with the past."""
OnFailure = Literal["raise", "warn", "ignore"]
"""The answer to a failed solve."""


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int = 1,
    *,
    allow_complex: bool = False,
    shared_heads: bool = False,
) -> None:
    """Refuse queries, keys and values that do not fit together.

    Args:
        q: queries, must be [batch, time, head, key].
        k: keys, must be the shape of q.
        v: values, must be [batch, time, head, value] with the first three as in k.
        chunk_size: must be 1 or more.
        allow_complex: whether complex numbers make sense to the operator.
        shared_heads: whether keys and values may have fewer heads, a divisor of those of q.

    Raises:
        TypeError: one is no tensor.
        ValueError: naming the argument, its value and what it must be.

    Example:
        >>> x = torch.zeros(2, 5, 1, 3)
        >>> check_shapes(x, x[:, :4], x, 64)
        Traceback (most recent call last):
        ...
        ValueError: k has shape (2, 4, 1, 3): must be (2, 5, 1, 3), as q
    """
    check_tensors(q=q, k=k, v=v)
    shape = tuple(q.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"q has shape {shape}: must be [batch, time, head, key], none of them 0")
    shape = _check_keys(q, k, shared_heads)
    if v.dim() != 4 or tuple(v.shape[:3]) != shape[:3]:
        wanted = ", ".join(map(str, shape[:3]))
        raise ValueError(f"v has shape {tuple(v.shape)}: must be ({wanted}, value)")
    _check_kind(q, allow_complex=allow_complex, k=k, v=v)
    require_count("chunk_size", chunk_size, smallest=1)


def check_step(q: Tensor, k: Tensor, v: Tensor, *, shared_heads: bool = False) -> None:
    """Refuse one token's queries, keys and values that do not belong together.

    Args:
        q: queries, must be [batch, head, key].
        k: keys, must be the shape of q.
        v: values, must be [batch, head, value] with the first two as in k.
        shared_heads: as for :func:`check_shapes`.

    Raises:
        TypeError: one is no tensor.
        ValueError: naming the argument, its value and what it must be.

    Example:
        >>> x = torch.zeros(2, 1, 3)
        >>> check_step(x, x, x[:1])
        Traceback (most recent call last):
        ...
        ValueError: v has shape (1, 1, 3): must be (2, 1, value)
    """
    check_tensors(q=q, k=k, v=v)
    shape = tuple(q.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"q has shape {shape}: must be [batch, head, key], none of them 0")
    shape = _check_keys(q, k, shared_heads)
    if v.dim() != 3 or tuple(v.shape[:2]) != shape[:2]:
        raise ValueError(f"v has shape {tuple(v.shape)}: must be ({shape[0]}, {shape[1]}, value)")
    _check_kind(q, k=k, v=v)


def check_tensors(**given: Any) -> None:
    """Refuse what is no tensor.

    Args:
        given: arguments by their names.

    Raises:
        TypeError: naming the argument and its type.

    Example:
        >>> check_tensors(q=[1.0])
        Traceback (most recent call last):
        ...
        TypeError: q is a list: must be a tensor
    """
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise wrong_type(name, x, "a tensor")


def check_gates(
    q: Tensor,
    *,
    beta: Tensor | None = None,
    log_decay: Tensor | None = None,
    wait: bool = False,
) -> None:
    """Refuse gates of the wrong shape or out of range.

    Args:
        q: queries; the gates must have its shape without the last axis, and be on its device.
        beta: write strength, must be within [0, 1].
        log_decay: logarithm of the share of the past that is kept at each position, 0 or less.
        wait: whether to look at values on another device than the CPU, too, which waits for it.

    Raises:
        TypeError: one is no tensor.
        ValueError: naming the argument, its value and what it must be.

    Example:
        >>> check_gates(torch.zeros(2, 5, 1, 3), log_decay=torch.full((2, 5, 1), 0.5))
        Traceback (most recent call last):
        ...
        ValueError: log_decay has the value 0.5: must be 0 or less
    """
    shape = tuple(q.shape[:-1])
    gates = {"beta": beta, "log_decay": log_decay}
    for name, gate in gates.items():
        if gate is None:
            continue
        check_tensors(**{name: gate})
        if gate.is_complex():
            raise ValueError(f"{name} has type {gate.dtype}: must be a real type")
        if tuple(gate.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(gate.shape)}: must be {shape}")
        if gate.device != q.device:
            raise ValueError(f"{name} is on {gate.device}: must be on {q.device}, as q")
    if beta is not None:
        _check_range("beta", beta, lambda x: (x >= 0) & (x <= 1), "between 0 and 1", wait)
    if log_decay is not None:
        _check_range("log_decay", log_decay, lambda x: x <= 0, "0 or less", wait)


def ridge_per_channel(
    ridge: Tensor | float, q: Float[Tensor, "batch time head key"], *, wait: bool = False
) -> Float[Tensor, "head key"]:
    """Expand a ridge of any shape to one number per head and channel.

    Args:
        ridge: a number, or a tensor [head] or [head, key], > 0 and finite.
        q: queries, which set the number of heads and channels and the precision.
        wait: whether to look at values on another device than the CPU, too, which waits for it.

    Returns:
        The ridge of every head and channel.

    Raises:
        TypeError: it is neither a number nor a tensor.
        ValueError: its shape, type, device or a value is wrong.

    Example:
        >>> ridge_per_channel(0.5, torch.zeros(1, 1, 2, 3)).shape
        torch.Size([2, 3])
    """
    if not isinstance(ridge, Tensor) and not _is_number(ridge):
        raise wrong_type("ridge", ridge, "a number or a tensor")
    if isinstance(ridge, Tensor) and ridge.is_complex():
        raise ValueError(f"ridge has type {ridge.dtype}: must be a real type")
    if isinstance(ridge, Tensor) and ridge.device != q.device and ridge.dim() > 0:
        raise ValueError(f"ridge is on {ridge.device}: must be on {q.device}, as q")
    ridge = torch.as_tensor(ridge, dtype=q.dtype, device=q.device)
    heads, width = q.shape[-2:]
    if tuple(ridge.shape) not in ((), (heads,), (heads, width)):
        wanted = f"a number, ({heads},) or ({heads}, {width})"
        raise ValueError(f"ridge has shape {tuple(ridge.shape)}: must be {wanted}")
    wanted = "greater than 0 and finite"
    _check_range("ridge", ridge, lambda x: (x > 0) & (x < math.inf), wanted, wait)
    return (ridge.unsqueeze(-1) if ridge.dim() == 1 else ridge).expand(heads, width)


def check_state(name: str, state: Any, like: Any) -> None:
    """Refuse a state of another kind, shape, type or device than this call's.

    Args:
        name: the argument's name.
        state: the state given.
        like: a state that would fit, a named tuple; its parts that are None are not looked at.

    Raises:
        TypeError: a part is no tensor.
        ValueError: naming the part, its value and what it must be.

    Example:
        >>> from mesaopt.ops import LinearState
        >>> check_state("state", LinearState(torch.zeros(2, 3)), LinearState(torch.zeros(2, 4)))
        Traceback (most recent call last):
        ...
        ValueError: state.cross has shape (2, 3): must be (2, 4)
    """
    if not isinstance(state, type(like)):
        kind = type(like).__name__
        raise ValueError(f"{name} has type {type(state).__name__}: must be {kind}")
    for field, part, wanted in zip(like._fields, state, like, strict=True):
        if wanted is None:
            continue
        label = f"{name}.{field}"
        check_tensors(**{label: part})
        if part.shape != wanted.shape:
            raise ValueError(
                f"{label} has shape {tuple(part.shape)}: must be {tuple(wanted.shape)}"
            )
        if part.dtype != wanted.dtype:
            raise ValueError(f"{label} has type {part.dtype}: must be {wanted.dtype}")
        if part.device != wanted.device:
            raise ValueError(f"{label} is on {part.device}: must be on {wanted.device}")


def check_choice(name: str, word: str, choices: Any) -> None:
    """Refuse a word that is not among the choices.

    Args:
        name: the argument's name.
        word: the word given.
        choices: a `Literal` type.

    Raises:
        ValueError: naming the argument and what it must be.

    Example:
        >>> check_choice("ridge_mode", "statik", RidgeMode)
        Traceback (most recent call last):
        ...
        ValueError: ridge_mode='statik': did you mean 'static'?
    """
    if word not in get_args(choices):
        raise ValueError(f"{name}={word!r}: {suggest(str(word), get_args(choices))}")


def check_number(name: str, value: float | None) -> None:
    """Refuse what is no finite number greater than 0.

    Args:
        name: the argument's name.
        value: the number given; None is always right.

    Raises:
        ConfigError: naming the argument and what it must be.

    Example:
        >>> check_number("rtol", 0.0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: rtol=0.0: must be a finite number greater than 0
    """
    if value is None:
        return
    if not _is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r}: must be a finite number greater than 0")


def check_count(name: str, value: int | None, *, least: int) -> None:
    """Refuse a count that is no whole number, or too small.

    Args:
        name: the argument's name.
        value: the count given; None is always right.
        least: the smallest one allowed.

    Raises:
        ConfigError: naming the argument and what it must be.

    Example:
        >>> check_count("window", 2.5, least=1)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: window=2.5: must be a whole number
    """
    if value is not None:
        require_count(name, value, smallest=least)


def check_finite(given: dict[str, Tensor], fail: Callable[[str], None]) -> None:
    """Point out tensors with a NaN or an infinity; a gate may be closed by -inf.

    Args:
        given: tensors by the names of their arguments.
        fail: takes the message.

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
    """Look for a NaN or an infinity; under compilation and vmap, which hide values, find none.

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


def _check_keys(q: Tensor, k: Tensor, shared_heads: bool) -> tuple[int, ...]:
    """Return the shape of the keys, if it is that of the queries but for the number of shared heads."""
    shape, given = tuple(q.shape), tuple(k.shape)
    if given == shape:
        return shape
    divides = len(given) == len(shape) and given[-2] > 0 and shape[-2] % given[-2] == 0
    if shared_heads and divides and given == (*shape[:-2], given[-2], shape[-1]):
        return given
    also = f", or with a divisor of its {shape[-2]} heads" if shared_heads else ""
    raise ValueError(f"k has shape {given}: must be {shape}, as q{also}")


def _check_kind(q: Tensor, *, allow_complex: bool = False, **others: Tensor) -> None:
    if not (q.dtype.is_floating_point or (allow_complex and q.dtype.is_complex)):
        wanted = "a floating-point or complex type" if allow_complex else "a floating-point type"
        raise ValueError(f"q has type {q.dtype}: must be {wanted}")
    for name, x in others.items():
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has type {x.dtype}: must be {q.dtype}, as q")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}: must be on {q.device}, as q")


def _check_range(
    name: str, x: Tensor, allowed: Callable[[Tensor], Tensor], wanted: str, wait: bool
) -> None:
    """Refuse values that are not allowed, as far as they may be looked at."""
    may_look = readable(x) or (wait and not traced(x))
    if may_look and not bool(allowed(x).all()):
        first = x[~allowed(x)].flatten()[0].item()
        raise ValueError(f"{name} has the value {first:g}: must be {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def holds_integers(x: Tensor) -> bool:
    """Return whether the type of a tensor is one of whole numbers, of any size.

    Args:
        x: any tensor.

    Returns:
        False for fractions, complex numbers and truth values.

    Example:
        >>> [holds_integers(torch.tensor(value)) for value in (3, 3.0, True)]
        [True, False, False]
    """
    fractions = x.dtype.is_floating_point or x.dtype.is_complex
    return not fractions and x.dtype != torch.bool


def readable(x: Tensor) -> bool:
    """Return whether looking at a value is possible and free: not on a GPU, in a graph, or under vmap.

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
    """Return whether a tensor's values are hidden, so that nothing can depend on them.

    Args:
        x: any tensor.

    Returns:
        Whether the code is being compiled, or transformed by torch.func, or there are no values at all.

    Example:
        >>> traced(torch.ones(1)), torch.vmap(lambda x: x + traced(x))(torch.zeros(1)).item()
        (False, 1.0)
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    if x.is_meta or isinstance(x, FakeTensor):
        return True
    if torch._C._functorch.is_legacy_batchedtensor(x):  # autograd.grad(is_grads_batched=True)
        return True
    # torch.func.linearize
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def in_graph() -> bool:
    """Return whether a loop becomes one operation of a graph, which would have a copy for every turn.

    Returns:
        Whether the code is being compiled, and no transform of torch.func looks into the loop.

    Example:
        >>> in_graph()
        False
    """
    if not torch.compiler.is_compiling():
        return False
    # A comparison with None is not understood by the compiler here.
    transform = torch._C._functorch.peek_interpreter_stack()
    return not isinstance(transform, torch._C._functorch.CInterpreter)


def differentiated(*arguments: Any) -> bool:
    """Return whether a derivative may be asked for: where it cannot, custom functions need no bookkeeping.

    Args:
        arguments: those of a function; tensors count.

    Returns:
        Whether one of them requires a gradient that is being recorded. Outside of compiled code also
        whether forward mode is on, or values are hidden.

    Example:
        >>> differentiated(torch.ones(1)), differentiated(torch.ones(1, requires_grad=True))
        (False, True)
    """
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    return any(traced(x) for x in tensors) or forward_ad._current_level >= 0


def refuse_nested_forward_mode() -> None:
    """Refuse forward mode inside forward mode, for which PyTorch returns wrong numbers.

    Raises:
        NotImplementedError: `torch.func.jvp` or `jacfwd` runs inside another.

    Example:
        >>> refuse_nested_forward_mode()
    """
    if torch.compiler.is_compiling():
        return
    levels = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1:
        raise NotImplementedError(
            "forward mode inside forward mode (torch.func.jvp, jacfwd): must be torch.func.hessian, "
            "or one of the two in reverse mode"
        )
