"""Accuracy (or the metrics of another task), params, MACs and speed of one network.

SOURCE is an artifact folder, or a source as in `netsmith dissect --help`. The network is measured as a whole: stem,
blocks, adapters and head. The test split is for the end: to choose between networks, use --split validation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netsmith.errors import DataError

from .options import add_common, image_shape, positive
from .session import Session

if TYPE_CHECKING:
    import torch

    from netsmith.core.data import ImageSet
    from netsmith.core.zoo import Network

TASKS = ("classification", "segmentation", "generation")
SUMMARY = "accuracy, params, MACs and latency of a network"
EXAMPLES = (
    ("netsmith evaluate runs/demo/artifact --data digits", "on the test split"),
    (
        "netsmith evaluate netsmith:cifar_resnet20#r20.safetensors --data torchvision:CIFAR10 --split validation",
        "of a file of weights",
    ),
    ("netsmith evaluate timm:resnet18 --data folder:imagenet --batch 1 --json", "latency at batch 1"),
    ("netsmith evaluate runs/unet/artifact --data masks:scans --size 256", "a segmentation network: mIoU and F1"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network, the data and the batch."""
    parser.add_argument("source", metavar="ARTIFACT_OR_SOURCE", help="the network")
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="digits, torchvision:NAME, folder:PATH, masks:PATH, parquet:PATH"
    )
    parser.add_argument("--size", type=positive, metavar="N", help="side in pixels to which images are resized")
    parser.add_argument("--task", choices=TASKS, help="what it is for (default: what it says of itself)")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="images to measure on (default: test)"
    )
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="batch of the latency (default: 64)")
    parser.add_argument(
        "--input-size", type=image_shape, metavar="CxHxW", help="images for networks without a size of their own"
    )
    parser.add_argument("--random-weights", action="store_true", help="build it without its weights: no download")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, measure, print."""
    from netsmith.core.data import open_data
    from netsmith.core.profile import format_count

    from .networks import device_of, format_metric, load_network, recalibrate_sized

    splits = open_data(arguments.data, seed=arguments.seed or 0, size=arguments.size)
    images = splits.test if arguments.split == "test" else splits.validation
    network = load_network(arguments.source, arguments, example_shape=images.shape)
    network.task = arguments.task or network.task
    recalibrate_sized(arguments.source, network, splits, session, seed=arguments.seed or 0)
    with session.console.progress() as bars:
        facts: dict[str, Any] = {
            "kind": "evaluation",
            "schema": 1,
            "source": arguments.source,
            "data": arguments.data,
            "split": arguments.split,
            **measure(
                network, images, batch=arguments.batch, device=device_of(arguments.device), step=bars.step("evaluating")
            ),
        }
    if arguments.json:
        session.console.result(json.dumps(facts, indent=2))
        return 0
    session.console.table(
        ["", ">"],
        [
            *([name, format_metric(name, value)] for name, value in facts["metrics"].items()),
            ["images", f"{facts['images']} ({arguments.split} of {arguments.data})"],
            ["params", format_count(facts["params"])],
            ["MACs", format_count(facts["macs"])],
            ["latency", f"{facts['latency_ms']:.2f} ms for a batch of {arguments.batch} on {facts['device']}"],
        ],
        title=network.name,
    )
    return 0


def measure(
    network: Network,
    images: ImageSet,
    *,
    batch: int,
    device: torch.device,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Metrics on `images` and the cost of the whole network; latency in ms for one batch of `batch` on `device`."""
    from netsmith.core.engine import evaluate
    from netsmith.core.profile import count_macs, count_params, measure_latency
    from netsmith.core.tasks import make_task

    from .networks import example_input

    if network.task != "generation" and network.num_classes != len(images.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart, and the data has {len(images.classes)}: "
            "its accuracy there means nothing. Give the data that it was trained on."
        )
    model = network.model.to(device)
    task = make_task(network.task, network.num_classes, shape=images.shape)
    metrics = evaluate(model, images, task, preprocess=network.preprocess)
    noise = example_input(network)[:1].expand(batch, -1, -1, -1).contiguous().to(device)
    return {
        "task": task.name,
        "primary": task.primary,
        "metrics": metrics,
        "accuracy": metrics.get("accuracy"),
        "images": len(images),
        "params": count_params(model),
        "macs": count_macs(model, network.preprocess.input_size),
        "latency_ms": measure_latency(model, noise),
        "batch": batch,
        "device": str(device),
    }
