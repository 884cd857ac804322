"""Configs that ship with netsmith: list them, or copy one (with the files it names) to edit it.

Every verb that takes a CONFIG also takes a preset's name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from netsmith import presets as shipped
from netsmith.errors import OutputError, SourceError, did_you_mean

from .options import add_common
from .parser import Parser, examples
from .session import Session

SUMMARY = "configs that ship with netsmith: list them, copy one"
EXAMPLES = (
    ("netsmith presets list", "names and what each is for"),
    ("netsmith presets copy cifar10", "writes cifar10.yaml and the files it names here"),
    ("netsmith presets copy dery_10m --out configs", "the same, into configs/"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `list` and `copy`."""
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", title="actions", required=True, parser_class=Parser
    )
    listing = actions.add_parser("list", help="names and what each is for", epilog=examples(EXAMPLES[0]))
    listing.set_defaults(parser=listing)
    add_common(listing, seed=False, device=False)
    copying = actions.add_parser(
        "copy",
        help="copy a preset and the files it names",
        description="Copies a preset and the files it names.",
        epilog=examples(*EXAMPLES[1:]),
    )
    copying.set_defaults(parser=copying)
    copying.add_argument("name", metavar="NAME", help="a name of `netsmith presets list`")
    copying.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder to copy into (default: this one)"
    )
    copying.add_argument("--overwrite", action="store_true", help="replace files that exist")
    add_common(copying, seed=False, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List or copy."""
    if arguments.action == "list":
        rows = [[name, shipped.describe(name)] for name in shipped.names()]
        session.console.table(["preset", "what it is"], rows)
        return 0
    if arguments.name not in shipped.names():
        hint = did_you_mean(arguments.name, shipped.names())
        raise SourceError(f"there is no preset '{arguments.name}'. {hint} See `netsmith presets list`.")
    wanted = [arguments.name, *shipped.companions(arguments.name)]
    targets = [arguments.out / f"{name}.yaml" for name in wanted]
    as_shipped = [
        t.is_file() and t.read_bytes() == shipped.read(n).encode() for n, t in zip(wanted, targets, strict=True)
    ]
    existing = [str(t) for t, same in zip(targets, as_shipped, strict=True) if t.exists() and not same]
    if existing and not arguments.overwrite:
        raise OutputError(
            f"{', '.join(existing)} exists already. Give --overwrite to replace it, or another folder with --out."
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, target, same in zip(wanted, targets, as_shipped, strict=True):
        if same:
            session.console.result(f"{target} is there")
            continue
        target.write_text(shipped.read(name), encoding="utf-8")
        session.console.result(f"wrote {target}")
    return 0
