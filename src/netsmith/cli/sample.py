"""One network out of a morphable artifact, at a ratio, at widths, or as wide as a budget allows.

ARTIFACT is the folder that `netsmith morph` wrote. What comes out is a plain network: its weights as safetensors, and
an artifact folder that is a source like any other.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from .options import add_common, add_output, positive
from .parser import UsageError
from .session import Session

SUMMARY = "one network out of a morphable artifact, at a size"
EXAMPLES = (
    ("netsmith sample runs/any_width/artifact --ratio 0.5 --out half", "half of every width"),
    ("netsmith sample runs/any_width/artifact --params 150k --out small", "the widest within 150,000 parameters"),
    ("netsmith sample runs/any_width/artifact --macs 20M --out light", "or within 20 million multiply-adds"),
    ("netsmith sample runs/any_width/artifact --width layer3.2.conv1=24 --out odd", "one width, the others full"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the artifact, the size and the output folder."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of a morphable artifact")
    size = parser.add_argument_group("size (one of them)")
    size.add_argument("--ratio", metavar="R", help="of every width that varies; 1 is the base network's")
    size.add_argument("--params", metavar="N", help="at most so many parameters, such as 150k")
    size.add_argument("--macs", metavar="N", help="at most so many multiply-adds for one input, such as 20M")
    size.add_argument("--latency-ms", metavar="MS", help="at most so many milliseconds for one input, measured here")
    size.add_argument(
        "--width", action="append", default=[], metavar="GROUP=N", help="one group's width; may be given many times"
    )
    parser.add_argument("--reads", type=positive, default=1, metavar="K", help="mean over K noisy reads (default: 1)")
    parser.add_argument("--noise", type=float, default=0.0, metavar="CELLS", help="coordinate noise of each read")
    add_output(parser, required=True, what="folder for the network: weights.safetensors, manifest and card")
    add_common(parser, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, read, save."""
    from netsmith.core.profile import count_macs, count_params, format_count
    from netsmith.morph.sample import Sampling
    from netsmith.morph.sampled import save_sampled
    from netsmith.morph.saving import load_morphed

    from .folder import check_folder

    request = _request(arguments)
    check_folder(arguments.out, arguments.overwrite)
    folder = Path(arguments.artifact)
    model = load_morphed(folder)
    widths = model.widths_for(**request)
    how = Sampling(arguments.reads, arguments.noise, arguments.seed or 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = model.at(widths, how=how)
    for warning in caught:
        session.console.note(f"warning: {warning.message}")
    save_sampled(folder, network, widths, arguments.out, overwrite=arguments.overwrite)
    params, macs = count_params(network), count_macs(network, model.input_shape)
    full = model.morphable.space.full
    session.console.table(
        ["group", ">width", ">of"], [[name, str(width), str(full[name])] for name, width in widths.items()]
    )
    session.console.result(f"{format_count(params)} params, {format_count(macs)} MACs")
    session.console.result(f"wrote {arguments.out}")
    return 0


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Exactly one size, as keywords of `MorphableModel.widths_for`."""
    from netsmith.core.profile import parse_count

    given = {
        "--ratio": arguments.ratio,
        "--params": arguments.params,
        "--macs": arguments.macs,
        "--latency-ms": arguments.latency_ms,
        "--width": arguments.width or None,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageError(
            f"give one of {', '.join(given)}: {'none came' if not named else ', '.join(named) + ' came'}.\n"
            "See `netsmith sample --help`."
        )
    if arguments.width:
        return {"size": dict(_width(text) for text in arguments.width)}
    if arguments.ratio is not None:
        return {"size": _number("--ratio", arguments.ratio)}
    if arguments.latency_ms is not None:
        return {"latency_ms": _number("--latency-ms", arguments.latency_ms)}
    name = "params" if arguments.params is not None else "macs"
    text = getattr(arguments, name)
    try:
        return {name: parse_count(text)}
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from error


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: a number was expected, '{text}' came") from None


def _width(text: str) -> tuple[str, int]:
    group, equals, number = text.rpartition("=")
    if not equals or not number.lstrip("-").isdigit():
        raise UsageError(f"--width: GROUP=N with a whole number was expected, such as layer3.2.conv1=24; '{text}' came")
    return group, int(number)
