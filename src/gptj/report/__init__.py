"""A run as one HTML page, to read, to send and to print."""

from gptj.report.page import ReportConfig, report

__all__ = ["ReportConfig", "report"]
