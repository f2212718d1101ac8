"""API pages: what a module offers, in the order of its files, from the docstrings."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import mesaopt

MODULES = (
    "ops",
    "layers",
    "models",
    "tasks",
    "corpus",
    "theory",
    "theory.ar_process",
    "analysis",
    "analysis.diagnosis",
    "training",
    "sweeps",
    "config",
    "recipes",
    "zoo",
    "released",
    "papers.reproduce",
    "papers.claims",
    "report",
    "hf",
    "display",
    "progress",
    "workers",
    "errors",
)
"""Modules that have a page: those with an `__all__`."""

_SPAN = re.compile(r"(:[\w:]+:`[^`]+`|`[^`]+`)")
_ITEM = re.compile(r"(\s*(?:[-*]|\d+\.) )?(.*)", re.DOTALL)


def public_names(module: ModuleType) -> list[str]:
    """Give the public names of a module, without those that the module around it has on its page."""
    around = module.__name__.rpartition(".")[0]
    theirs = getattr(sys.modules[around], "__all__", ()) if around != "mesaopt" else ()
    return [name for name in module.__all__ if name not in theirs]


@functools.cache
def _constants(package: str) -> dict[str, tuple[str, str]]:
    """Give the constants of a package by name, each with its file's module and its docstring."""
    found: dict[str, tuple[str, str]] = {}
    for name in _files(package):
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        for constant, text in attribute_docs(tree.body).items():
            found.setdefault(constant, (name, text))
    return found


def _files(package: str) -> Iterator[str]:
    """Give the names of the modules of a package, itself first."""
    module = sys.modules.get(package) or importlib.import_module(package)
    yield package
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}."):
        yield info.name


def attribute_docs(body: list[ast.stmt]) -> dict[str, str]:
    """Give the names that are assigned in a module or a class, with the strings below them."""
    docs: dict[str, str] = {}
    for statement, below in zip(body, [*body[1:], None], strict=True):
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = inspect.cleandoc(str(below.value.value))
        docs |= {target.id: text for target in targets if isinstance(target, ast.Name)}
    return docs


def groups(package: str) -> dict[str, list[str]]:
    """Group the public names of a package by the file that they are from, in the order of `__all__`.

    Args:
        package: such as "mesaopt.ops".

    Returns:
        Names by the module of their file.
    """
    module, found = importlib.import_module(package), {}
    for name in public_names(module):
        home = getattr(getattr(module, name), "__module__", "")
        if not home.startswith(f"{package}.") and home != package:
            home = _constants(package).get(name, (package, ""))[0]
        found.setdefault(home, []).append(name)
    return {home: found[home] for home in _files(package) if home in found}


def site_page(package: str) -> str:
    """Write the part of an API page that Sphinx fills from docstrings.

    Args:
        package: such as "mesaopt.ops".

    Returns:
        Markdown with reStructuredText in it.
    """
    module, by_file = importlib.import_module(package), groups(package)
    names = [name for group in by_file.values() for name in group]
    lines = [f".. module:: {package}", "", *escape((module.__doc__ or "").splitlines()), ""]
    lines += [".. list-table::", "   :class: names", "   :widths: auto", ""]
    for name in names:
        lines += [f"   * - :obj:`{name}`", f"     - {escape([summary(package, name)])[0]}"]
    parts = [_rst(lines)]
    for home, group in by_file.items():
        lines = [f".. currentmodule:: {package}", ""]
        if len(by_file) > 1:
            parts.append(f"## {home.removeprefix(package).strip('.') or package}")
            if home != package:
                lines += [*escape(_first_paragraph(home)), ""]
        for name in group:
            lines += [*_directive(package, name), ""]
        parts.append(_rst(lines))
    return "\n\n".join(parts)


def text_page(package: str) -> str:
    """Write an API page as plain Markdown: signatures and docstrings as they are.

    Args:
        package: such as "mesaopt.ops".

    Returns:
        Markdown.
    """
    module = importlib.import_module(package)
    parts = [inspect.cleandoc(module.__doc__ or "")]
    for name in (name for group in groups(package).values() for name in group):
        thing = getattr(module, name)
        parts.append(f"## {package}.{name}")
        if inspect.isclass(thing) or _is_function(thing):
            parts.append(f"```python\n{_signature(name, thing)}\n```")
            parts.append(inspect.getdoc(thing) or "")
            parts += _methods(thing)
        else:
            parts.append(_constants(package).get(name, ("", ""))[1])
    return "\n\n".join(part for part in parts if part)


def summary(package: str, name: str) -> str:
    """Give the first line of the docstring of a public name."""
    thing = getattr(importlib.import_module(package), name)
    if inspect.isclass(thing) or _is_function(thing):
        text = inspect.getdoc(thing) or ""
    else:
        text = _constants(package).get(name, ("", ""))[1]
    return " ".join(text.split("\n\n")[0].splitlines())


def escape(lines: list[str]) -> list[str]:
    """Keep the text of a docstring from being taken for marks of reStructuredText.

    `|x|`, `x*` and `x_` are mathematics here; `x` in single backticks is code. Examples stay as they are.

    Args:
        lines: of a docstring.

    Returns:
        As many lines, in reStructuredText.
    """
    escaped, example = [], False
    for line in lines:
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        escaped.append(line if example else _escape_line(line))
    return escaped


