"""Activation patching: a model that runs with the activations of some of its parts replaced."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mesaopt.analysis.given import AnyModel, as_model, as_tokens
from mesaopt.analysis.parts import Part, find_part, remove
from mesaopt.config import require_count
from mesaopt.tasks import Batch

Replacement = float | Tensor | Callable[[Tensor], Tensor]
"""The replacement of an activation: a number, a tensor, or a function of the activation."""


def patch(
    model: AnyModel,
    x: Tensor | Batch,
    replacements: Mapping[str, Replacement],
    *,
    positions: Sequence[int] | None = None,
) -> Any:
    """Run a model once with the activations of some of its parts replaced.

    Names are those of :func:`mesaopt.analysis.capture`: the name of a module means its output, `.input`
    after it means its input. All that the model computes from the activation afterwards follows from the
    replacement. Put an activation of another run there to learn what it carries from that run.

    Args:
        model: any module. Its mode does not change, so call `model.eval()` first if it has dropout.
        x: its argument.
        replacements: by name of the part: a number, a tensor that broadcasts to the activation's shape, or
            a function from the activation to either. Of a tuple, as attention modules of PyTorch return it,
            the first element is replaced.
        positions: places along the second dimension of the activation, [batch, time, ...], counted from 1;
            elsewhere it stays. All if not given.

    Returns:
        The output of the model, without gradients; inside of :func:`patching` it has some.

    Raises:
        ValueError: there is no part of that name (the nearest are listed), it can be captured only, or did
            not run; a replacement has another shape; or there is no such position.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.randn(5, 7, 3)
        >>> bool((patch(model, x, {"1": 0.0}) == model[2].bias).all())
        True
        >>> mean = lambda activation: activation.mean(0, keepdim=True)
        >>> changed = patch(model, x, {"1": mean}, positions=[7]) != model(x)
        >>> [t for t in range(1, 8) if changed[:, t - 1].any()]
        [7]
        >>> patch(model, x, {"1.out": 0.0})
        Traceback (most recent call last):
        ...
        ValueError: replacements: '1.out' is no part of the model; nearest: 1.output, 1.input, 2.output
    """
    model, x = as_model(model), as_tokens(x, "x")
    with torch.no_grad(), patching(model, replacements, positions=positions):
        return model(x)


@contextlib.contextmanager
def patching(
    model: AnyModel,
    replacements: Mapping[str, Replacement],
    *,
    positions: Sequence[int] | None = None,
) -> Iterator[None]:
    """Replace activations while a model runs inside the block, for models with other arguments.

    Every run of a part that this thread makes is patched; gradients flow through replacements and around
    them. At the end of the block, also by an exception, the model is as it was.

    Args:
        model: any module; its mode does not change.
        replacements: as in :func:`patch`.
        positions: as in :func:`patch`.

    Raises:
        ValueError: see :func:`patch`.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
        >>> with patching(model, {"1": 0.0}):
        ...     model(torch.ones(1, 3)).tolist()
        [[0.0, 0.0]]
    """
    model = as_model(model)
    parts = {name: find_part(model, name, "replacements") for name in replacements}
    for position in positions or ():
        require_count("positions", position, smallest=1)
    ran: set[str] = set()

    def changed(name: str, activation: Tensor) -> Tensor:
        ran.add(name)
        value = _value_of(parts[name], replacements[name], activation)
        if positions is None:
            return value.expand_as(activation).clone()
        return torch.where(_mask(parts[name], activation, positions), value, activation)

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            handle = part.on_run_replace(lambda activation, name=name: changed(name, activation))
            stack.callback(remove, handle)
        yield
    for name in replacements:
        if name not in ran:
            raise ValueError(f"{parts[name].asked} did not run when the model did")


def _value_of(part: Part, replacement: Replacement, activation: Tensor) -> Tensor:
    """Evaluate a replacement, and refuse another shape."""
    given = replacement(activation) if callable(replacement) else replacement
    value = torch.as_tensor(given).to(activation)
    shape, wanted = tuple(value.shape), tuple(activation.shape)
    trailing = wanted[len(wanted) - len(shape) :] if len(shape) <= len(wanted) else None
    if trailing is None or any(a not in (1, b) for a, b in zip(shape, trailing, strict=True)):
        raise ValueError(
            f"{part.asked} is replaced by shape {shape}: must be {wanted} or broadcast to it"
        )
    return value


def _mask(part: Part, activation: Tensor, positions: Sequence[int]) -> Tensor:
    """Mark positions [1, time, 1, ...] of an activation [batch, time, ...]."""
    if activation.dim() < 2:
        shape = tuple(activation.shape)
        raise ValueError(f"{part.asked} gives shape {shape}: must be [batch, time, ...]")
    length = activation.shape[1]
    mask = torch.zeros(length, dtype=torch.bool)
    for position in positions:
        if position > length:
            raise ValueError(f"positions={position}: must be between 1 and {length}")
        mask[position - 1] = True
    return mask.view(1, length, *[1] * (activation.dim() - 2)).to(activation.device)
