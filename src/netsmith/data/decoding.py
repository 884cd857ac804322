"""From encoded images and masks (JPEG, PNG, ...) to sets: in memory when that fits, decoded on demand otherwise."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import ExifTags, Image, ImageOps
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor

from netsmith.data.images import IGNORED, LazyImages, MemoryImages, in_threads
from netsmith.errors import DataError

PictureSize = int | tuple[int, int]
"""The side of a square, or height and width, in pixels."""

_log = logging.getLogger("netsmith.data")
MEMORY_LIMIT = 2 * 2**30
"""Sets whose decoded pixels take at most this many bytes are held in memory."""

_LOOKED_AT = 64  # images whose headers are read before a set too large for memory is accepted
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "PPM", "TIFF")  # of all that Pillow opens, EPS runs a program
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", *_DEEP)
_ONE_NUMBER = ("1", "L", "P", *_DEEP)
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I, of 32 bits, holds numbers of 16
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF

Header = tuple[str, tuple[int, int]]
"""Mode of an image, and its width and height once it is upright."""


@dataclass(frozen=True)
class Encoded:
    """Images not yet decoded.

    Attributes:
        fetch: image `i` as a path, as the bytes of a file, or as an open PIL image.
        where: names image `i` in messages.
        labels: `(n,)` integers.
        ids: tell image `i` from others without decoding it.
    """

    fetch: Callable[[int], Path | bytes | Image.Image]
    where: Callable[[int], str]
    labels: Int[Tensor, " n"]
    ids: Sequence[str]


def decode_set(
    encoded: Encoded,
    classes: tuple[str, ...],
    *,
    size: PictureSize | None = None,
    mirror: bool = True,
    memory_limit: int = MEMORY_LIMIT,
) -> MemoryImages | LazyImages:
    """Return the set of those images, all grey (C = 1) or all RGB (C = 3).

    With `size` (a side, or height and width), images are resized to cover it and their middle is kept, which is said in
    the log where it leaves something out; without, all must be of one size.

    Raises:
        DataError: no image, one that cannot be read, or sizes that differ.
    """
    headers = _headers(encoded)
    mode = "L" if all(mode in _GREY for mode, _ in headers.values()) else "RGB"

    def read(i: int, opened: Image.Image) -> Image.Image:
        image = read_picture(opened, encoded.where(i))
        if mode == "L" != image.mode:
            raise DataError(
                f"{encoded.where(i)} is in colour, others of the set are grey: convert all of them to one kind"
            )
        return image.convert(mode)

    pixels, shape = _pixels(encoded, headers, size, len(mode), read, Image.Resampling.BILINEAR)
    _say_crop(headers, shape)
    return _in_memory_or_not(encoded, classes, pixels, shape, mirror, memory_limit)


def decode_masks(
    encoded: Encoded,
    classes: tuple[str, ...],
    *,
    size: PictureSize | None = None,
    ignore: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> MemoryImages | LazyImages:
    """Return masks as a set of one channel, the number of its class in every pixel or `IGNORED`; sizes as above.

    `IGNORED` takes the place of class `ignore`.

    Raises:
        DataError: no mask, one that cannot be read, is in colour, or holds a class that is not there.
    """

    def read(i: int, opened: Image.Image) -> Image.Image:
        mask = _read_mask(opened, encoded.where(i), ignore)
        wrong = mask[(mask >= len(classes)) & (mask != IGNORED)]
        if wrong.size:
            raise DataError(
                f"{encoded.where(i)} holds class {wrong.max()}, the data set has {len(classes)} classes "
                f"(0 to {len(classes) - 1}; {IGNORED} marks pixels to be left out)"
            )
        return Image.fromarray(mask)

    pixels, shape = _pixels(encoded, _headers(encoded), size, 1, read, Image.Resampling.NEAREST)
    return _in_memory_or_not(encoded, classes, pixels, shape, True, memory_limit)


def highest_class(encoded: Encoded, ignore: int | None = None) -> int:
    """Return the highest class in any mask but `ignore`. Raises DataError for one that cannot be read."""

    def highest(i: int) -> int:
        with _open(encoded, i) as opened:
            mask = _read_mask(opened, encoded.where(i), ignore)
        return int(mask[mask != IGNORED].max(initial=0))

    return max(in_threads(highest, range(len(encoded.labels))))


def border_shares(encoded: Encoded) -> list[float]:
    """Return, of each class in some of the masks, the share of its pixels at most two from another or the edge."""
    pixels, inner = np.zeros(IGNORED, dtype=np.int64), np.zeros(IGNORED, dtype=np.int64)
    for i in _some(len(encoded.labels)):
        with _open(encoded, i) as opened:
            mask = _read_mask(opened, encoded.where(i))
        around = {"size": 5, "mode": "constant", "cval": IGNORED}
        alike = minimum_filter(mask, **around) == maximum_filter(mask, **around)
        pixels += np.bincount(mask.ravel(), minlength=IGNORED)[:IGNORED]
        inner += np.bincount(mask[alike], minlength=IGNORED)[:IGNORED]
    return (1 - inner[pixels > 0] / pixels[pixels > 0]).tolist()


def check_same_sizes(images: Encoded, masks: Encoded) -> None:
    """Check that every mask has the size of its image. Raises DataError, naming both."""

    def check(i: int) -> None:
        (_, image), (_, mask) = _header(images, i), _header(masks, i)
        if image != mask:
            raise DataError(
                f"{masks.where(i)} has {mask[0]}x{mask[1]} pixels, its image {image[0]}x{image[1]} once both are "
                f"upright (EXIF): a mask must have the size of its image"
            )

    in_threads(check, range(len(images.labels)))


def open_image(data: Path | bytes, where: str) -> Image.Image:
    """Return an image with its header read and nothing decoded. Raises DataError where Pillow does not take it."""
    if not isinstance(data, Path | bytes):  # Pillow would take a text as a path
        raise DataError(f"{where} is of type {type(data).__name__}; give a Path, or the bytes of an image's file")
    if isinstance(data, Path) and not data.is_file():  # a pipe would be waited for
        raise DataError(f"{where} is no file (it is missing, or a folder, a pipe or a device)")
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS)
    except Exception as error:  # a damaged file makes each decoder raise errors of its own
        raise _unreadable(where, error) from error


def read_picture(image: Image.Image, where: str) -> Image.Image:
    """Return an opened picture, decoded and upright, as mode L if it is grey and RGB otherwise, without opacity.

    Of several frames it is the first.

    Raises:
        DataError: it is damaged, or of a mode in which no number is defined to be white.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS):
        kind = "fractions" if image.mode == "F" else "whole numbers of 32 bits"
        raise DataError(
            f"{where} is of mode {image.mode} ({kind}), which defines neither black nor white. Scale it to 8 or 16 "
            "bits a channel and save it again"
        )
    deep, tags = image.mode in _DEEP, getattr(image, "tag_v2", {})
    bits, negative = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC, 1) == 0
    image = _upright(image, where)
    if deep:  # PIL's own conversion clips instead of scaling, and takes no notice of negatives
        values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        image = Image.fromarray(~values if negative else values)
    if image.mode in _GREY:
        return image.convert("L")
    # PIL warns of palettes with transparency that become RGB at once
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def sides(size: PictureSize) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def _some(n: int) -> list[int]:
    """Return the first, the last and some indices in between."""
    return np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int).tolist()


