"""One network out of a morphable artifact, at a ratio, at widths, or as wide as a budget allows.

ARTIFACT is the folder that `netsmith morph` wrote. What comes out is a plain network: an artifact folder with its
weights as safetensors, which is a source like any other; or, with --format, a file that runs without Netsmith.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsmith.errors import BudgetError, DataError

from .options import add_common, add_output, add_size, positive
from .parser import UsageError
from .session import Session

if TYPE_CHECKING:
    from torch import nn

    from netsmith.morphing.live import MorphableModel
    from netsmith.networks.network import Network

SUMMARY = "one network out of a morphable artifact, at a size"
EXAMPLES = (
    ("netsmith sample runs/any_width/artifact --ratio 0.5 --out half", "half of every width"),
    ("netsmith sample runs/any_width/artifact --params 150k --out small", "the widest within 150,000 parameters"),
    ("netsmith sample runs/any_width/artifact --macs 20M --out light", "or within 20 million multiply-adds"),
    (
        "netsmith sample runs/any_width/artifact --ratio 0.5 --data digits --out half",
        "with its batch norms recalibrated",
    ),
    ("netsmith sample runs/any_width/artifact --ratio 0.5 --out half.onnx", "for onnxruntime; also .pt2"),
    ("netsmith sample runs/any_width/artifact --width layer3.2.conv1=24 --out odd", "one width, the others full"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the artifact, the size and the output folder."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of a morphable artifact, or hf:ORG/NAME")
    size = parser.add_argument_group("size (one of them)")
    size.add_argument("--ratio", metavar="R", help="of every width that varies; 1 is the base network's")
    size.add_argument("--params", metavar="N", help="at most so many parameters, such as 150k")
    size.add_argument("--macs", metavar="N", help="at most so many multiply-adds for one input, such as 20M")
    size.add_argument("--latency-ms", metavar="MS", help="at most so many milliseconds for one input, measured here")
    size.add_argument(
        "--width",
        action="append",
        default=[],
        metavar="GROUP=N",
        help="one group's width in channels, or its ratio (0.5); may be given many times",
    )
    parser.add_argument("--reads", type=positive, default=1, metavar="K", help="mean over K noisy reads (default: 1)")
    parser.add_argument("--noise", type=float, default=0.0, metavar="CELLS", help="coordinate noise of each read")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="where batch norms stay: estimate their statistics at this size on training images of this source",
    )
    add_size(parser, "--data-size")
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx", "pt2"),
        help="onnx and pt2 run without Netsmith (see `netsmith export --help`); default: as --out ends, or safetensors",
    )
    add_output(
        parser,
        required=True,
        what="folder for the network: weights.safetensors, manifest and card; or a file, such as half.onnx",
    )
    add_common(parser, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, read, save."""
    from netsmith.exporting.export import check_out, export
    from netsmith.morphing.live import Sampling
    from netsmith.morphing.sampled import save_sampled
    from netsmith.morphing.saving import load_morphed
    from netsmith.search.budget import format_count
    from netsmith.trace.cost import count_macs, count_params

    from .export import show
    from .folder import check_folder
    from .networks import artifact_folder

    request = _request(arguments)
    runnable = arguments.format or arguments.out.suffix[1:]
    if runnable in ("onnx", "pt2"):
        check_out(arguments.out, runnable, overwrite=arguments.overwrite)
    else:
        check_folder(arguments.out, arguments.overwrite)
    folder = artifact_folder(arguments.artifact)
    model = load_morphed(folder)
    widths = model.widths_for(**request)
    how = Sampling(arguments.reads, arguments.noise, arguments.seed or 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = model.at(widths, how=how)
    for warning in caught:
        session.console.note(f"warning: {warning.message}")
    statistics = recalibrate(network, model, widths, folder, arguments, session)
    params, macs = count_params(network), count_macs(network, model.input_shape)
    full = model.morphable.space.full
    session.console.table(
        ["group", ">width", ">of"], [[name, str(width), str(full[name])] for name, width in widths.items()]
    )
    session.console.result(f"{format_count(params)} params, {format_count(macs)} MACs")
    if "size" not in request:
        _tell_better(model.morphable.space.ratio(widths), folder, session)
    if runnable in ("onnx", "pt2"):
        with session.console.progress() as bars:
            made = export(
                _described(network, folder),
                arguments.out,
                format=runnable,
                overwrite=arguments.overwrite,
                progress=bars,
            )
        show(made, session)
        return 0
    save_sampled(network, arguments.out, arguments.overwrite, statistics=statistics)
    session.console.result(f"wrote {arguments.out}")
    return 0


def _tell_better(ratio: float, folder: Path, session: Session) -> None:
    """Where a budget was given: say which narrower size was better when the artifact was made, if one was."""
    from netsmith.artifacts.artifact import read_manifest
    from netsmith.formats import metric_text
    from netsmith.records.morphing import better_narrower, by_ratio
    from netsmith.training.measure import standard_error

    manifest = read_manifest(folder)
    validation, images = manifest.get("validation", {}), manifest.get("validation_images") or 0
    metric = str(next(iter(validation), "")).partition("@")[0][:40]

    def noise(value: float) -> float:
        return standard_error(value, images) if metric == "accuracy" else 0.0

    found = better_narrower(by_ratio(validation), ratio, noise)
    if found is not None:
        narrower, value, expected = found
        had, here = metric_text(metric, value, images), metric_text(metric, expected, images)
        session.console.note(
            f"a narrower network of this artifact was better when it was made: {metric} {had} on validation at ratio "
            f"{narrower:g}, where about {here} is to be expected at this one, {ratio:.3g}. Give --ratio "
            f"{narrower:g} to have it."
        )


def _described(network: nn.Module, folder: Path) -> Network:
    """A network that was read from an artifact, with what the artifact says of it."""
    from netsmith.artifacts.artifact import read_manifest
    from netsmith.networks.network import Network, Preprocess, Provenance, provenance_of
    from netsmith.trace.cost import count_params

    manifest = read_manifest(folder)
    return Network(
        name=f"{manifest['name']}_{count_params(network)}",
        source=str(folder),
        model=network,
        preprocess=Preprocess.from_json(manifest["preprocess"]),
        num_classes=manifest["num_classes"],
        provenance=Provenance(str(folder), licence=manifest.get("licence"), commercial=manifest.get("commercial")),
        task=str(manifest.get("task", "classification")),
        classes=tuple(map(str, manifest.get("classes", ()))),
        sources=provenance_of(manifest.get("provenance", ())),
    )


def recalibrate(
    network: nn.Module,
    model: MorphableModel,
    widths: Mapping[str, int],
    folder: Path,
    arguments: argparse.Namespace,
    session: Session,
) -> str | None:
    """Give batch norms statistics of their own where these are better; says of which images, None for none."""
    from netsmith.artifacts.artifact import read_manifest
    from netsmith.morphing.recalibrating import has_statistics, is_base, recalibrated
    from netsmith.networks.network import Preprocess
    from netsmith.training.tasks import make_task

    from .networks import open_for

    if is_base(model.morphable, widths):
        return None
    if not has_statistics(network, model.input_shape):
        if arguments.data is not None:
            session.console.note("--data is not needed: this network has no batch norms, they are folded")
        return None
    if arguments.data is None:
        session.console.result(
            "batch norms have statistics of the base network's channels, which cost accuracy at this size: give --data "
            "SOURCE to estimate them on its training images"
        )
        return None
    data = open_for([str(folder)], arguments.data, session, seed=arguments.seed, size=arguments.size)
    splits = data.splits
    if splits.shape[0] != model.input_shape[0]:
        raise DataError(
            f"the network takes images of {model.input_shape[0]} channels, and those of '{arguments.data}' have "
            f"{splits.shape[0]}: give the data that it was trained on"
        )
    manifest = read_manifest(folder)
    preprocess, known = Preprocess.from_json(manifest["preprocess"]), manifest.get("augmented")
    task = make_task(str(manifest.get("task", "classification")), manifest["num_classes"], shape=preprocess.input_size)
    if not recalibrated(network, model.morphable.base, splits, preprocess, task, augment=known, seed=data.seed):
        session.console.result(
            f"batch norms: statistics of the base's channels, which are better on training images of {arguments.data}"
        )
        return None
    text = f"estimated on training images of {arguments.data}"
    session.console.result(f"batch norms: statistics {text}")
    return text


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Exactly one size, as keywords of `MorphableModel.widths_for`."""
    from netsmith.search.budget import parse_count

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
        return {"size": _widths(arguments.width)}
    if arguments.ratio is not None:
        return {"size": _number("--ratio", arguments.ratio)}
    if arguments.latency_ms is not None:
        return {"latency_ms": _number("--latency-ms", arguments.latency_ms)}
    name = "params" if arguments.params is not None else "macs"
    text = getattr(arguments, name)
    try:
        return {name: _finite(f"--{name}", parse_count(text), text)}
    except BudgetError as error:
        raise UsageError(f"--{name}: {error}") from error


def _number(option: str, text: str) -> int | float:
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{option}: a number was expected, '{text:.80}' came") from None
    return _finite(option, number, text)


def _finite(option: str, number: int | float, text: str) -> int | float:
    if not math.isfinite(number):
        raise UsageError(f"{option}: a finite number was expected, '{text:.80}' came")
    return number


def _widths(texts: Sequence[str]) -> dict[str, int | float]:
    found: dict[str, int | float] = {}
    for group, width in map(_width, texts):
        if group in found:
            raise UsageError(
                f"--width: '{group:.80}' is there twice, with {found[group]} and {width}. Keep one of them."
            )
        found[group] = width
    return found


def _width(text: str) -> tuple[str, int | float]:
    group, equals, number = text.rpartition("=")
    if not equals or not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", number):
        raise UsageError(
            f"--width: GROUP=N with a whole number of channels, or a ratio with a decimal point, was expected, such as "
            f"layer3.2.conv1=24 or layer3.2.conv1=0.5; '{text:.80}' came"
        )
    return group, float(number) if "." in number else int(number)
