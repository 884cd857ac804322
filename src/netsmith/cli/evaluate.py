"""Accuracy (or the metrics of another task), params, MACs and speed of one network.

SOURCE is an artifact folder, or a source as in `netsmith dissect --help`. The network is measured as a whole: stem,
blocks, adapters and head; a morphable artifact at several sizes (`DIR@0.5` at that one). The test split is for the end:
to choose between networks, use --split validation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netsmith.errors import DataError, SourceError

from .options import add_common, add_images, add_size, positive, ratios
from .session import Session

if TYPE_CHECKING:
    import torch

    from netsmith.data.splits import ImageSet
    from netsmith.networks.zoo import Network

    from .networks import Opened

TASKS = ("classification", "segmentation", "generation")
SUMMARY = "accuracy, params, MACs and latency of a network"
EXAMPLES = (
    ("netsmith evaluate runs/demo/artifact --data digits", "on the test split"),
    (
        "netsmith evaluate netsmith:cifar_resnet20#r20.safetensors --data torchvision:CIFAR10 --split validation",
        "of a file of weights",
    ),
    ("netsmith evaluate runs/any_width/artifact --data digits --ratios 1,0.5,0.3", "a morphable artifact, by size"),
    ("netsmith evaluate timm:resnet18 --data folder:imagenet --batch 1 --json", "latency at batch 1"),
    ("netsmith evaluate runs/unet/artifact --data masks:scans --size 256", "a segmentation network: mIoU and F1"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network, the data and the batch."""
    parser.add_argument("source", metavar="ARTIFACT_OR_SOURCE", help="the network")
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="digits, torchvision:NAME, folder:PATH, masks:PATH, parquet:PATH"
    )
    add_size(parser)
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="N",
        help="class of masks that counts nowhere (default: as its artifact was trained)",
    )
    parser.add_argument("--task", choices=TASKS, help="what it is for (default: what it says of itself)")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="images to measure on (default: test)"
    )
    parser.add_argument(
        "--ratios", type=ratios, metavar="R,R,...", help="sizes of a morphable artifact (default: those of its card)"
    )
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="batch of the latency (default: 64)")
    add_images(parser)
    parser.add_argument("--random-weights", action="store_true", help="build it without its weights: no download")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, measure, print."""
    from .networks import open_for

    ratios = sweep_of(arguments.source, arguments.ratios)
    data = open_for(
        [arguments.source], arguments.data, session, seed=arguments.seed, size=arguments.size, ignore=arguments.ignore
    )
    sources = [arguments.source] if ratios is None else [f"{arguments.source}@{ratio:g}" for ratio in ratios]
    measured = [_measured(source, data, arguments, session) for source in sources]
    (name, facts), of_sizes = measured[0], [found for _, found in measured]
    facts = {
        "kind": "evaluation",
        "schema": 1,
        "source": arguments.source,
        "data": arguments.data,
        "split": arguments.split,
        **facts,
    }
    if ratios is not None:
        kept = ("params", "macs", facts["primary"], "metrics", "latency_ms")
        facts["widths"] = [
            {"ratio": ratio, **{key: found[key] for key in kept}} for ratio, found in zip(ratios, of_sizes, strict=True)
        ]
    if arguments.json:
        session.console.result(json.dumps(facts, indent=2))
    elif ratios is None:
        show(name, facts, session)
    else:
        show_sweep(name.partition("@")[0], facts, session)
    return 0


def sweep_of(source: str, asked: list[float] | None) -> list[float] | None:
    """The ratios at which a source is measured: None for one network of one size.

    A morphable artifact without a size is measured at those `asked` for, or else at those of its card.

    Raises:
        SourceError: ratios were asked of a source that has none.
    """
    from netsmith.artifacts.artifact import is_artifact, read_manifest
    from netsmith.networks.sources import parse_source
    from netsmith.records.morphing import ratio_of

    parsed = parse_source(source)
    # what is no artifact is refused when it is loaded
    manifest = read_manifest(parsed.name) if parsed.scheme == "artifact" and is_artifact(parsed.name) else {}
    if manifest.get("kind") != "morph" or parsed.detail is not None:
        if asked is not None:
            raise SourceError(f"--ratios are for a morphable artifact without a size, and '{source}' is none.")
        return None
    known = {ratio for name in manifest.get("metrics", {}) if (ratio := ratio_of(name)) is not None}
    return sorted(asked or known or {1.0}, reverse=True)


def _measured(source: str, data: Opened, arguments: argparse.Namespace, session: Session) -> tuple[str, dict[str, Any]]:
    """A network's name and what `measure` says of it."""
    from .networks import device_of, load_network, recalibrate_sized

    images = data.splits.test if arguments.split == "test" else data.splits.validation
    network = load_network(source, arguments, example_shape=images.shape)
    network.task = arguments.task or network.task
    recalibrate_sized(source, network, data.splits, session, seed=data.seed)
    with session.console.progress() as bars:
        found = measure(
            network, images, batch=arguments.batch, device=device_of(arguments.device), step=bars.step("evaluating")
        )
    return network.name, found