def _headers(encoded: Encoded) -> dict[int, Header]:
    """Return the headers of some of the images. Raises DataError when there are none."""
    if not len(encoded.labels):
        raise DataError("the data set holds no image")
    return {i: _header(encoded, i) for i in _some(len(encoded.labels))}


def _header(encoded: Encoded, i: int) -> Header:
    with _open(encoded, i) as image:
        width, height = image.size
        orientation = 1
        with contextlib.suppress(Exception):  # viewers show pictures with damaged EXIF as they are stored
            # not the method of PNG, which decodes
            orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
        # the size of a TIFF is that of the upright picture already
        turned = image.format != "TIFF" and orientation >= 5
        return image.mode, (height, width) if turned else (width, height)


def _open(encoded: Encoded, i: int) -> Image.Image:
    data = encoded.fetch(i)
    return data if isinstance(data, Image.Image) else open_image(data, encoded.where(i))


def _upright(image: Image.Image, where: str) -> Image.Image:
    """Decode a picture, and turn and mirror it as its EXIF says. Raises DataError for a damaged one."""
    try:
        image.load()
    except Exception as error:  # as in `open_image`
        raise _unreadable(where, error) from error
    with contextlib.suppress(Exception):  # damaged EXIF
        return ImageOps.exif_transpose(image)
    return image


