"""A network from a source, trained on a data source, measured and saved: what `netsmith train` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from netsmith.artifacts.artifact import library_versions, write_json
from netsmith.data.classes import splits_by_name
from netsmith.data.splits import ImageSet, Splits, check_labelled
from netsmith.distributed import processes
from netsmith.errors import DataError
from netsmith.files.cache import digest
from netsmith.files.paths import portable
from netsmith.networks.network import Network, load_source
from netsmith.networks.run_hashes import run_hashes
from netsmith.networks.sources import parse_source
from netsmith.networks.trained import check_trainable, save_network
from netsmith.networks.zoo import ZooEntry
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.checkpoint import copied_state
from netsmith.training.engine import Progress, TrainSettings, evaluate, train
from netsmith.training.restore import restore_if_worse
from netsmith.training.tasks import make_task

_log = logging.getLogger("netsmith.train")
_STATISTICS_IMAGES = 5000


def train_entry(
    entry: ZooEntry,
    splits: Splits,
    settings: TrainSettings,
    folder: Path,
    *,
    task: str = "classification",
    pretrained: bool = False,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network, pick its best epoch on validation, read test once, write `artifact/` and `summary.json`.

    A second call with the same arguments goes on from the last checkpoint in `folder/checkpoints`. Without `mean` and
    `std` in the entry, a network that starts from random weights gets those of the training images.

    Args:
        entry: the network; without weights of its own it starts from random ones.
        splits: the data.
        settings: of the training.
        folder: where results go; it exists.
        task: one of `tasks.TASKS`: what the network is trained for.
        pretrained: whether to start from the library's weights (timm's get a new head where the classes differ).
        seed: of random weights; that of the training is in `settings`.
        config: the resolved configuration, kept in the artifact.
        device: where to compute; default: the best there is.
        progress: told how far it is.

    Returns:
        What `summary.json` holds.

    Raises:
        SourceError, WeightsError, DataError, TrainingError, OutputError: see the functions used.
    """
    check_trainable(entry.source)
    if task != "generation":
        check_labelled(splits, f"training for {task}")
    network = _start(entry, splits, task, pretrained=pretrained, seed=seed)
    if task != "generation":
        splits = splits_by_name(network.model, splits, network.num_classes, network.name)
    _check_fits(network, splits, task)
    network.task = task
    aim = make_task(task, network.num_classes, shape=splits.shape, classes=splits.classes, ignore=splits.ignore)
    begun = copied_state(network.model)
    start = evaluate(network.model, splits.validation, aim, preprocess=network.preprocess, device=device)
    key = digest("train", splits.fingerprint, network.identity(), settings)
    result = train(
        network.model,
        splits,
        aim,
        settings,
        preprocess=network.preprocess,
        checkpoint_dir=folder / "checkpoints" / key[:16],
        progress=progress,
        device=device,
    )
    if _has_weights(entry, pretrained):
        result = restore_if_worse(network.model, begun, start, result, aim, _made_worse)
    measured = {"validation": splits.validation, "test": splits.test}
    metrics = {
        part: evaluate(network.model, images, aim, preprocess=network.preprocess, device=device)
        for part, images in measured.items()
    }
    network.model.eval()
    network.classes = tuple(splits.classes) if network.num_classes == len(splits.classes) else ()
    counts = {
        "params": count_params(network.model),
        "macs": count_macs(network.model, network.preprocess.input_size),
    }
    kept = portable(config or {}, folder)
    hashes = run_hashes(kept, splits.fingerprint, [network.provenance])
    summary = {
        "kind": "training",
        "schema": 1,
        "name": network.name,
        "source": entry.source,
        "data": splits.name,
        **counts,
        "task": task,
        "primary": aim.primary,
        "metrics": metrics,
        aim.primary: {part: found[aim.primary] for part, found in metrics.items()},
        "images": {part: len(images) for part, images in measured.items()},
        "epochs": settings.epochs,
        "precision": result.precision,
        "best_epoch": result.best_epoch,
        "seconds": {"training": result.seconds},
        "images_per_second": result.images_per_second,
        "history": result.history,
        "versions": library_versions(),
        "hashes": hashes,
    }
    if not processes.first():
        return summary
    named = {f"{name}_{part}": value for part, found in metrics.items() for name, value in found.items()}
    about = {
        "data": splits.name,
        **{name: value for name, value in named.items() if not name.startswith(("loss_", "iou/"))},
        **{f"{part}_images": len(images) for part, images in measured.items()},
    }
    save_network(folder / "artifact", network, counts=counts, metrics=about, config=kept, hashes=hashes, overwrite=True)
    write_json(folder / "summary.json", summary)
    return summary


def statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over at most 5000 images taken evenly; of values in [0, 1]."""
    step = max(1, len(images) // _STATISTICS_IMAGES)
    rows = torch.arange(0, len(images), step)
    parts = [_moments(images.images(part)) for part in rows.split(500)]
    total = sum(count for count, _, _ in parts)
    mean = torch.stack([first for _, first, _ in parts]).sum(dim=0) / total
    square = torch.stack([second for _, _, second in parts]).sum(dim=0) / total
    deviation = (square - mean**2).clamp_min(1e-8).sqrt()
    return tuple(round(float(v), 4) for v in mean), tuple(round(max(float(v), 1e-4), 4) for v in deviation)


def _moments(images: Float[Tensor, "b c h w"]) -> tuple[int, Float[Tensor, " c"], Float[Tensor, " c"]]:
    exact = images.double()
    count = images.shape[0] * images.shape[2] * images.shape[3]
    return count, exact.sum(dim=(0, 2, 3)), exact.square().sum(dim=(0, 2, 3))


def _start(entry: ZooEntry, splits: Splits, task: str, *, pretrained: bool, seed: int) -> Network:
    """The network to begin with, fitted to the data's classes and, from random weights, to its images."""
    parsed = parse_source(entry.source)
    weights = _has_weights(entry, pretrained)
    classes = len(splits.classes)
    options, wanted = dict(entry.options), entry.num_classes
    # pretrained or not, the head of a segmentation network is new, and it takes images of any size
    new_head = parsed.scheme == "smp" and parsed.weights is None
    if parsed.scheme == "timm" and pretrained:
        options.setdefault("num_classes", classes)  # timm puts a new head on the weights
    elif task == "generation":
        pass
    elif new_head or parsed.scheme == "netsmith" or (parsed.scheme in ("timm", "torchvision") and not pretrained):
        wanted = wanted or classes
    network = load_source(
        entry.source,
        name=entry.name,
        pretrained=pretrained,
        num_classes=wanted,
        input_size=entry.input_size if entry.input_size is not None or (weights and not new_head) else splits.shape,
        mean=entry.mean,
        std=entry.std,
        seed=seed,
        licence=entry.licence,
        options=options,
    )
    if not weights and entry.mean is None and entry.std is None:
        mean, std = statistics(splits.train)
        network.preprocess = replace(network.preprocess, mean=mean, std=std)
        _log.debug("mean and std of the training images: %s, %s", mean, std)
    return network


def _has_weights(entry: ZooEntry, pretrained: bool) -> bool:
    parsed = parse_source(entry.source)
    return pretrained or parsed.weights is not None or parsed.scheme == "artifact"


def _made_worse(before: float, after: float) -> None:
    _log.warning(
        "training made the network worse on validation (%.4f before, %.4f at best after): it keeps the weights that it "
        "came with. Lower training.lr, set training.clip_grad or add training.warmup_epochs",
        before,
        after,
    )


def _check_fits(network: Network, splits: Splits, task: str) -> None:
    if task != "generation" and network.num_classes != len(splits.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart and '{splits.name}' has "
            f"{len(splits.classes)}. Give data of the same classes, or a source that can be built for them "
            "(timm:, netsmith:, or pretrained: false)."
        )
    channels = network.preprocess.input_size[0]
    if channels != splits.shape[0]:
        raise DataError(
            f"'{network.name}' takes images of {channels} channels and those of '{splits.name}' have "
            f"{splits.shape[0]}. Give input_size: [{splits.shape[0]}, ...], or other data."
        )