def show(name: str, facts: dict[str, Any], session: Session) -> None:
    """One network as a table."""
    from netsmith.formats import metric_text
    from netsmith.search.budget import format_count

    from .networks import show_classes

    session.console.table(
        ["", ">"],
        [
            *(
                [metric, metric_text(metric, value, facts["images"])]
                for metric, value in facts["metrics"].items()
                if "/" not in metric
            ),
            ["images", f"{facts['images']} ({facts['split']} of {facts['data']})"],
            ["params", format_count(facts["params"])],
            ["MACs", format_count(facts["macs"])],
            ["latency", f"{facts['latency_ms']:.2f} ms for a batch of {facts['batch']} on {facts['device']}"],
        ],
        title=name,
    )
    show_classes({facts["split"]: facts["metrics"]}, facts["images"], session)


def show_sweep(name: str, facts: dict[str, Any], session: Session) -> None:
    """A morphable artifact, a row a size."""
    from netsmith.formats import metric_text
    from netsmith.search.budget import format_count

    from .networks import show_classes

    metrics = [metric for metric in facts["metrics"] if "/" not in metric]
    rows = [
        [
            f"{w['ratio']:g}",
            format_count(w["params"]),
            format_count(w["macs"]),
            *(metric_text(metric, w["metrics"][metric], facts["images"]) for metric in metrics),
            f"{w['latency_ms']:.2f} ms",
        ]
        for w in facts["widths"]
    ]
    columns = [">ratio", ">params", ">MACs", *(f">{metric}" for metric in metrics), f">batch of {facts['batch']}"]
    session.console.table(
        columns, rows, title=f"{name} on {facts['images']} images ({facts['split']} of {facts['data']})"
    )
    show_classes({f"{w['ratio']:g}": w["metrics"] for w in facts["widths"]}, facts["images"], session)


def measure(
    network: Network,
    images: ImageSet,
    *,
    batch: int,
    device: torch.device,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Metrics on `images` and the cost of the whole network; latency in ms for one batch of `batch` on `device`."""
    from netsmith.data.classes import by_name
    from netsmith.data.splits import check_labelled
    from netsmith.trace.cost import count_macs, count_params, measure_latency
    from netsmith.training.engine import evaluate
    from netsmith.training.tasks import make_task

    from .networks import example_input

    if network.task != "generation":
        check_labelled(images, "evaluation")
        images = by_name(network.model, images, network.num_classes, network.name)
    if network.task != "generation" and network.num_classes != len(images.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart, and the data has {len(images.classes)}: "
            "its accuracy there means nothing. Give the data that it was trained on."
        )
    model = network.model.to(device)
    task = make_task(
        network.task, network.num_classes, shape=images.shape, classes=images.classes, ignore=images.ignore
    )
    metrics = evaluate(model, images, task, preprocess=network.preprocess)
    noise = example_input(network)[:1].expand(batch, -1, -1, -1).contiguous().to(device)
    return {
        "task": task.name,
        "primary": task.primary,
        "metrics": metrics,
        task.primary: metrics[task.primary],
        "images": len(images),
        "params": count_params(model),
        "macs": count_macs(model, network.preprocess.input_size),
        "latency_ms": measure_latency(model, noise),
        "batch": batch,
        "device": str(device),
    }
