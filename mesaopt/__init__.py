"""Mesa-optimization in sequence models: operators and layers, a laboratory, and theory that runs.

Submodules are loaded when they are first used, so that `import mesaopt` and the command line's help
need not wait for torch.
"""

import importlib
from importlib.metadata import version
from types import ModuleType

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
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"mesaopt.{name}")
    raise AttributeError(f"module 'mesaopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
