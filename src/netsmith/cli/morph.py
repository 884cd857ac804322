"""From one trained network to networks of any width: order its channels, fit a generator, measure, report.

CONFIG is a YAML file, or a preset's name (see `netsmith presets list`). Fitting keeps its state in DIR/checkpoints: a
run that was interrupted goes on where it was, and ends as if it had not been.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_common, add_output, add_overrides, add_size, size_override
from .parser import UsageError
from .session import Session

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
    add_size(parser)
    add_overrides(parser, "space.blocks=last_block")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Read the config, then plan or morph."""
    from netsmith.config import dump_config, load_morph_config

    from .configs import base_of, config_path

    if not (arguments.out or arguments.plan):
        raise UsageError("--out DIR is missing: where should the results go? (--plan alone needs none.)")
    overrides = [*arguments.overrides, *size_override(arguments.size)]
    overrides += [] if arguments.seed is None else [f"seed={arguments.seed}"]
    overrides += [] if arguments.device is None else [f"device={arguments.device}"]
    path = config_path(arguments.config)
    config = load_morph_config(path, overrides, base=base_of(path))

    # torch is loaded from here on
    from .folder import check_folder, clear_checkpoints, open_folder
    from .morphing import execute, plan
    from .networks import device_of
    from .reassemble import show_written
    from .running import long_work

    if arguments.plan:
        for line in plan(config):
            session.console.result(line)
        return 0
    device = device_of(config.device)
    text = dump_config(config, arguments.out)
    check_folder(arguments.out, arguments.overwrite, text)
    with long_work(session, str(device)):
        with session.console.progress() as bars:
            execute(
                config,
                arguments.out,
                device=str(device),
                begin=lambda: open_folder(arguments.out, arguments.overwrite, session, text),
                progress=bars,
            )
        session.finished = True
        clear_checkpoints(arguments.out)
        show(arguments.out, session)
        show_written(arguments.out, session)
    return 0


def show(out: Path, session: Session) -> None:
    """Show the widths of a finished run, the base network and the floor."""
    from netsmith.report import terminal_widths
    from netsmith.report.results import read_json

    from .networks import show_classes

    details = read_json(out / "details.json")
    session.console.show(terminal_widths(details))
    show_classes(
        {f"{w['ratio']:g}": w["metrics"]["test"] for w in details["widths"]}, details["images"]["test"], session
    )
    if any(w.get("recalibrated") for w in details["widths"]):
        session.console.result("batch norms: statistics estimated anew where that is better")
    session.console.result(f"artifact: {details['artifact']['bytes'] / 1e6:.2f} MB for all widths")
