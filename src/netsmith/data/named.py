"""Data sources by name: `digits` (ships with scikit-learn), `torchvision:NAME`, `hf:NAME`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.datasets as tvd
from jaxtyping import Int
from sklearn.datasets import load_digits
from torch import Tensor

from netsmith.data.decoding import Encoded, decode_set, sides
from netsmith.data.files import read_parts
from netsmith.data.images import ImageSet, MemoryImages, stratified_split
from netsmith.data.mask_files import masked_set
from netsmith.data.registry import DataOptions, Parts, data_root, data_source
from netsmith.errors import DataError, MissingDependencyError, did_you_mean
from netsmith.files.paths import as_path


@data_source("digits")
def _open_digits(argument: str, options: DataOptions) -> Parts:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,169 for training, 269 for validation, 359 for test."""
    if argument:
        raise DataError(f"'digits' takes nothing after it, ':{argument}' came")
    raw: Any = load_digits()
    # 17 grey levels, 0 to 16
    pixels = torch.from_numpy(raw.images).mul(255.0 / 16.0).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).to(torch.int64)
    if options.size is not None:
        pixels = torch.nn.functional.interpolate(
            pixels.float(), size=sides(options.size), mode="bilinear", antialias=True
        )
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    whole = MemoryImages(pixels, labels, tuple(str(d) for d in range(10)), mirror=False)
    rest, test = stratified_split(labels, 0.2, 0)
    train, validation = stratified_split(labels[rest], 0.1875, 0)
    return Parts(whole.subset(rest[train]), whole.subset(rest[validation]), whole.subset(test))


@dataclass(frozen=True)
class TorchvisionSet:
    """How one data set of torchvision is opened: the arguments of its parts, and what a download takes.

    Attributes:
        parts: arguments of the class for `train`, `validation`, `test`; a set in one piece has `train` only.
        files: what must lie in the root folder, for those who fetch it by hand.
        megabytes: of the download, rounded up.
        mirror: whether a mirrored image still shows its class.
        classes: their names, where the library does not tell.
        targets: what the images come with: labels, masks, or nothing (all in one class, for image generation).
    """

    parts: Mapping[str, Mapping[str, Any]]
    files: str
    megabytes: int
    mirror: bool = True
    classes: tuple[str, ...] = field(default=())
    targets: Literal["labels", "masks", "nothing"] = "labels"


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
_DIGITS = tuple(str(d) for d in range(10))
_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet(_TRAIN_FLAG, "cifar-10-batches-py/ (cifar-10-python.tar.gz, unpacked)", 171),
    "CIFAR100": TorchvisionSet(_TRAIN_FLAG, "cifar-100-python/ (cifar-100-python.tar.gz, unpacked)", 170),
    "MNIST": TorchvisionSet(_TRAIN_FLAG, "MNIST/raw/ (the four idx files)", 12, mirror=False),
    "FashionMNIST": TorchvisionSet(_TRAIN_FLAG, "FashionMNIST/raw/ (the four idx files)", 31),
    "KMNIST": TorchvisionSet(_TRAIN_FLAG, "KMNIST/raw/ (the four idx files)", 21, mirror=False),
    "USPS": TorchvisionSet(_TRAIN_FLAG, "usps.bz2 and usps.t.bz2", 9, mirror=False, classes=_DIGITS),
    "SVHN": TorchvisionSet(_TWO, "train_32x32.mat and test_32x32.mat", 247, mirror=False, classes=_DIGITS),
    "STL10": TorchvisionSet(_TWO, "stl10_binary/ (stl10_binary.tar.gz, unpacked)", 2641),
    "Food101": TorchvisionSet(_TWO, "food-101/ (food-101.tar.gz, unpacked)", 4997),
    "GTSRB": TorchvisionSet(_TWO, "gtsrb/", 375, mirror=False, classes=tuple(str(c) for c in range(43))),
    "DTD": TorchvisionSet(_THREE, "dtd/dtd/ (dtd-r1.0.1.tar.gz, unpacked in dtd/)", 626),
    "Flowers102": TorchvisionSet(_THREE, "flowers-102/", 345, classes=tuple(str(c) for c in range(102))),
    "FGVCAircraft": TorchvisionSet(_THREE, "fgvc-aircraft-2013b/ (fgvc-aircraft-2013b.tar.gz, unpacked)", 2753),
    "OxfordIIITPet": TorchvisionSet(
        {"train": {"split": "trainval"}, "test": {"split": "test"}}, "oxford-iiit-pet/ (images and annotations)", 811
    ),
    "StanfordCars": TorchvisionSet(_TWO, "stanford_cars/ (no longer offered for download by its authors)", 1957),
    "Caltech101": TorchvisionSet({"train": {}}, "caltech101/ (101_ObjectCategories and Annotations)", 138),
    "VOCSegmentation": TorchvisionSet(
        {"train": {"image_set": "train"}, "validation": {"image_set": "val"}},
        "VOCdevkit/VOC2012/ (VOCtrainval_11-May-2012.tar, unpacked)",
        2000,
        classes=_VOC,
        targets="masks",
    ),
    "CelebA": TorchvisionSet(
        {"train": {"split": "train"}, "validation": {"split": "valid"}, "test": {"split": "test"}},
        "celeba/ (img_align_celeba.zip, unpacked, and the five text files)",
        1444,
        classes=("face",),
        targets="nothing",
    ),
}
"""Sets that `torchvision:NAME` knows."""


@dataclass(frozen=True)
class DataInfo:
    """What opening a source would take.

    Attributes:
        present: it can be opened without a download; None when only trying would tell.
        download_mb: size of the download in MB (10^6 bytes), 0 when there is none, None when it is unknown.
        where: folder in which it is looked for, and to which it would be downloaded.
    """

    source: str
    present: bool | None
    download_mb: int | None
    where: str


