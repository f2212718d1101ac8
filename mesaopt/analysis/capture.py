"""Captured activations: what the parts of a model, any model, pass on while it computes."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mesaopt.layers import SelfAttention

Reading = Callable[[Any, Any], Any]
"""Takes a module and what it is called with first, and gives a tensor."""

INPUTS: dict[str, Reading] = {"input": lambda _, given: given}
"""What can be read off the input of any module: the end of a name behind the module's own."""

HEAD_INPUTS: dict[str, Reading] = {
    "queries": lambda layer, given: layer.head_inputs(given).q,
    "keys": lambda layer, given: layer.head_inputs(given).k,
    "values": lambda layer, given: layer.head_inputs(given).v,
    "attention": lambda layer, given: layer.attention_map(given),
}
"""What can be read off the input of a :class:`mesaopt.layers.SelfAttention` besides."""


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
        names: what to keep, in a list; nothing else is held in memory.

    Returns:
        The tensors by name: copies, without gradients, as they were at that moment, whatever the model
        does to them in place later. Of a tuple, which attention modules of PyTorch return, the first.

    Raises:
        ValueError: `names` is a single name, there is no module of that name (the nearest are listed), it
            did not run, ran more than once, or gave no tensor.

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
            raise ValueError(_did_not_run(f"names: {name!r}"))
    return {name: found[name] for name in names}


@contextlib.contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what parts of a model give while it runs inside the block, for models called in their own way.

    Args:
        model: any module.
        names: as in :func:`capture`.

    Yields:
        A dictionary that fills as the model runs, once; tensors are copies without gradients.

    Raises:
        ValueError: see :func:`capture`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with watching(model, ["0"]) as found:
        ...     _ = model(torch.zeros(2, 3))
        >>> found["0"].shape
        torch.Size([2, 4])
    """
    parts = {name: _find(model, name, "names") for name in distinct(names)}
    found: dict[str, Tensor] = {}
    busy = False  # computing what is to be kept runs submodules again

    def keep(name: str, compute: Callable[[], Any]) -> None:
        nonlocal busy
        if busy:
            return
        if name in found:
            problem = "runs more than once; ask for a part that runs once"
            raise ValueError(f"names: {name!r} {problem}")
        busy = True
        try:
            with torch.no_grad():
                found[name] = _checked(f"names: {name!r}", compute()).detach().clone()
        finally:
            busy = False

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            handle = part.on_run(lambda compute, name=name: keep(name, compute))
            stack.callback(handle.remove)
        yield found


def up_to(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """Cut a model off behind one of its parts.

    What comes behind the part is not computed, and gradients flow through what comes before it.

    Args:
        model: any module.
        name: of a part, as in :func:`capture`. If it runs several times, the first one counts.

    Returns:
        The function from the model's input to what the part gives; it raises ValueError where the part
        does not run or gives no tensor.

    Raises:
        ValueError: there is no part of that name.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> first_half, x = up_to(model, "1"), torch.randn(5, 3)
        >>> torch.equal(first_half(x), model[1](model[0](x)))
        True
    """
    part = _find(model, name, "name")

    def stop(compute: Callable[[], Any]) -> None:
        raise _Reached(compute())

    def run(x: Tensor) -> Tensor:
        handle = part.on_run(stop)
        try:
            model(x)
        except _Reached as reached:
            return _checked(f"name: {name!r}", reached.value)
        finally:
            handle.remove()
        raise ValueError(_did_not_run(f"name: {name!r}"))

    return run


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def beside(model: nn.Module, x: Tensor) -> Tensor:
    """Bring a tensor to where a model's weights are, in their type; as it is if there are none.

    Args:
        model: any module.
        x: real.

    Returns:
        The tensor, or a copy.

    Example:
        >>> beside(nn.Linear(2, 2).double(), torch.zeros(3)).dtype
        torch.float64
    """
    return x.to(next((w for w in model.parameters() if w.is_floating_point()), x))


def distinct(names: Sequence[str]) -> list[str]:
    """List names, each once.

    Args:
        names: several, in a list or the like.

    Returns:
        The names in their order.

    Raises:
        ValueError: it is a single name, whose letters would be taken for names.

    Example:
        >>> distinct(["blocks.1", "blocks.0", "blocks.1"])
        ['blocks.1', 'blocks.0']
    """
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: must be a list of names, such as [{names!r}]")
    return list(dict.fromkeys(names))


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
        if type(module).forward is nn.Module.forward:
            continue  # a list of modules never runs
        start = f"{name}." if name else ""
        names += [name] if name else []
        names += [start + end for end in _ends(module)]
    return list(dict.fromkeys(names))  # a submodule may be called like an end


class _Part(NamedTuple):
    """Where a name points: to what is read off a module's input, or to its output if that is None."""

    module: nn.Module
    read: Reading | None

    def on_run(self, tell: Callable[[Callable[[], Any]], None]) -> RemovableHandle:
        """Call `tell` whenever the module runs, with a function that computes what is asked for."""
        read = self.read
        if read is None:
            return self.module.register_forward_hook(
                lambda _, __, result: tell(lambda: _first(result))
            )

        return self.module.register_forward_pre_hook(  # it may change its input in place
            lambda module, given, named, read=read: tell(
                lambda: read(module, next(iter((*given, *named.values())), None))
            ),
            with_kwargs=True,
        )


class _Reached(Exception):
    """Raised to stop a model behind the part that was asked for."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


def _ends(module: nn.Module) -> dict[str, Reading | None]:
    heads = HEAD_INPUTS if isinstance(module, SelfAttention) else {}
    return {**INPUTS, "output": None, **heads}


def _find(model: nn.Module, name: str, argument: str) -> _Part:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name and name in modules:
        return _Part(modules[name], None)
    owner, _, end = name.rpartition(".")
    if owner in modules and end in _ends(modules[owner]):
        return _Part(modules[owner], _ends(modules[owner])[end])
    nearest = difflib.get_close_matches(name, captured_names(model), n=3, cutoff=0.3)
    raise ValueError(
        f"{argument}: {name!r} is no part of the model; nearest: {', '.join(nearest) or 'none'}"
    )


def _first(value: Any) -> Any:
    """Take the first of what a module returns several of."""
    return value[0] if isinstance(value, tuple | list) and value else value


def _checked(asked: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{asked} gave {type(value).__name__}: must be a tensor")
    return value


def _did_not_run(asked: str) -> str:
    return f"{asked} did not run when the model did"
