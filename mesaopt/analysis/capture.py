"""Activations of the layers of any model, captured while it runs."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mesaopt.analysis.given import AnyModel, as_model, as_tokens
from mesaopt.analysis.parts import LOCK, checked, find_part, remove
from mesaopt.tasks import Batch

_MODES: "weakref.WeakKeyDictionary[nn.Module, list[bool]]" = weakref.WeakKeyDictionary()
"""Modes that the parts now in evaluation mode come back in, a stack shared by all threads: the last to
leave restores the first."""


def capture(model: AnyModel, x: Tensor | Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Run a model once and return the activations of some of its parts.

    The name of a module, as in :meth:`torch.nn.Module.named_modules`, means its output. An end after the
    name means another tensor: `.input`, `.output`, and for the package's attention layers `.queries`,
    `.keys`, `.values` (after norms, [batch, time, head, channel]) and `.attention` ([batch, head, time,
    time], see :meth:`mesaopt.layers.SelfAttention.attention_map`). A submodule of that name comes first.
    "input" and "output" alone are those of the model. An input is the value of the first parameter of the
    module's `forward`, in whatever order the call names its arguments. Only what this thread runs counts.

    Args:
        model: any module, a Run or its path. The mode does not change, so call `model.eval()` first if it
            has dropout.
        x: its argument, or a batch, whose tokens it gets.
        names: the parts, in a list; nothing else is kept in memory.

    Returns:
        The tensors by name: copies without gradients, made before the model can change them in place. Of a
        tuple, as attention modules of PyTorch return it, the first element.

    Raises:
        TypeError: there is no model, or x is something else.
        ValueError: `names` is a single name, there is no module of that name (the nearest are listed), it
            did not run, ran more than once, gave no tensor, or was called without its first argument.

    Example:
        >>> from mesaopt import recipes
        >>> from mesaopt.models import make_model
        >>> model = make_model(recipes.get("tf-3").model)
        >>> activations = capture(model, torch.randn(2, 5, 10), ["blocks.0", "blocks.0.mixer.attention"])
        >>> {name: tuple(tensor.shape) for name, tensor in activations.items()}
        {'blocks.0': (2, 5, 40), 'blocks.0.mixer.attention': (2, 4, 5, 5)}
        >>> capture(model, torch.randn(2, 5, 10), ["block.0"])
        Traceback (most recent call last):
        ...
        ValueError: names: 'block.0' is no part of the model; nearest: blocks.0, blocks.2, blocks.1
    """
    model, x = as_model(model), as_tokens(x, "x")
    with torch.no_grad(), capturing(model, names) as activations:
        model(x)
    for name in names:
        if name not in activations:
            raise ValueError(_did_not_run(f"names: {name!r}"))
    return {name: activations[name] for name in names}


