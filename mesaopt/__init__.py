"""Mesa-optimization in sequence models: operators and layers, a laboratory, and theory that runs.

Submodules are loaded when they are first used, so that `import mesaopt` and the command line's help
need not wait for torch.
"""

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("mesaopt")

__all__ = [
    "analysis",
    "config",
    "layers",
    "models",
    "ops",
    "papers",
    "recipes",
    "report",
    "tasks",
    "theory",
    "training",
    "zoo",
]
_FUNCTIONS = {"load": "zoo"}
"""Functions at hand as `mesaopt.<name>`, and the submodules they are from."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"mesaopt.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"mesaopt.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'mesaopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_FUNCTIONS]
