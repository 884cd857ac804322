"""Accuracy, params, MACs and speed of one network.

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

SUMMARY = "accuracy, params, MACs and latency of a network"
EXAMPLES = (
    ("netsmith evaluate runs/demo/artifact --data digits", "on the test split"),
    (
        "netsmith evaluate netsmith:cifar_resnet20#r20.safetensors --data torchvision:CIFAR10 --split validation",
        "of a file of weights",
    ),
    ("netsmith evaluate timm:resnet18 --data folder:imagenet --batch 1 --json", "latency at batch 1"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network, the data and the batch."""
    parser.add_argument("source", metavar="ARTIFACT_OR_SOURCE", help="the network")
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="digits, torchvision:NAME, folder:PATH, parquet:PATH"
    )
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

    from .networks import device_of, load_network

    splits = open_data(arguments.data, seed=arguments.seed or 0)
    images = splits.test if arguments.split == "test" else splits.validation
    network = load_network(arguments.source, arguments, example_shape=images.shape)
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
            ["accuracy", f"{100 * facts['accuracy']:.2f}%"],
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
    """Accuracy on `images` and the cost of the whole network; latency in ms for one batch of `batch` on `device`."""
    from netsmith.core.engine import evaluate
    from netsmith.core.profile import count_macs, count_params, measure_latency
    from netsmith.core.tasks import Classification

    from .networks import example_input

    if network.num_classes != len(images.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart, and the data has {len(images.classes)}: "
            "its accuracy there means nothing. Give the data that it was trained on."
        )
    model = network.model.to(device)
    metrics = evaluate(model, images, Classification(network.num_classes), preprocess=network.preprocess)
    noise = example_input(network)[:1].expand(batch, -1, -1, -1).contiguous().to(device)
    return {
        "accuracy": metrics["accuracy"],
        "images": len(images),
        "params": count_params(model),
        "macs": count_macs(model, network.preprocess.input_size),
        "latency_ms": measure_latency(model, noise),
        "batch": batch,
        "device": str(device),
    }
