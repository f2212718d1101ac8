"""How pytest imports the modules of the package for their examples."""

import importlib
from pathlib import Path


def pytest_collect_file(file_path: Path) -> None:
    """Import a module by its name first: from its path alone its classes would be made twice."""
    package = Path(__file__).parent / "mesaopt"
    if file_path.suffix == ".py" and package in file_path.parents:
        name = file_path.relative_to(package.parent).with_suffix("")
        importlib.import_module(".".join(name.parts).removesuffix(".__init__"))
