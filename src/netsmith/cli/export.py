"""One network as a file: ONNX or .pt2, which run without Netsmith, or safetensors, the weights alone.

SOURCE is an artifact folder, a morphable one at a size (DIR@0.5), or a source as in `netsmith dissect --help`. The file
takes preprocessed images in batches of any size, and is checked against PyTorch. It carries mean, standard deviation
and size of the preprocessing, the classes' names, sources and licence; a folder gets a card as well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_common, add_images, add_size, positive
from .session import Session

if TYPE_CHECKING:
    from netsmith.exporting.export import Exported
    from netsmith.networks.network import Network

FORMATS = ("onnx", "pt2", "safetensors")
SUMMARY = "a network as ONNX, .pt2 or safetensors"
EXAMPLES = (
    ("netsmith export runs/demo/artifact --out net.onnx", "for onnxruntime; the ending tells the format"),
    ("netsmith export runs/any_width/artifact@0.5 --format pt2 --out half", "a morphable network at half width"),
    ("netsmith export timm:resnet18 --out resnet18.safetensors", "the weights alone"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network, the format and where it goes."""
    parser.add_argument("source", metavar="SOURCE", help="the network")
    parser.add_argument("--format", choices=FORMATS, help="of the file (default: as --out ends)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE_OR_DIR",
        required=True,
        help="a file, such as net.onnx; or a folder for model.onnx (.pt2, .safetensors), its card and export.json",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="for DIR@SIZE where batch norms stay: estimate their statistics on training images of this source",
    )
    add_size(parser, "--data-size")
    parser.add_argument("--opset", type=positive, metavar="N", help="of ONNX (default: the exporter's own)")
    add_images(parser)
    parser.add_argument("--random-weights", action="store_true", help="build it without its weights: no download")
    add_common(parser, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, write, check, print."""
    from netsmith.exporting.export import check_out, export

    check_out(arguments.out, arguments.format, overwrite=arguments.overwrite)
    network = _load(arguments, session)
    with session.console.progress() as bars:
        made = export(
            network,
            arguments.out,
            format=arguments.format,
            opset=arguments.opset,
            overwrite=arguments.overwrite,
            progress=bars,
        )
    show(made, session)
    return 0


def _load(arguments: argparse.Namespace, session: Session) -> Network:
    """The network, with statistics of its own where it is one size of a morphable one and --data is given."""
    from .networks import load_network, open_for, recalibrate_sized, resized_norms

    if arguments.data is None:
        network = load_network(arguments.source, arguments)
        if resized_norms(arguments.source, network):
            session.console.result(
                "batch norms have statistics of the base network's channels, which cost accuracy at this size: give "
                "--data SOURCE to estimate them on its training images"
            )
        return network
    data = open_for([arguments.source], arguments.data, session, seed=arguments.seed, size=arguments.size)
    network = load_network(arguments.source, arguments, example_shape=data.splits.shape)
    if not recalibrate_sized(arguments.source, network, data.splits, session, seed=data.seed):
        session.console.note("--data is not needed: this network has no batch norms of another width")
    return network


def show(made: Exported, session: Session) -> None:
    """What was written, what it takes, and what its licence forbids."""
    facts = made.facts
    checked = {
        "onnx": f"; in onnxruntime {made.difference:.0e} from PyTorch at most",
        "pt2": f"; loaded again {made.difference:.0e} from PyTorch at most",
        "safetensors": "; read back the same",
    }[made.format]
    say = session.console.result
    say(f"wrote {', '.join(map(str, made.files))}: {made.bytes / 1e6:.2f} MB{checked}")
    if made.format != "safetensors":
        say(
            f"input (batch, {', '.join(map(str, made.input_shape))}), "
            f"output (batch, {', '.join(map(str, made.output_shape))})"
        )
    if "mean" in facts:
        size = "x".join(map(str, facts["input_size"]))
        say(
            f"preprocessing: images in [0, 1] of {size} ({facts['interpolation']}), minus {json.dumps(facts['mean'])}, "
            f"over {json.dumps(facts['std'])}"
        )
    else:
        say("preprocessing: not known; give --mean and --std to have it in the file")
    if facts.get("random_weights"):
        say("RANDOM WEIGHTS: it was built without trained ones, and its answers mean nothing")
    say(f"licence: {facts['licence'] or 'none, or not stated by the sources'}")
    if facts["commercial"] is False:
        say("NON-COMMERCIAL: a source forbids commercial use, and so this file must not be used so")
