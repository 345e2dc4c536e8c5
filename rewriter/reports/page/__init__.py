"""The report as one HTML page: coverage, a map of the graph, engines, reasons, timeline, precision and parameters."""

from rewriter.reports.page.page import artifact_page, report_page, write_page
from rewriter.reports.page.shown import Shown

__all__ = ["Shown", "artifact_page", "report_page", "write_page"]