def describe_data(source: str, *, root: Path | None = None) -> DataInfo:
    """What `open_data` would find or download, without opening or downloading anything. Raises DataError."""
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        entry = _torchvision_entry(name)
        folder = root or data_root()
        try:
            _construct(name, entry.parts["train"], folder, download=False)
        except (RuntimeError, OSError):
            return DataInfo(source, False, entry.megabytes, str(folder))
        return DataInfo(source, True, 0, str(folder))
    if kind == "hf":
        return DataInfo(source, None, None, "the cache of Hugging Face")
    return DataInfo(source, as_path(name, DataError).exists() if name else True, 0, name or "the package")


@data_source("torchvision")
def _open_torchvision(argument: str, options: DataOptions) -> Parts:
    """A data set of torchvision, from the root folder, downloaded when it is not there."""
    entry = _torchvision_entry(argument)
    sets = {}
    for part, arguments in entry.parts.items():
        try:
            raw = _construct(argument, arguments, options.root, download=False)
        except (RuntimeError, OSError) as missing:
            raw = _download(argument, arguments, entry, options, missing)
        sets[part] = _read_torchvision(raw, f"torchvision:{argument} ({part})", entry, options)
    return Parts(**sets)


def _torchvision_entry(name: str) -> TorchvisionSet:
    if name not in TORCHVISION_SETS:
        raise DataError(
            f"unknown data set 'torchvision:{name}'. {did_you_mean(name, TORCHVISION_SETS)} "
            f"Known: {', '.join(TORCHVISION_SETS)}"
        )
    return TORCHVISION_SETS[name]


def _construct(name: str, arguments: Mapping[str, Any], root: Path, *, download: bool) -> Any:
    # torchvision prints what it downloads: standard output belongs to the caller's results
    with contextlib.redirect_stdout(sys.stderr):
        return getattr(tvd, name)(str(root), download=download, **arguments)


def _download(
    name: str, arguments: Mapping[str, Any], entry: TorchvisionSet, options: DataOptions, missing: Exception
) -> Any:
    place = f"Put it there yourself ({entry.files} in '{options.root}'), or use another source, such as digits"
    if not options.download:
        raise DataError(
            f"torchvision:{name} is not in '{options.root}' and must not be downloaded ({entry.megabytes} MB). {place}"
        ) from missing
    try:
        options.root.mkdir(parents=True, exist_ok=True)
        return _construct(name, arguments, options.root, download=True)
    except (RuntimeError, OSError, ValueError) as error:  # urllib's errors are OSErrors
        raise DataError(
            f"torchvision:{name} is not in '{options.root}' and could not be downloaded "
            f"({entry.megabytes} MB; {error}). Go online and try again. {place}"
        ) from error


def _read_torchvision(raw: Any, where: str, entry: TorchvisionSet, options: DataOptions) -> ImageSet:
    if entry.targets == "masks":
        return masked_set([Path(p) for p in raw.images], [Path(p) for p in raw.masks], entry.classes, options)
    labels = _stored_labels(raw) if entry.targets == "labels" else torch.zeros(len(raw), dtype=torch.int64)
    names = getattr(raw, "classes", None) or getattr(raw, "categories", None)
    # MNIST's own names are such as "3 - three"
    classes = tuple(str(n) for n in names) if names else entry.classes
    if not classes:
        classes = tuple(str(c) for c in range(int(labels.max()) + 1))
    ids = [f"{where}:{len(labels)}:{i}" for i in range(len(labels))]
    encoded = Encoded(lambda i: raw[i][0], lambda i: f"image {i} of {where}", labels, ids)
    return decode_set(encoded, classes, size=options.size, mirror=entry.mirror)


def _stored_labels(raw: Any) -> Int[Tensor, " n"]:
    stored = next((s for a in ("targets", "labels", "_labels", "y") if (s := getattr(raw, a, None)) is not None), None)
    if stored is None:  # GTSRB, StanfordCars: pairs of file and label; USPS and the like have one of the above
        pairs = getattr(raw, "_samples", None)
        stored = [p[1] for p in pairs] if pairs is not None else [raw[i][1] for i in range(len(raw))]
    return torch.as_tensor(stored).to(torch.int64)


@data_source("hf")
def _open_hugging_face(argument: str, options: DataOptions) -> Parts:
    """A data set of the Hugging Face Hub: `hf:NAME` or `hf:NAME:CONFIG`."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
        import datasets.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"'hf:{argument}' needs the library datasets: pip install 'netsmith[hf]'. "
            f"Image parquet files on disk need nothing more: parquet:PATH"
        ) from error
    name, _, config = argument.partition(":")
    if not name:
        raise DataError("'hf:' needs the name of a data set, as in hf:uoft-cs/cifar10")
    fetching = datasets.DownloadConfig(local_files_only=not options.download)
    try:
        loaded = datasets.load_dataset(name, config or None, download_config=fetching)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"'hf:{argument}' could not be loaded ({error}). Check the name on https://huggingface.co/datasets, "
            f"go online, or give its parquet files: parquet:PATH"
        ) from error
    tables = {str(part): split.with_format("arrow")[:] for part, split in loaded.items()}
    stamp = "".join(str(split._fingerprint) for split in loaded.values())
    known = {part_name(p): t for p, t in tables.items()}
    if "train" not in known:
        raise DataError(f"'hf:{argument}' has no train part; it has {', '.join(tables)}")
    return read_parts(known, f"hf:{argument}", options, base=None, stamp=stamp)


def part_name(split: str) -> str:
    """Our name for a split of a hub data set."""
    return {"valid": "validation", "val": "validation", "dev": "validation"}.get(split, split)
