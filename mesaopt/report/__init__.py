"""The HTML report."""

from mesaopt.report.html import write_report

__all__ = ["write_report"]
