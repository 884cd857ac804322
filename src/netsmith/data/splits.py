"""Data sources: one string to train, validation and test images.

`digits` (scikit-learn's, offline), `torchvision:NAME`, `folder:PATH`, `images:PATH`, `masks:PATH`, `parquet:PATH`,
`hf:NAME`; more by
`data_source`.
"""

from __future__ import annotations

from pathlib import Path

from netsmith import limits
from netsmith.data import files as data_files
from netsmith.data import mask_files as data_masks
from netsmith.data import named as data_named
from netsmith.data.decoding import sides
from netsmith.data.images import (
    ImageSet,
    LazyImages,
    MemoryImages,
    Splits,
    augmented,
    augmented_pair,
    balanced_indices,
    batches,
    check_labelled,
    probe_set,
    stratified_split,
)
from netsmith.data.masks import MaskedImages
from netsmith.data.named import DataInfo, describe_data
from netsmith.data.registry import DATA_SOURCES, DataOptions, Parts, data_root, data_source
from netsmith.errors import DataError, did_you_mean
from netsmith.files.cache import digest

__all__ = [
    "DATA_SOURCES",
    "DataInfo",
    "DataOptions",
    "ImageSet",
    "LazyImages",
    "MaskedImages",
    "MemoryImages",
    "Parts",
    "Splits",
    "augmented",
    "augmented_pair",
    "balanced_indices",
    "batches",
    "check_labelled",
    "data_root",
    "data_source",
    "describe_data",
    "open_data",
    "probe_set",
    "stratified_split",
]

# importing them has put their sources into the registry
_BUILT_IN = (data_files, data_masks, data_named)

TEST_FRACTION = 0.2
"""What is kept for the test part when a data set comes in one piece."""


def open_data(
    source: str,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    size: int | tuple[int, int] | None = None,
    ignore: int | None = None,
    root: Path | None = None,
    download: bool = True,
) -> Splits:
    """Open a data source.

    Train, validation and test stay apart. What the source does not have is split off the training part, stratified by
    class and by `seed` alone: `validation_fraction` of it for validation; a fifth for test when there is neither. A
    source with train and validation only (as ImageNet, whose validation images are what everybody reports) has
    its validation part used as the test part, and a new validation part split off train. `digits` is always split
    in the same way.

    Args:
        source: `digits`, `torchvision:NAME`, `folder:PATH`, `masks:PATH`, `parquet:PATH`, `hf:NAME` or
            `hf:NAME:CONFIG`; `images:PATH` where no labels are needed: its sets have no classes.
        seed: of the split.
        validation_fraction: of the training part, between 0 and 1, where the source has no validation part.
        size: to which images are resized, in pixels: the side of a square, or (height, width). Their middle is kept,
            and the log says what is left out.
        ignore: number of a class in masks that counts nowhere, beside 255; its pixels are left out of training and
            metrics. Where `classes.txt` names it, it keeps its place among the classes.
        root: where downloaded sets are kept; by default `data_root()`.
        download: whether a missing set may be downloaded.

    Raises:
        DataError: unknown or missing source, unreadable images, sizes that differ, no labels, parts that do not fit.
        MissingDependencyError: `hf:` without the `hf` extra.

    Examples:
        >>> netsmith.open_data("digits").shape  # or folder:PATH, parquet:PATH, torchvision:NAME, hf:NAME, ...
        (1, 8, 8)
    """
    if not 0.0 < validation_fraction < 1.0:
        raise DataError(f"validation_fraction is a number between 0 and 1, not {validation_fraction}")
    if not (size is None or isinstance(size, int) or (isinstance(size, tuple | list) and len(size) == 2)):
        raise DataError(f"size is a number of pixels, or (height, width), not {size!r}")
    for side in () if size is None else sides(size):
        if side < 1:
            raise DataError(f"size is a number of pixels, at least 1, not {size}")
        if side > limits.SIDE:
            raise DataError(f"size is a number of pixels, at most {limits.SIDE}, not {size}")
    kind, _, argument = source.partition(":")
    if kind not in DATA_SOURCES:
        raise DataError(
            f"unknown data source '{source}'. {did_you_mean(kind, DATA_SOURCES)} "
            f"A source is digits, torchvision:NAME, folder:PATH, images:PATH, masks:PATH, parquet:PATH or hf:NAME"
        )
    parts = DATA_SOURCES[kind](argument, DataOptions(size, root or data_root(), download, ignore))
    if ignore is not None and parts.train.ignore != ignore:
        raise DataError(f"'{source}' has no masks, and ignore ({ignore}) is a class of masks: leave it out")
    train, validation, test = parts.train, parts.validation, parts.test
    if test is None and validation is not None:
        validation, test = None, validation
    if test is None:
        train, test = _split(train, TEST_FRACTION, seed + 1)
    if validation is None:
        train, validation = _split(train, validation_fraction, seed)
    _check_parts(source, {"train": train, "validation": validation, "test": test})
    fingerprint = digest("splits", [p.identity() for p in (train, validation, test)])
    return Splits(source, train, validation, test, fingerprint)


def _split(whole: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    rest, part = stratified_split(whole.labels, fraction, seed)
    if not len(part):
        raise DataError(
            f"{len(whole)} images of {len(whole.classes)} classes are too few to split: two a class are needed"
        )
    return whole.subset(rest), whole.subset(part)


def _check_parts(source: str, parts: dict[str, ImageSet]) -> None:
    train = parts["train"]
    for name, part in parts.items():
        if not len(part):
            raise DataError(f"the {name} part of '{source}' holds no image")
        if part.classes != train.classes:
            odd = sorted(set(part.classes) ^ set(train.classes))[:6]
            raise DataError(f"the {name} part of '{source}' has other classes than its train part ({', '.join(odd)})")
        if part.shape != train.shape:
            raise DataError(
                f"images of the {name} part of '{source}' are {_size(part)}, those of its train part {_size(train)}: "
                f"give a size to which all are resized"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if part.classes and (low < 0 or high >= len(part.classes)):
            wrong = low if low < 0 else high
            raise DataError(
                f"the {name} part of '{source}' has label {wrong}; labels go from 0 to {len(part.classes) - 1} "
                f"(-1 usually marks images without a label)"
            )


def _size(images: ImageSet) -> str:
    return "x".join(str(s) for s in images.shape)
