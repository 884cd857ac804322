"""A trained network made smaller at once: no labels, no training.

SOURCE is a network as in `netsmith dissect --help`. Channels leave its width groups, and what reads them is refitted in
closed form on pictures without labels, so that the result answers as the original does as often as it can. What comes
out is a plain network: an artifact folder, which is a source like any other, or a file that runs without Netsmith.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from netsmith.errors import BudgetError

from .options import add_common, add_images, add_output, add_size, finite, positive
from .parser import UsageError
from .session import Session

METHODS = ("closed_form", "importance", "l1")
SUMMARY = "a network made smaller at once, without training"
EXAMPLES = (
    ("netsmith shrink timm:resnet50 --images photos --macs 50% --out resnet50-half", "half of its multiply-adds"),
    ("netsmith shrink runs/demo/artifact --images digits --params 60k --out small", "at most 60,000 parameters"),
    ("netsmith shrink timm:resnet18 --images photos --width 0.75 --out narrow.onnx", "three quarters of every width"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network, the pictures, the size and where it goes."""
    parser.add_argument("source", metavar="SOURCE", help="the network")
    parser.add_argument(
        "--images",
        metavar="DATA",
        required=True,
        help="pictures such as the network will meet: a folder, or a data source (digits, parquet:PATH, ...)",
    )
    add_size(parser, "--data-size")
    parser.add_argument("--count", type=positive, metavar="N", help="how many to fit on (default: 1000, or all)")
    size = parser.add_argument_group("size")
    size.add_argument("--params", metavar="N", help="at most so many parameters, such as 5M, or 50%% of the original's")
    size.add_argument("--macs", metavar="N", help="at most so many multiply-adds for one picture, likewise")
    size.add_argument("--latency-ms", type=finite, metavar="MS", help="at most so many milliseconds, measured here")
    size.add_argument("--width", type=finite, metavar="R", help="in place of these: one ratio for all widths, as 0.75")
    size.add_argument("--streams", action="store_true", help="narrow residual streams too")
    size.add_argument("--uniform", action="store_true", help="one ratio for all widths, no search for better ones")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="importance and l1 only choose channels and fit nothing (default: closed_form)",
    )
    add_images(parser)
    add_output(parser, required=True, what="folder for weights, manifest and card; or a file, such as x.onnx")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Check where it goes, load, shrink, write."""
    from netsmith.exporting.export import check_out
    from netsmith.shrinking.shrink import shrink

    from .export import show
    from .folder import check_folder
    from .networks import device_of, load_network, open_for

    out = arguments.out
    runnable = out.suffix[1:] in ("onnx", "pt2")
    if runnable:
        check_out(out, overwrite=arguments.overwrite)
    else:
        check_folder(out, arguments.overwrite)
    arguments.random_weights = False
    network = load_network(arguments.source, arguments)
    source, size = arguments.images, arguments.size
    if Path(source).is_dir():
        source, size = f"images:{source}", size or network.preprocess.input_size[1:]
    data = open_for([arguments.source], source, session, seed=arguments.seed, size=size)
    try:
        with session.console.progress() as bars:
            small = shrink(
                network,
                data.splits,
                params=arguments.params,
                macs=arguments.macs,
                latency_ms=arguments.latency_ms,
                widths=arguments.width,
                method=arguments.method,
                search=not arguments.uniform,
                streams=arguments.streams,
                images=arguments.count,
                device=str(device_of(arguments.device or "cpu")),
                seed=data.seed,
                progress=bars,
            )
    except BudgetError as error:
        raise UsageError(str(error)) from error
    session.console.result(str(small))
    if runnable:
        show(small.export(out, overwrite=arguments.overwrite), session)
    else:
        session.console.result(f"wrote {small.save(out, overwrite=arguments.overwrite)}")
    return 0