def _read_mask(image: Image.Image, where: str, ignore: int | None = None) -> np.ndarray:
    """Return a mask as uint8 `(H, W)`, `IGNORED` in place of class `ignore`."""
    if image.mode not in _ONE_NUMBER:
        kind = "holds fractions" if image.mode == "F" else "is in colour"
        raise DataError(
            f"{where} {kind} (mode {image.mode}); a mask has the number of a class in every pixel: save it as a grey "
            "or palette PNG"
        )
    values = np.asarray(_upright(image, where))  # of a palette image, the indices
    if values.min() < 0 or values.max() > IGNORED:
        raise DataError(f"{where} holds {values.max()}; a mask holds numbers from 0 to {IGNORED}")
    return np.where(values == ignore, IGNORED, values).astype(np.uint8)


def _pixels(
    encoded: Encoded,
    headers: Mapping[int, Header],
    size: PictureSize | None,
    channels: int,
    read: Callable[[int, Image.Image], Image.Image],
    resampling: Image.Resampling,
) -> tuple[Callable[[int], np.ndarray], tuple[int, int, int]]:
    """Return a function that gives image `i` as uint8 `(C, H, W)`, and that shape. Raises DataError for other sizes."""
    height, width = sides(size) if size else headers[0][1][::-1]

    def check(i: int, given: tuple[int, int]) -> None:
        if size is None and given != (width, height):
            raise DataError(
                f"images differ in size: {encoded.where(0)} has {width}x{height} pixels, {encoded.where(i)} has "
                f"{given[0]}x{given[1]}. Give a size to which all are resized, their middle being kept: --size "
                f"{min(height, width)} for a square, --size {height}x{width} for height x width (size= in Python, "
                "data.size in a config)"
            )

    def pixels(i: int) -> np.ndarray:
        with _open(encoded, i) as opened:
            image = read(i, opened)
        check(i, image.size)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), resampling)
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

    for i, (_, given) in headers.items():
        check(i, given)
    return pixels, (channels, height, width)


def _in_memory_or_not(
    encoded: Encoded,
    classes: tuple[str, ...],
    pixels: Callable[[int], np.ndarray],
    shape: tuple[int, int, int],
    mirror: bool,
    memory_limit: int,
) -> MemoryImages | LazyImages:
    n = len(encoded.labels)
    if n * math.prod(shape) > memory_limit:
        return LazyImages(pixels, encoded.ids, encoded.labels, classes, shape, mirror=mirror)
    whole = np.empty((n, *shape), dtype=np.uint8)

    def fill(first: int) -> None:
        for i in range(first, min(first + 256, n)):
            whole[i] = pixels(i)

    in_threads(fill, range(0, n, 256))
    return MemoryImages(torch.from_numpy(whole), encoded.labels, classes, mirror=mirror)


def _say_crop(headers: Mapping[int, Header], shape: tuple[int, int, int]) -> None:
    """Say how much of the images is left out when their middle is kept."""
    high, wide = shape[1:]

    def kept(given: tuple[int, int]) -> float:
        scale = max(wide / given[0], high / given[1])
        return wide * high / (given[0] * given[1] * scale**2)

    width, height = min((given for _, given in headers.values()), key=kept)
    if (left_out := 1 - kept((width, height))) > 0.01:
        _log.info(
            "images are cut to their middle, %dx%d (height x width): one of %dx%d loses %.0f%%. Another size HxW keeps "
            "other proportions", high, wide, height, width, 100 * left_out,
        )  # fmt: skip


def _unreadable(where: str, error: Exception) -> DataError:
    reason = str(error)[:200] or type(error).__name__
    return DataError(f"{where} is no readable image ({reason}). Replace it or take it out of the data set")
