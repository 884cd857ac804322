"""From result files to tables, pictures and one HTML file. Reads results, never live objects."""

from netsmith.report.comparison import write_comparison
from netsmith.report.page import write_report
from netsmith.report.terminal import terminal_widths

__all__ = ["terminal_widths", "write_comparison", "write_report"]
