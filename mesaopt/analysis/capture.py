"""Activations of the layers of any model, captured while it runs."""

import contextlib
import difflib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mesaopt.layers import SelfAttention

ReadInput = Callable[[Any, Any], Any]
"""From a module and its first argument to a tensor."""

INPUTS: dict[str, ReadInput] = {"input": lambda _, given: given}
"""Tensors computed from the input of any module, by the end of a name after that of the module."""

HEAD_INPUTS: dict[str, ReadInput] = {
    "queries": lambda layer, given: layer.head_inputs(given).q,
    "keys": lambda layer, given: layer.head_inputs(given).k,
    "values": lambda layer, given: layer.head_inputs(given).v,
    "attention": lambda layer, given: layer.attention_map(given),
}
"""Further tensors computed from the input of a :class:`mesaopt.layers.SelfAttention`."""

_LOCK = threading.RLock()  # of hooks and modes, which torch does not guard
_MODES: "weakref.WeakKeyDictionary[nn.Module, list[bool]]" = weakref.WeakKeyDictionary()
"""Modes that the parts now in evaluation mode come back in, a stack shared by all threads: the last to
leave restores the first."""


def capture(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Run a model once and return the activations of some of its parts.

    The name of a module, as in :meth:`torch.nn.Module.named_modules`, means its output. An end after the
    name means another tensor: `.input`, `.output`, and for the package's attention layers `.queries`,
    `.keys`, `.values` (after norms, [batch, time, head, channel]) and `.attention` ([batch, head, time,
    time], see :meth:`mesaopt.layers.SelfAttention.attention_map`). A submodule of that name comes first.
    "input" and "output" alone are those of the model. An input is the value of the first parameter of the
    module's `forward`, in whatever order the call names its arguments. Only what this thread runs counts.

    Args:
        model: any module. Its mode does not change, so call `model.eval()` first if it has dropout.
        x: its argument.
        names: the parts, in a list; nothing else is kept in memory.

    Returns:
        The tensors by name: copies without gradients, made before the model can change them in place. Of a
        tuple, as attention modules of PyTorch return it, the first element.

    Raises:
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
    with torch.no_grad(), capturing(model, names) as activations:
        model(x)
    for name in names:
        if name not in activations:
            raise ValueError(_did_not_run(f"names: {name!r}"))
    return {name: activations[name] for name in names}


@contextlib.contextmanager
def capturing(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture activations while a model runs inside the block, for models with other arguments.

    Args:
        model: any module.
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
    parts = {name: _find(model, name, "names") for name in distinct(names)}
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
                activations[name] = _checked(parts[name].asked, compute()).detach().clone()
        finally:
            busy = False

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            handle = part.on_run(lambda compute, name=name: keep(name, compute))
            stack.callback(_remove, handle)
        yield activations


def up_to(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """Cut a model off after one of its parts.

    Later parts are not computed. Gradients flow through the part and all before it.

    Args:
        model: any module.
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
    part = _find(model, name, "name")

    def stop(compute: Callable[[], Any]) -> None:
        raise _Reached(compute())

    def run(x: Tensor) -> Tensor:
        handle = part.on_run(stop)
        try:
            model(x)
        except _Reached as reached:
            return _checked(part.asked, reached.value)
        finally:
            _remove(handle)
        raise ValueError(_did_not_run(part.asked))

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
    parts = list(model.modules())
    with _LOCK:
        for part in parts:
            _MODES.setdefault(part, []).append(part.training)
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
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

    Args:
        model: any module.
        x: real; complex numbers and integers keep their type.

    Returns:
        The tensor, or a copy.

    Example:
        >>> like_weights(nn.Linear(2, 2).double(), torch.zeros(3)).dtype
        torch.float64
    """
    weight = next((w for w in model.parameters() if w.is_floating_point()), x)
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


def captured_names(model: nn.Module) -> list[str]:
    """List the names that :func:`capture` knows in a model.

    Args:
        model: any module.

    Returns:
        Names of modules, with their ends.

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
    """The tensor of a name: computed from the input of a module, or its output if `read` is None."""

    asked: str  # argument and name, for errors
    module: nn.Module
    read: ReadInput | None

    def on_run(self, receive: Callable[[Callable[[], Any]], None]) -> RemovableHandle:
        """Call `receive` whenever this thread runs the module, with a function that computes the tensor."""
        asked, read, thread = self.asked, self.read, threading.get_ident()

        def after(_: nn.Module, __: Any, result: Any) -> None:
            if threading.get_ident() == thread:
                receive(lambda: _first(result))

        def before(module: nn.Module, given: tuple, named: Mapping[str, Any] = {}) -> None:
            if threading.get_ident() == thread:
                assert read is not None
                receive(lambda: read(module, _argument(asked, module, given, named)))

        with _LOCK:
            if read is None:
                return self.module.register_forward_hook(after)
            # Before the module runs, as it may change its input in place.
            return self.module.register_forward_pre_hook(before, with_kwargs=True)


class _Reached(Exception):
    """Raised to stop a model after the part that was asked for."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


def _ends(module: nn.Module) -> dict[str, ReadInput | None]:
    heads = HEAD_INPUTS if isinstance(module, SelfAttention) else {}
    return {**INPUTS, "output": None, **heads}


def _find(model: nn.Module, name: str, argument: str) -> _Part:
    """Find the part of a name, or list the nearest names."""
    modules, asked = dict(model.named_modules(remove_duplicate=False)), f"{argument}: {name!r}"
    if name and name in modules:
        return _Part(asked, modules[name], None)
    owner, _, end = name.rpartition(".")
    if owner in modules and end in _ends(modules[owner]):
        return _Part(asked, modules[owner], _ends(modules[owner])[end])
    nearest = difflib.get_close_matches(name, captured_names(model), n=3, cutoff=0.3)
    raise ValueError(f"{asked} is no part of the model; nearest: {', '.join(nearest) or 'none'}")


def _remove(handle: RemovableHandle) -> None:
    with _LOCK:
        handle.remove()


def _argument(asked: str, module: nn.Module, given: tuple, named: Mapping[str, Any]) -> Any:
    """Find the value of the first parameter of a module's forward in a call of it."""
    if given:
        return given[0]
    first = _first_parameter(module)
    if first is not None and first.kind is not first.VAR_KEYWORD:
        if first.name not in named:
            keywords = ", ".join(named) or "nothing"
            raise ValueError(f"{asked} was called with {keywords}: must be with {first.name!r}")
        return named[first.name]
    if len(named) > 1:
        keywords = ", ".join(named)
        raise ValueError(f"{asked} was called with {keywords}: must be with one, to tell its input")
    return next(iter(named.values()), None)


def _first_parameter(module: nn.Module) -> inspect.Parameter | None:
    """Give the first parameter of a module's forward that has a name, if that can be known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return None  # of compiled code
    return next((p for p in parameters if p.kind is not p.VAR_POSITIONAL), None)


def _first(value: Any) -> Any:
    """Take the first of several outputs."""
    return value[0] if isinstance(value, tuple | list) and value else value


def _checked(asked: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{asked} gave {type(value).__name__}: must be a tensor")
    return value


def _did_not_run(asked: str) -> str:
    return f"{asked} did not run when the model did"