def _escape_line(line: str) -> str:
    match = _ITEM.match(line)
    assert match
    bullet, text = match[1] or "", match[2]
    parts = _SPAN.split(text)
    for i in range(0, len(parts), 2):
        plain = re.sub(r"([\\*|])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", plain)
    return bullet + "".join(parts)


def on_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Prepare a docstring for Sphinx."""
    # The docstring of a constant is in its directive; what Python gives is that of its type.
    lines[:] = [] if what == "data" else escape(lines)
    if what in ("attribute", "property") and lines and ": " in lines[0]:
        lines.insert(0, "\\")  # nothing; else what stands before the colon is taken for a type


def on_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str | None] | None:
    """Show a signature with the annotations of the code, not with what they stand for.

    Names of this package are written in full, so that each leads to its own page; Sphinx shows their end.
    """
    if what == "class":
        if getattr(thing, "_is_protocol", False):
            return "", None
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            return _names_and_defaults(thing), None
        thing = vars(thing).get("__init__")
    node = _definition(thing)
    if node is None:
        return None
    _write_in_full(node, inspect.unwrap(getattr(thing, "__func__", thing)).__globals__)
    if what != "function" and node.args.args and "staticmethod" not in _decorators(node):
        node.args.args = node.args.args[1:]  # self
    value = ast.unparse(node.returns) if node.returns and what != "class" else None
    return f"({ast.unparse(node.args)})", value


class _InFull(ast.NodeTransformer):
    """Writes the public names of this package in full."""

    def __init__(self, names: dict[str, Any]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        home = _homes().get((node.id, id(self.names.get(node.id))), node.id)
        return ast.parse(home, mode="eval").body


def _write_in_full(node: ast.FunctionDef, names: dict[str, Any]) -> None:
    """Write the names in the annotations of a function in full."""
    write = _InFull(names).visit
    for part in ast.walk(node.args):
        if isinstance(part, ast.arg) and part.annotation:
            part.annotation = write(part.annotation)
    node.returns = node.returns and write(node.returns)


@functools.cache
def _homes() -> dict[tuple[str, int], str]:
    """Give where each public name is described, by the name and what it stands for."""
    return {
        (name, id(getattr(module, name))): f"{module.__name__}.{name}"
        for module in map(importlib.import_module, (f"mesaopt.{name}" for name in MODULES))
        for name in public_names(module)
    }


def _names_and_defaults(thing: type) -> str:
    """Write the arguments of a dataclass; their types are with its attributes."""
    signature = inspect.signature(thing)
    parameters = []
    for parameter in signature.parameters.values():
        plain = parameter.replace(annotation=parameter.empty)
        made = "factory" in repr(plain.default)
        parameters.append(plain.replace(default=...) if made else plain)
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return text.replace("Ellipsis", "...")


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def _is_function(thing: Any) -> bool:
    """Say whether something is a function, or one that `functools.cache` has wrapped."""
    return inspect.isfunction(inspect.unwrap(thing))


def _definition(thing: Any) -> ast.FunctionDef | None:
    """Parse the code of a function; None of what is no function, or is made by a decorator of a class."""
    function = inspect.unwrap(getattr(thing, "__func__", thing))
    if not inspect.isfunction(function):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _directive(package: str, name: str) -> list[str]:
    thing = getattr(sys.modules[package], name)
    if inspect.isclass(thing):
        return [f".. autoclass:: {name}", "   :members:"]
    if _is_function(thing):
        return [f".. autofunction:: {name}"]
    text = escape(_constants(package).get(name, ("", ""))[1].splitlines())
    return [f".. autodata:: {name}", "   :no-value:", "", *(f"   {line}" for line in text)]


def _rst(lines: list[str]) -> str:
    return "\n".join(["````{eval-rst}", *lines, "````"])


def _first_paragraph(module: str) -> list[str]:
    text = inspect.cleandoc(importlib.import_module(module).__doc__ or "")
    return text.split("\n\n")[0].splitlines()


def _signature(name: str, thing: Callable[..., Any]) -> str:
    """Write what is called, with annotations as they are in the code."""
    if inspect.isclass(thing):
        return f"class {name}"
    node = _definition(thing)
    assert node
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {name}({ast.unparse(node.args)}){returns}"


def _methods(thing: type) -> Iterator[str]:
    """Write the documented public methods of a class."""
    for name, method in vars(thing).items():
        function = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield f"### {thing.__name__}.{name}"
            yield f"```python\n{_signature(name, function)}\n```"
            yield inspect.getdoc(function) or ""


def overview(_: str = "") -> str:
    """List the modules that have a page, and the names at hand as `mesaopt.NAME`."""
    rows = ["| module | what is in it |", "|---|---|"]
    for name in MODULES:
        first = " ".join(_first_paragraph(f"mesaopt.{name}")).split(". ")[0]
        rows.append(f"| [`mesaopt.{name}`](api/{name}.md) | {first.rstrip('.:')}. |")
    rows += ["", "| at hand | from |", "|---|---|"]
    for name, home in mesaopt._HOMES.items():
        rows.append(f"| `mesaopt.{name}` | [`mesaopt.{home}`](api/{home}.md) |")
    return "\n".join(rows)
