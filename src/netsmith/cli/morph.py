"""From one trained network to networks of any width: order its channels, fit a generator, measure, report.

CONFIG is a YAML file, or a preset's name (see `netsmith presets list`). Fitting keeps its state in DIR/checkpoints: a
run that was interrupted goes on where it was, and ends as if it had not been.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import add_common, add_output, add_overrides
from .parser import UsageError
from .session import Session

if TYPE_CHECKING:
    from netsmith.morph.results import Summary

SUMMARY = "one trained network to networks of any width"
EXAMPLES = (
    ("netsmith morph morph_cifar10 --out runs/any_width", "the whole way, report included"),
    ("netsmith morph morph_cifar10 --plan", "what it would do and cost"),
    (
        "netsmith morph mine.yaml --out runs/mine --set space.blocks=last_block --set space.widths=[0.5,1.0]",
        "one block",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, --plan and the output folder."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a preset's name")
    parser.add_argument(
        "--plan", action="store_true", help="print what it would do and cost; compute and write nothing"
    )
    add_output(
        parser, required=False, what="folder for the artifact, summary.json and report.html; needed unless --plan"
    )
    add_overrides(parser, "space.blocks=last_block")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Read the config, then plan or morph."""
    from netsmith.config import dump_config, load_morph_config

    from .configs import config_path
    from .folder import check_folder, open_folder
    from .morphing import execute, plan
    from .networks import device_of
    from .reassemble import show_written

    overrides = list(arguments.overrides)
    overrides += [] if arguments.seed is None else [f"seed={arguments.seed}"]
    overrides += [] if arguments.device is None else [f"device={arguments.device}"]
    config = load_morph_config(config_path(arguments.config), overrides)
    if arguments.plan:
        for line in plan(config):
            session.console.result(line)
        return 0
    if arguments.out is None:
        raise UsageError("--out DIR is missing: where should the results go? (--plan alone needs none.)")
    device = device_of(config.device)
    text = dump_config(config)
    check_folder(arguments.out, arguments.overwrite, text)
    open_folder(arguments.out, arguments.overwrite, session, text)
    with session.console.progress() as bars:
        summary = execute(config, arguments.out, device=str(device), progress=bars)
    show(summary, session)
    show_written(arguments.out, session)
    return 0


def show(summary: Summary, session: Session) -> None:
    """A row for the base, one for each width, and one without what is generated."""
    from netsmith.core.profile import format_count

    from .networks import format_metric

    def row(name: str, params: int, macs: int, value: float, note: str) -> list[str]:
        return [name, format_count(params), format_count(macs), note, format_metric(summary.metric, value)]

    base = summary.base
    rows = [row(base.name, base.params, base.macs, base.accuracy, "as it came")]
    for width in summary.widths:
        note = "" if width.fitted else "outside the fitted range"
        rows.append(row(f"at {width.ratio:g}", width.params, width.macs, width.accuracy, note))
    rows.append(["without what is generated", "", "", "the floor", format_metric(summary.metric, summary.floor)])
    session.console.table(["network", ">params", ">MACs", "", f">test {summary.metric}"], rows)
    session.console.result(f"artifact: {summary.artifact_bytes / 1e6:.2f} MB for all widths")
