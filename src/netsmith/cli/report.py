"""Write the report.html of a results folder again, from its summary.json and details.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_common
from .session import Session

SUMMARY = "write report.html of a results folder again"
EXAMPLES = (("netsmith report runs/demo", "rewrites runs/demo/report.html"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an --out folder of reassemble, morph or demo")
    add_common(parser, seed=False, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Call the report's writer."""
    from netsmith.report.page import write_report

    session.console.result(f"wrote {write_report(arguments.folder)}")
    return 0
