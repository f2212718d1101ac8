"""The HTML reports, and a diagnosis in words."""

from mesaopt.report.diagnosis_page import write_diagnosis
from mesaopt.report.html import write_report

__all__ = ["write_diagnosis", "write_report"]
