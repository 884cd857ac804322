"""From a zoo to one network under a budget: compare, partition, search, stitch, fine-tune, report.

CONFIG is a YAML file, or a preset's name (see `netsmith presets list`). Every step is cached in DIR/cache: a run that
was interrupted goes on where it was, and a changed key computes again only what depends on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_common, add_output, add_overrides, add_size, size_override
from .parser import UsageError
from .session import Session

if TYPE_CHECKING:
    from netsmith.records.reassembly import Summary

SUMMARY = "a zoo to one fine-tuned network under a budget"
EXAMPLES = (
    ("netsmith reassemble cifar10.yaml --out runs/cifar10", "the whole way, report included"),
    ("netsmith reassemble dery_10m --set data=folder:imagenet --plan", "what it would do, download and cost"),
    (
        "torchrun --nproc_per_node 8 -m netsmith reassemble cifar10.yaml --out runs/cifar10",
        "eight processes share the work",
    ),
    (
        "netsmith reassemble cifar10.yaml --out runs/small --set budget.params.max=0.4M --set partition.k=3",
        "changed keys",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, --plan and the output folder."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a preset's name")
    parser.add_argument(
        "--plan", action="store_true", help="print what it would do, download and cost; compute and write nothing"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep the cached steps there, for several runs to share (default: in --out)",
    )
    add_output(
        parser,
        required=False,
        what="folder for the artifact, summary.json and report.html; needed unless --plan",
    )
    add_size(parser)
    add_overrides(parser, "budget.params.max=0.4M")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Read the config, then plan or reassemble."""
    from netsmith.config import dump_config, load_reassemble_config

    from .configs import config_path

    if not (arguments.out or arguments.plan):
        raise UsageError("--out DIR is missing: where should the results go? (--plan alone needs none.)")
    overrides = [*arguments.overrides, *size_override(arguments.size)]
    overrides += [] if arguments.seed is None else [f"seed={arguments.seed}"]
    overrides += [] if arguments.device is None else [f"device={arguments.device}"]
    config = load_reassemble_config(config_path(arguments.config), overrides)

    # torch is loaded from here on
    from .execution import execute, plan
    from .folder import check_folder, clear_checkpoints, open_folder
    from .networks import device_of
    from .running import long_work

    if arguments.plan:
        with session.console.progress() as bars:
            lines = plan(config, progress=bars)
        for line in lines:
            session.console.result(line)
        return 0
    device = device_of(config.device)
    text = dump_config(config, arguments.out)
    check_folder(arguments.out, arguments.overwrite, text)
    with long_work(session, str(device)):
        open_folder(arguments.out, arguments.overwrite, session, text)
        cache = arguments.cache or arguments.out / "cache"
        with session.console.progress() as bars:
            summary = execute(config, arguments.out, cache=cache, device=str(device), progress=bars)
            session.finished = True
            clear_checkpoints(arguments.out)
        show(summary, session)
        show_written(arguments.out, session)
    return 0


def show_written(out: Path, session: Session) -> None:
    """Where the results lie."""
    there = [name for name in ("report.html", "summary.json", "artifact") if (out / name).exists()]
    session.console.result(f"wrote {', '.join(str(out / name) for name in there)}")


def show(summary: Summary, session: Session) -> None:
    """The chosen network beside every member of the zoo, and what it is made of."""
    from netsmith.formats import metric_text
    from netsmith.reassembly.facts import UNDONE
    from netsmith.search.budget import format_count

    accuracy = summary.accuracy

    def percent(value: float | None) -> str:
        return "-" if value is None else metric_text("accuracy", value, accuracy.images)

    rows = [[m.name, format_count(m.params), format_count(m.macs), "", percent(m.accuracy)] for m in summary.zoo]
    counts = [format_count(summary.params), format_count(summary.macs)]
    rows.append(["reassembled", *counts, UNDONE if accuracy.undone else "stitched, no training"])
    rows[-1].append(percent(accuracy.stitched))
    if accuracy.finetuned is not None:
        rows.append(["reassembled", *counts, "stitched and fine-tuned", percent(accuracy.finetuned)])
    session.console.table(
        ["network", ">params", ">MACs", "", f">{accuracy.split} accuracy"], rows, last=len(rows) - len(summary.zoo)
    )
    _tell_better(summary, session)
    session.console.result("blocks: " + " -> ".join(summary.blocks))
    session.console.result(f"licence of its sources: {summary.licence or 'none, or not stated'}")
    if summary.commercial is False:
        session.console.result("NON-COMMERCIAL: a source forbids commercial use, and so the result must not be used so")


def _tell_better(summary: Summary, session: Session) -> None:
    """Name the best member of the zoo that keeps the budget's params and MACs, if it is better than what was made."""
    from netsmith.search.budget import Budget

    budget = Budget.model_validate({k: v for k, v in summary.budget.items() if k in Budget.model_fields})
    final = summary.accuracy.stitched if summary.accuracy.finetuned is None else summary.accuracy.finetuned
    within = [m for m in summary.zoo if not budget.check(params=m.params, macs=m.macs)]
    best = max(within, key=lambda m: m.accuracy or 0.0, default=None)
    if best is not None and best.accuracy is not None and best.accuracy > final:
        session.console.result(
            f"{best.name} of the zoo keeps the budget's params and MACs and is better: {100 * best.accuracy:.2f}% "
            f"beside {100 * final:.2f}% of what was made"
        )
