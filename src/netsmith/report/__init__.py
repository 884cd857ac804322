"""From result files to tables, pictures and one HTML file. Reads results, never live objects."""

from netsmith.report.comparison import write_comparison
from netsmith.report.page import write_report
from netsmith.report.terminal import (
    terminal_baselines,
    terminal_candidates,
    terminal_comparison,
    terminal_dissection,
    terminal_zoo,
)
from netsmith.report.terminal_morph import terminal_rivals, terminal_space, terminal_widths

__all__ = [
    "terminal_baselines",
    "terminal_candidates",
    "terminal_comparison",
    "terminal_dissection",
    "terminal_rivals",
    "terminal_space",
    "terminal_widths",
    "terminal_zoo",
    "write_comparison",
    "write_report",
]
