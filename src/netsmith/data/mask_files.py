"""Data source `masks:PATH`: images with masks, for segmentation; and image and mask files from anywhere as a set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from netsmith.data.decoding import Encoded, border_shares, check_same_sizes, decode_masks, decode_set, highest_class
from netsmith.data.files import image_files, no_image, part_folders, stamp_of
from netsmith.data.masks import MaskedImages
from netsmith.data.registry import DataOptions, Parts, data_source, existing_path
from netsmith.errors import DataError

_IMAGES, _MASKS, _NAMES = "images", "masks", "classes.txt"
_LAYOUT = f"one folder '{_IMAGES}' and one folder '{_MASKS}' with files of the same names were expected"

_VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "unknown", "undefined", "border", "boundary")
_log = logging.getLogger("netsmith.data")

Pairs = tuple[list[Path], list[Path]]


@data_source("masks")
def _open_masks(argument: str, options: DataOptions) -> Parts:
    """Folders `images` and `masks` with files of the same names, in parts (`train`, ...) or in one piece.

    Masks hold the number of a class in every pixel, 255 (or `options.ignore`) where nothing is known. `classes.txt`, if
    it is there, names the classes, one a line; otherwise they are the numbers up to the highest in any mask but
    `options.ignore`.
    """
    path = existing_path("masks", argument)
    if not path.is_dir():
        raise DataError(f"'masks:{argument}' is a file; {_LAYOUT}")
    pairs = {part: _pairs(images, masks) for part, (images, masks) in _folders(path).items()}
    classes = _class_names(path, pairs, options.ignore)
    sets = {part: masked_set(*of_part, classes, options) for part, of_part in pairs.items()}
    return Parts(**sets)


def masked_set(
    images: Sequence[Path], masks: Sequence[Path], classes: tuple[str, ...], options: DataOptions
) -> MaskedImages:
    """The set of those images and masks, in pairs.

    Raises:
        DataError: a file cannot be read, a mask has another size than its image or holds a class that is not there.
    """
    pictures, annotated = _encoded(images, "image"), _encoded(masks, "mask")
    check_same_sizes(pictures, annotated)
    return MaskedImages(
        decode_set(pictures, classes, size=options.size),
        decode_masks(annotated, classes, size=options.size, ignore=options.ignore),
        classes,
        options.ignore,
    )


def _encoded(files: Sequence[Path], what: str) -> Encoded:
    ids = [f"{f.name}:{stamp_of(f)}" for f in files]
    labels = torch.zeros(len(files), dtype=torch.int64)
    return Encoded(lambda i: files[i], lambda i: f"{what} '{files[i]}'", labels, ids)


def _folders(path: Path) -> dict[str, tuple[Path, Path]]:
    """Return folders of images and masks of every part: `train/images` or `images/train`; all is train without."""
    folders = {part: (folder / _IMAGES, folder / _MASKS) for part, folder in part_folders(path).items()}
    images, masks = path / _IMAGES, path / _MASKS
    if not folders and images.is_dir():
        folders = {part: (folder, masks / folder.name) for part, folder in part_folders(images).items()}
    folders = folders or {"train": (images, masks)}
    missing = [str(folder) for both in folders.values() for folder in both if not folder.is_dir()]
    if missing:
        raise DataError(f"there is no folder {', '.join(missing)}: {_LAYOUT}")
    if "train" not in folders:
        raise DataError(f"'{path}' has {', '.join(sorted(folders))} but no train part")
    return folders


def _pairs(images: Path, masks: Path) -> Pairs:
    """Return image and mask files of the same names (endings apart), sorted."""
    pictures, annotated = _by_name(images), _by_name(masks)
    for here, there, folder, what in (
        (pictures, annotated, masks, "image without a mask"),
        (annotated, pictures, images, "mask without an image"),
    ):
        if alone := sorted(here.keys() - there.keys()):
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(
                f"{what}: '{here[alone[0]]}'{more} has no counterpart in '{folder}'; files of the same names were "
                f"expected (endings may differ)"
            )
    if not pictures:
        raise no_image(images)
    names = sorted(pictures)
    return [pictures[n] for n in names], [annotated[n] for n in names]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in image_files(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"'{found[name]}' and '{file}' differ in their endings only: take one of them out")
        found[name] = file
    return found


def _class_names(path: Path, pairs: Mapping[str, Pairs], ignore: int | None) -> tuple[str, ...]:
    if (path / _NAMES).is_file():
        try:
            lines = (path / _NAMES).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"'{path / _NAMES}' cannot be read as names, one a line: {error}") from error
        names = tuple(line.strip() for line in lines if line.strip())
        void = next((k for k, name in enumerate(names) if name.lower() in _VOID), None)
    else:
        annotated = _encoded([mask for _, masks in pairs.values() for mask in masks], "mask")
        names = tuple(str(c) for c in range(highest_class(annotated, ignore) + 1))
        void = len(names) - 1 if ignore is None and _outlines(annotated) else None
    if len(names) < 2:
        raise DataError(
            f"the masks of '{path}' tell no classes apart: class 0 alone (background) was found. Two classes are 0 and "
            f"1 in a mask, not 0 and 255 (255 marks pixels to be left out)"
        )
    if ignore is None and void is not None:
        _log.warning(
            "masks:%s: class %d (%s) may mark pixels that have no class%s. If it does, leave it out of training and "
            "metrics: ignore: %d in a config, --ignore %d, ignore=%d in Python",
            path, void, names[void], "" if (path / _NAMES).is_file() else ": it runs along the borders of the others",
            void, void, void,
        )  # fmt: skip
    return names


def _outlines(masks: Encoded) -> bool:
    """Whether the highest class runs along the borders of the others, as pixels without a class often do."""
    *others, highest = border_shares(masks)
    return bool(others) and highest >= 0.75 and median(others) < 0.5
