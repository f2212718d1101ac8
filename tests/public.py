"""What the package offers: the names in the `__all__` of its modules."""

import importlib
import re
from pathlib import Path

import mesaopt

ROOT = Path(mesaopt.__file__).parent


def public_modules() -> list[str]:
    """Name the modules below the package that have an `__all__`, each before those inside of it."""
    paths = [
        path for path in ROOT.rglob("*.py") if re.search(r"^__all__ = ", path.read_text(), re.M)
    ]
    files = [path.relative_to(ROOT.parent).with_suffix("") for path in paths]
    names = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return sorted(name for name in names if name != "mesaopt")


def public_homes() -> dict[tuple[str, int], list[str]]:
    """List the modules that offer a public name, by the name and the identity of what it stands for."""
    homes: dict[tuple[str, int], list[str]] = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for one in module.__all__:
            homes.setdefault((one, id(getattr(module, one))), []).append(name)
    return homes