@contextlib.contextmanager
def capturing(model: AnyModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture activations while a model runs inside the block, for models with other arguments.

    Args:
        model: any module, a Run or its path; its mode does not change.
        names: as in :func:`capture`.

    Yields:
        A dictionary that fills as the model runs, once; tensors are copies without gradients.

    Raises:
        ValueError: see :func:`capture`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with capturing(model, ["0"]) as activations:
        ...     _ = model(torch.zeros(2, 3))
        >>> activations["0"].shape
        torch.Size([2, 4])
    """
    model = as_model(model)
    parts = {name: find_part(model, name, "names") for name in distinct(names)}
    activations: dict[str, Tensor] = {}
    busy = False  # computing a tensor runs submodules again

    def keep(name: str, compute: Callable[[], Any]) -> None:
        nonlocal busy
        if busy:
            return
        if name in activations:
            problem = "runs more than once; ask for a part that runs once"
            raise ValueError(f"names: {name!r} {problem}")
        busy = True
        try:
            with torch.no_grad():
                activations[name] = checked(parts[name].asked, compute()).detach().clone()
        finally:
            busy = False

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            handle = part.on_run(lambda compute, name=name: keep(name, compute))
            stack.callback(remove, handle)
        yield activations


def up_to(model: AnyModel, name: str) -> Callable[[Tensor], Tensor]:
    """Cut a model off after one of its parts.

    Later parts are not computed. Gradients flow through the part and all before it.

    Args:
        model: any module, a Run or its path; its mode does not change.
        name: of a part, as in :func:`capture`. If it runs several times, the first one counts.

    Returns:
        The function from the model's input to the activation of the part. It raises ValueError where the
        part does not run or its output is no tensor.

    Raises:
        ValueError: there is no part of that name.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> first_half, x = up_to(model, "1"), torch.randn(5, 3)
        >>> torch.equal(first_half(x), model[1](model[0](x)))
        True
    """
    module = as_model(model)
    part = find_part(module, name, "name")

    def stop(compute: Callable[[], Any]) -> None:
        raise _Reached(compute())

    def run(x: Tensor) -> Tensor:
        handle = part.on_run(stop)
        try:
            module(x)
        except _Reached as reached:
            return checked(part.asked, reached.value)
        finally:
            remove(handle)
        raise ValueError(_did_not_run(part.asked))

    return run


@contextlib.contextmanager
def evaluating(model: AnyModel) -> Iterator[None]:
    """Put a model into evaluation mode for a while, so that dropout and the like do nothing.

    Args:
        model: any module; each of its parts comes back in the mode it was in.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> [part.training for part in model]
        [True, False]
    """
    model = as_model(model)
    parts = list(model.modules())
    with LOCK:
        for part in parts:
            _MODES.setdefault(part, []).append(part.training)
        model.eval()
    try:
        yield
    finally:
        with LOCK:
            for part in parts:
                part.training = _MODES[part].pop()


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Turn autograd on for a while, whatever the caller has turned off; a decorator too.

    Example:
        >>> with torch.inference_mode(), differentiating():
        ...     torch.ones(1, requires_grad=True).exp().requires_grad
        True
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def check_weights(model: nn.Module) -> None:
    """Refuse weights that autograd cannot save.

    Args:
        model: any module.

    Raises:
        ValueError: a weight was made inside of `torch.inference_mode`.

    Example:
        >>> with torch.inference_mode():
        ...     model = nn.Linear(2, 2)
        >>> check_weights(model)
        Traceback (most recent call last):
        ...
        ValueError: model: 'weight' was made inside of torch.inference_mode: must be made outside
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_inference():
            made = "was made inside of torch.inference_mode: must be made outside"
            raise ValueError(f"model: {name!r} {made}")


def like_weights(model: nn.Module, x: Tensor) -> Tensor:
    """Move a tensor to the device and type of a model's weights, if it has any.

    Those of its first matrix: numbers such as ridges may keep single precision where weights are in half.

    Args:
        model: any module.
        x: real; complex numbers and integers keep their type.

    Returns:
        The tensor, or a copy.

    Example:
        >>> like_weights(nn.Linear(2, 2).double(), torch.zeros(3)).dtype
        torch.float64
    """
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    weight = next((weight for weight in weights if weight.dim() > 1), (*weights, x)[0])
    return x.to(weight) if x.is_floating_point() else x.to(weight.device)


def distinct(names: Sequence[str]) -> list[str]:
    """List names, each once.

    Args:
        names: several, in a list or the like.

    Returns:
        The names in their order.

    Raises:
        ValueError: it is a single name, whose letters would be read as names.

    Example:
        >>> distinct(["blocks.1", "blocks.0", "blocks.1"])
        ['blocks.1', 'blocks.0']
    """
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: must be a list of names, such as [{names!r}]")
    return list(dict.fromkeys(names))


class _Reached(Exception):
    """Raised to stop a model after the part that was asked for."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


def _did_not_run(asked: str) -> str:
    return f"{asked} did not run when the model did"
