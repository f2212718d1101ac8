"""The HTML reports, and a diagnosis in words."""

import importlib
from typing import TYPE_CHECKING, Any

from mesaopt.report.html import write_report

if TYPE_CHECKING:
    from mesaopt.report.diagnosis_page import write_diagnosis

__all__ = ["write_diagnosis", "write_report"]


def __getattr__(name: str) -> Any:
    # It draws a figure, and a report of results need not wait for that.
    if name == "write_diagnosis":
        return importlib.import_module("mesaopt.report.diagnosis_page").write_diagnosis
    raise AttributeError(f"module 'mesaopt.report' has no attribute {name!r}")
