"""A network's units: where it can be cut, what lies between, and what each piece costs.

SOURCE is one of: timm:NAME, torchvision:NAME, netsmith:NAME, smp:ARCHITECTURE/ENCODER, py:PATH.py:FUNCTION (runs that
code), each optionally with #WEIGHTS (a local .safetensors or .pt file); an artifact's folder, or hf:ORG/NAME, an
artifact of the Hugging Face Hub.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .options import add_common, add_images
from .session import Session

if TYPE_CHECKING:
    from netsmith.trace.chain import Chain

SUMMARY = "a network's units with shapes, params and MACs"
EXAMPLES = (
    ("netsmith dissect netsmith:cifar_resnet20", "units of a small network, offline"),
    ("netsmith dissect timm:resnet50 --random-weights", "of a large one, without its weights"),
    (
        "netsmith dissect timm:vit_tiny_patch16_224 --input-size 3x96x96 --random-weights --json",
        "for a program to read",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE and how to read it."""
    parser.add_argument("source", metavar="SOURCE", help="the network")
    add_images(parser, size="images to trace with (default: the network's own)")
    parser.add_argument("--random-weights", action="store_true", help="build it without its weights: no download")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_common(parser, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, dissect, print."""
    from .networks import load_chain

    _, chain = load_chain(arguments.source, arguments)
    facts = describe(chain, source=arguments.source)
    if arguments.json:
        session.console.result(json.dumps(facts, indent=2))
    else:
        show(facts, session)
    return 0


def describe(chain: Chain, *, source: str) -> dict[str, Any]:
    """The chain as JSON-able facts; shapes without the batch."""
    first, last = chain.cuts[0], chain.cuts[-1]
    return {
        "name": chain.name,
        "source": source,
        "input_shape": list(chain.input_shape),
        "output_shape": list(chain.output_shape),
        "params": chain.params,
        "macs": chain.macs,
        "stem": {"params": chain.stem_params, "macs": chain.stem_macs, "out_shape": list(first.shape)},
        "units": [
            {
                "index": unit.index,
                "name": unit.name,
                "layout": unit.layout.kind,
                "in_shape": list(unit.before.shape),
                "out_shape": list(unit.after.shape),
                "params": unit.params,
                "macs": unit.macs,
            }
            for unit in chain.units
        ],
        "head": {"params": chain.head_params, "macs": chain.head_macs, "in_shape": list(last.shape)},
    }


def show(facts: dict[str, Any], session: Session) -> None:
    """The facts as a table: stem, units, head, and what the whole network has."""
    from netsmith.search.budget import format_count

    def row(index: str, name: str, layout: str, into: list[int], out: list[int], piece: dict[str, Any]) -> list[str]:
        return [
            index,
            name,
            layout,
            _shape(into),
            _shape(out),
            format_count(piece["params"]),
            format_count(piece["macs"]),
        ]

    stem, head, units = facts["stem"], facts["head"], facts["units"]
    rows = [row("", "(stem)", "", facts["input_shape"], stem["out_shape"], stem)]
    rows += [row(str(u["index"]), u["name"], u["layout"], u["in_shape"], u["out_shape"], u) for u in units]
    rows.append(row("", "(head)", "", head["in_shape"], facts["output_shape"], head))
    rows.append(row("", "whole network", "", facts["input_shape"], facts["output_shape"], facts))
    session.console.table(
        ["unit", "name", "layout", "in", "out", ">params", ">MACs"],
        rows,
        title=f"{facts['name']}: {len(units)} units",
        last=1,
    )
    session.console.result(
        "The stem and the head cannot be cut: what they hold lies before the first or after the last point "
        "that every path crosses at the end of a module."
    )
    shared = sum(p["params"] for p in [stem, head, *units]) - facts["params"]
    if shared > 0:
        session.console.result(
            f"{format_count(shared)} params are shared between pieces and counted once in the total."
        )


def _shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))
