"""One HTML page from one run folder: the same folder gives the same bytes, and the page opens offline."""

from seawall.report.page import write_report

__all__ = ["write_report"]
