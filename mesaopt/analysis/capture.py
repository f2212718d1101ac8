"""Captured activations: what the parts of a model, any model, pass on while it computes."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mesaopt.layers import SelfAttention

Reading = Callable[[nn.Module, Any, Any], Tensor]
"""Takes a module, what it was called with first and what it returned, and gives a tensor."""

ENDS: dict[str, Reading] = {
    "input": lambda _, given, __: _tensor(given),
    "output": lambda _, __, result: _tensor(result),
}
"""What can be asked of any module: the end of a name behind the module's own."""

HEAD_ENDS: dict[str, Reading] = {
    "queries": lambda layer, given, _: _layer(layer).head_inputs(given).q,
    "keys": lambda layer, given, _: _layer(layer).head_inputs(given).k,
    "values": lambda layer, given, _: _layer(layer).head_inputs(given).v,
    "attention": lambda layer, given, _: _layer(layer).attention_map(given),
}
"""What can be asked of a :class:`mesaopt.layers.SelfAttention` besides."""


def capture(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Run a model once and keep what some of its parts gave.

    A name is that of a module, as in :meth:`torch.nn.Module.named_modules`, and means its output; behind it
    may stand an end that says what else: `.input`, `.output`, and of the package's attention layers
    `.queries`, `.keys`, `.values` (behind norms, [batch, time, head, channel]) and `.attention`
    ([batch, head, time, time], see :meth:`mesaopt.layers.SelfAttention.attention_map`). A submodule of that
    name comes first. "input" and "output" alone are those of the model.

    Args:
        model: any module; it stays in the mode it is in, so call `model.eval()` first if it has dropout.
        x: what it is called with.
        names: what to keep; nothing else is held in memory.

    Returns:
        The tensors by name, detached. Of a tuple, which attention modules of PyTorch return, the first.

    Raises:
        ValueError: there is no module of that name (the nearest are listed), it did not run, ran more than
            once, or gave no tensor.

    Example:
        >>> from mesaopt import recipes
        >>> from mesaopt.models import make_model
        >>> model = make_model(recipes.get("tf-3").model)
        >>> found = capture(model, torch.randn(2, 5, 10), ["blocks.0", "blocks.0.mixer.attention"])
        >>> {name: tuple(tensor.shape) for name, tensor in found.items()}
        {'blocks.0': (2, 5, 40), 'blocks.0.mixer.attention': (2, 4, 5, 5)}
        >>> capture(model, torch.randn(2, 5, 10), ["block.0"])
        Traceback (most recent call last):
        ...
        ValueError: names: 'block.0' is no part of the model; nearest: blocks.0, blocks.2, blocks.1
    """
    with torch.no_grad(), watching(model, names) as found:
        model(x)
    for name in names:
        if name not in found:
            raise ValueError(f"names: {name!r} did not run when the model did")
    return {name: found[name] for name in names}


@contextlib.contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what parts of a model give while it runs inside the block, for models called in their own way.

    Args:
        model: any module.
        names: as in :func:`capture`.

    Yields:
        A dictionary that fills as the model runs, once; tensors are detached.

    Raises:
        ValueError: see :func:`capture`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with watching(model, ["0"]) as found:
        ...     _ = model(torch.zeros(2, 3))
        >>> found["0"].shape
        torch.Size([2, 4])
    """
    targets = {name: _find(model, name) for name in names}
    found: dict[str, Tensor] = {}
    busy = False  # computing what is to be kept runs submodules again

    def hook(name: str, read: Reading) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, given: Any, result: Any) -> None:
            nonlocal busy
            if busy:
                return
            if name in found:
                problem = "runs more than once; ask for a part that runs once"
                raise ValueError(f"names: {name!r} {problem}")
            busy = True
            try:
                found[name] = _checked(name, read(module, given[0] if given else None, result))
            finally:
                busy = False

        return keep

    with contextlib.ExitStack() as stack:
        for name, (module, read) in targets.items():
            stack.callback(module.register_forward_hook(hook(name, read)).remove)
        yield found


def captured_names(model: nn.Module) -> list[str]:
    """List all that :func:`capture` can be asked for in a model.

    Args:
        model: any module.

    Returns:
        Names of modules, and of what their attention layers have besides.

    Example:
        >>> captured_names(nn.Sequential(nn.Linear(3, 4)))
        ['input', 'output', '0', '0.input', '0.output']
    """
    names = []
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        names += [name] if name else []
        names += [start + end for end in _ends(module)]
    return names


def _ends(module: nn.Module) -> dict[str, Reading]:
    return ENDS | HEAD_ENDS if isinstance(module, SelfAttention) else ENDS


def _find(model: nn.Module, name: str) -> tuple[nn.Module, Reading]:
    modules = dict(model.named_modules())
    if name and name in modules:
        return modules[name], ENDS["output"]
    owner, _, end = name.rpartition(".")
    if owner in modules and end in _ends(modules[owner]):
        return modules[owner], _ends(modules[owner])[end]
    nearest = difflib.get_close_matches(name, captured_names(model), n=3, cutoff=0.3)
    raise ValueError(
        f"names: {name!r} is no part of the model; nearest: {', '.join(nearest) or 'none'}"
    )


def _layer(module: nn.Module) -> SelfAttention:
    assert isinstance(module, SelfAttention)
    return module


def _tensor(value: Any) -> Any:
    """Take the first of what a module returns several of."""
    return value[0] if isinstance(value, tuple | list) and value else value


def _checked(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"names: {name!r} gave {type(value).__name__}: must be a tensor")
    return value.detach()
