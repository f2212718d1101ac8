"""Mesa-optimization in sequence models: operators and layers, a laboratory, and theory that runs.

Submodules, and the functions and classes at hand as `mesaopt.<name>`, are loaded when they are first used,
so that `import mesaopt` and the command line's help need not wait for torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; __getattr__ is for the rest
    from mesaopt import (
        analysis,
        config,
        layers,
        models,
        ops,
        papers,
        recipes,
        report,
        sweeps,
        tasks,
        theory,
        training,
        zoo,
    )
    from mesaopt.analysis import capture, diagnose, in_context_loss, probe_layers
    from mesaopt.layers import MesaLayer
    from mesaopt.models import SequenceModel
    from mesaopt.sweeps import sweep
    from mesaopt.training import load_run, train
    from mesaopt.zoo import load

__version__ = version("mesaopt")

_HOMES = {
    "MesaLayer": "layers",
    "SequenceModel": "models",
    "capture": "analysis",
    "diagnose": "analysis",
    "in_context_loss": "analysis",
    "load": "zoo",
    "load_run": "training",
    "probe_layers": "analysis",
    "sweep": "sweeps",
    "train": "training",
}
"""Functions and classes at hand as `mesaopt.<name>`, and the submodules they are from."""

__all__ = [
    "MesaLayer",
    "SequenceModel",
    "analysis",
    "capture",
    "config",
    "diagnose",
    "in_context_loss",
    "layers",
    "load",
    "load_run",
    "models",
    "ops",
    "papers",
    "probe_layers",
    "recipes",
    "report",
    "sweep",
    "sweeps",
    "tasks",
    "theory",
    "train",
    "training",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"mesaopt.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"mesaopt.{name}")
    raise AttributeError(f"module 'mesaopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
