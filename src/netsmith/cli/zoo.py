"""The networks there are, and zoo files: lists of networks to reassemble.

`zoo list` prints netsmith's own networks and counts those of timm and torchvision. `zoo check FILE` loads and dissects
every entry of a zoo file, and reports all faults at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsmith.errors import NetsmithError

from .options import add_common, add_images
from .parser import Parser, examples
from .session import Session

if TYPE_CHECKING:
    from netsmith.networks.entries import ZooEntry

SUMMARY = "the networks there are (list), and zoo files (check)"
EXAMPLES = (
    ("netsmith zoo list", "netsmith's own networks, and how many timm and torchvision have"),
    ("netsmith zoo check zoo.yaml", "load, dissect and measure every entry"),
    ("netsmith zoo check zoo.yaml --offline", "the same without downloads: random weights for remote ones"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `list` and `check`."""
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", title="actions", required=True, parser_class=Parser
    )
    listing = actions.add_parser(
        "list", help="netsmith's own networks, and counts of the libraries'", epilog=examples(EXAMPLES[0])
    )
    listing.set_defaults(parser=listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_common(listing, seed=False, device=False)
    checking = actions.add_parser(
        "check",
        help="load, dissect and measure every entry of a zoo file",
        epilog=examples(*EXAMPLES[1:]),
        description="Loads, dissects and measures every entry of a zoo file (YAML: `networks:`, a list of `source:`s).",
    )
    checking.set_defaults(parser=checking, run=run)
    checking.add_argument("file", type=Path, metavar="FILE", help="a zoo file")
    checking.add_argument("--offline", action="store_true", help="random weights for entries that would be downloaded")
    add_images(checking)
    checking.add_argument("--json", action="store_true", help="print JSON")
    add_common(checking, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List or check."""
    return _list(arguments, session) if arguments.action == "list" else _check(arguments, session)


def _list(arguments: argparse.Namespace, session: Session) -> int:
    import timm
    import torchvision

    from netsmith.networks.libraries import BUILDERS
    from netsmith.networks.zoo import describe_source
    from netsmith.search.budget import format_count

    own = [
        {"source": f"netsmith:{name}", "params": describe_source(f"netsmith:{name}").params}
        for name in sorted(BUILDERS)
    ]
    timm_families = [family.rpartition(".")[2] for family in timm.list_modules()]
    libraries = {
        "timm": {
            "families": len(timm_families),
            "networks": len(timm.list_models()),
            "weights": len(timm.list_pretrained()),
        },
        "torchvision": {"networks": len(torchvision.models.list_models(module=torchvision.models))},
    }
    if arguments.json:
        session.console.result(json.dumps({"netsmith": own, **libraries}, indent=2))
        return 0
    rows = [[str(o["source"]), format_count(o["params"] or 0)] for o in own]
    session.console.table(["source", ">params"], rows, title="netsmith's own, as built for their usual images")
    found = libraries["timm"]
    session.console.result(
        f"\ntimm:NAME: {found['networks']} networks of {found['families']} families, {found['weights']} sets of "
        "weights (names: timm.list_models(), timm.list_pretrained())"
    )
    session.console.result(f"torchvision:NAME: {libraries['torchvision']['networks']} networks for classification")
    session.console.result(
        "Any of them that has cuts can be used: `netsmith dissect SOURCE --random-weights` shows them."
    )
    return 0


def _check(arguments: argparse.Namespace, session: Session) -> int:
    from netsmith.networks.entries import load_zoo_file
    from netsmith.search.budget import format_count

    entries = load_zoo_file(arguments.file)
    facts: list[dict[str, Any]] = []
    faults: list[str] = []
    with session.console.progress() as bars:
        step = bars.step("checking")
        for i, entry in enumerate(entries):
            try:
                facts.append(_check_entry(entry, arguments))
            except NetsmithError as failure:
                faults.append(f"{entry.name or entry.source}: {failure}")
            step(i + 1, len(entries))
    names = [f["name"] for f in facts]
    faults += [
        f"{name}: {names.count(name)} entries have this name; give each its own with `name:`"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if len(entries) < 2:
        faults.append("a zoo of one cannot be reassembled: at least two networks are needed")
    if arguments.json:
        session.console.result(json.dumps({"networks": facts, "faults": faults}, indent=2))
    else:
        rows = [
            [
                f["name"],
                str(f["units"]),
                "-".join(f["layouts"]),
                format_count(f["params"]),
                format_count(f["macs"]),
                f["licence"] or "unknown",
                f["weights"],
            ]
            for f in facts
        ]
        session.console.table(["network", ">units", "layout", ">params", ">MACs", "licence", "weights"], rows)
    if faults:
        raise NetsmithError(
            f"{arguments.file} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n"
            + "\n".join(f"  - {f}" for f in faults)
        )
    return 0


def _check_entry(entry: ZooEntry, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load and dissect one entry; what is known of it. Raises NetsmithError."""
    from netsmith.networks.zoo import describe_source, load_zoo
    from netsmith.trace.chain import dissect

    from .networks import example_input

    info = describe_source(entry)
    random = arguments.offline and info.download_bytes > 0
    if arguments.input_size is not None and entry.input_size is None:
        entry = entry.model_copy(update={"input_size": arguments.input_size})
    if entry.mean is None and entry.std is None:
        entry = entry.model_copy(update={"mean": arguments.mean, "std": arguments.std})
    network = load_zoo([entry], pretrained=not random, seed=arguments.seed or 0)[0]
    _ = network.preprocess.statistics  # a zoo is there to be reassembled, and then it meets images
    chain = dissect(network.model, example_input(network), name=network.name)
    return {
        "name": network.name,
        "source": entry.source,
        "units": len(chain),
        "layouts": sorted({unit.layout.kind for unit in chain.units}),
        "params": chain.params,
        "macs": chain.macs,
        "licence": info.licence,
        "commercial": info.commercial,
        "weights": f"random here; {info.download_bytes / 1e6:.0f} MB to download"
        if random
        else (info.weights or "random"),
    }
