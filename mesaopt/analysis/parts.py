"""The parts of any model: how they are named, and hooks that act when one of them runs."""

import difflib
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mesaopt.analysis.given import AnyModel, as_model
from mesaopt.layers import SelfAttention

ReadInput = Callable[[Any, Any], Any]
"""From a module and its first argument to a tensor."""


def _given(_: Any, given: Any) -> Any:
    return given


INPUTS: dict[str, ReadInput] = {"input": _given}
"""Tensors computed from the input of any module, by the end of a name after that of the module."""

HEAD_INPUTS: dict[str, ReadInput] = {
    "queries": lambda layer, given: layer.head_inputs(given).q,
    "keys": lambda layer, given: layer.head_inputs(given).k,
    "values": lambda layer, given: layer.head_inputs(given).v,
    "attention": lambda layer, given: layer.attention_map(given),
}
"""Further tensors computed from the input of a :class:`mesaopt.layers.SelfAttention`."""

LOCK = threading.RLock()
"""Guards hooks and modes, which torch does not."""


def captured_names(model: AnyModel) -> list[str]:
    """List the names that :func:`mesaopt.analysis.capture` knows in a model.

    Args:
        model: any module.

    Returns:
        Names of modules, with their ends.

    Example:
        >>> captured_names(nn.Sequential(nn.Linear(3, 4)))
        ['input', 'output', '0', '0.input', '0.output']
    """
    names = []
    for name, module in as_model(model).named_modules():
        if type(module).forward is nn.Module.forward:
            continue  # a list of modules never runs
        start = f"{name}." if name else ""
        names += [name] if name else []
        names += [start + end for end in _ends(module)]
    return list(dict.fromkeys(names))  # a submodule may be called like an end


class Part(NamedTuple):
    """The tensor of a name: computed from the input of a module, or its output if `read` is None."""

    asked: str  # argument and name, for errors
    module: nn.Module
    read: ReadInput | None

    def on_run(self, receive: Callable[[Callable[[], Any]], None]) -> RemovableHandle:
        """Call `receive` whenever this thread runs the module, with a function that computes the tensor."""
        asked, read, thread = self.asked, self.read, threading.get_ident()

        def after(_: nn.Module, __: Any, result: Any) -> None:
            if threading.get_ident() == thread:
                receive(lambda: first_of(result))

        def before(module: nn.Module, given: tuple, named: Mapping[str, Any] = {}) -> None:
            if threading.get_ident() == thread:
                assert read is not None
                keyword = _keyword(asked, module, given, named)
                first = given[0] if given else named.get(keyword)
                receive(lambda: read(module, first))

        with LOCK:
            if read is None:
                return self.module.register_forward_hook(after)
            # Before the module runs, as it may change its input in place.
            return self.module.register_forward_pre_hook(before, with_kwargs=True)

    def on_run_replace(self, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Replace the tensor by `change` of it whenever this thread runs the module."""
        asked, thread = self.asked, threading.get_ident()

        def after(_: nn.Module, __: Any, result: Any) -> Any:
            if threading.get_ident() != thread:
                return result
            return _with_first(result, change(checked(asked, first_of(result))))

        def before(module: nn.Module, given: tuple, named: dict[str, Any]) -> tuple:
            if threading.get_ident() != thread:
                return given, named
            keyword = _keyword(asked, module, given, named)
            changed = change(checked(asked, given[0] if given else named.get(keyword)))
            if given:
                return (changed, *given[1:]), named
            return given, {**named, keyword: changed}

        if self.read not in (None, _given):
            wanted = "must be the input or the output of a module"
            raise ValueError(f"{asked} can be captured, not replaced: {wanted}")
        with LOCK:
            if self.read is None:
                return self.module.register_forward_hook(after)
            return self.module.register_forward_pre_hook(before, with_kwargs=True)


def _ends(module: nn.Module) -> dict[str, ReadInput | None]:
    heads = HEAD_INPUTS if isinstance(module, SelfAttention) else {}
    return {**INPUTS, "output": None, **heads}


def find_part(model: nn.Module, name: str, argument: str) -> Part:
    """Find the part of a name, or list the nearest names."""
    modules, asked = dict(model.named_modules(remove_duplicate=False)), f"{argument}: {name!r}"
    if name and name in modules:
        return Part(asked, modules[name], None)
    owner, _, end = name.rpartition(".")
    if owner in modules and end in _ends(modules[owner]):
        return Part(asked, modules[owner], _ends(modules[owner])[end])
    nearest = difflib.get_close_matches(name, captured_names(model), n=3, cutoff=0.3)
    raise ValueError(f"{asked} is no part of the model; nearest: {', '.join(nearest) or 'none'}")


def remove(handle: RemovableHandle) -> None:
    """Take a hook off its module."""
    with LOCK:
        handle.remove()


def _keyword(asked: str, module: nn.Module, given: tuple, named: Mapping[str, Any]) -> str:
    """Find the name by which a call of a module gave the first parameter of its forward, if by name."""
    if given:
        return ""
    first = _first_parameter(module)
    if first is not None and first.kind is not first.VAR_KEYWORD:
        if first.name not in named:
            keywords = ", ".join(named) or "nothing"
            raise ValueError(f"{asked} was called with {keywords}: must be with {first.name!r}")
        return first.name
    if len(named) > 1:
        keywords = ", ".join(named)
        raise ValueError(f"{asked} was called with {keywords}: must be with one, to tell its input")
    return next(iter(named), "")


def _first_parameter(module: nn.Module) -> inspect.Parameter | None:
    """Give the first parameter of a module's forward that has a name, if that can be known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return None  # of compiled code
    return next((p for p in parameters if p.kind is not p.VAR_POSITIONAL), None)


def first_of(value: Any) -> Any:
    """Take the first of several outputs."""
    return value[0] if isinstance(value, tuple | list) and value else value


def _with_first(value: Any, first: Tensor) -> Any:
    """Replace the first of several outputs, in the same kind of tuple or list."""
    if not isinstance(value, tuple | list):
        return first
    together = [first, *value[1:]]
    return type(value)(*together) if hasattr(value, "_fields") else type(value)(together)


def checked(asked: str, value: Any) -> Tensor:
    """Refuse what is no tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{asked} gave {type(value).__name__}: must be a tensor")
    return value
