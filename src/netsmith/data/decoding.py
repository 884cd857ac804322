"""From encoded images and masks (JPEG, PNG, ...) to sets: in memory when that fits, decoded on demand otherwise."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor

from netsmith import limits
from netsmith.data.images import IGNORED, LazyImages, MemoryImages
from netsmith.errors import DataError

PictureSize = int | tuple[int, int]
"""The side of a square, or height and width, in pixels."""

_log = logging.getLogger("netsmith.data")
MEMORY_LIMIT = 2 * 2**30
"""Sets whose decoded pixels take at most this many bytes are held in memory."""

_LOOKED_AT = 64  # images whose headers are read before a set too large for memory is accepted
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "PPM", "TIFF")
"""What is decoded. Of all that Pillow opens, some run other programs (EPS) and many are hardly tested."""

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", "I", *_DEEP)
_ONE_NUMBER = ("1", "L", "P", "I", *_DEEP)
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I, of 32 bits, holds numbers of 16
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""


@dataclass(frozen=True)
class Encoded:
    """Images not yet decoded.

    Attributes:
        fetch: image `i` as a path, as the bytes of a file, or as an open PIL image.
        where: names image `i` in messages.
        labels: `(n,)` integers.
        ids: what tells image `i` from others without decoding it.
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
    """The set of those images, all grey (C = 1) or all RGB (C = 3).

    With `size` (a side, or height and width), images are resized to cover it and their middle is kept, which is said in
    the log where it leaves something out; without, all must be of one size.

    Raises:
        DataError: no image, one that cannot be read, or sizes that differ.
    """
    headers = _headers(encoded)
    grey = all(mode in _GREY for mode, _ in headers.values())
    height, width = headers[0][1][::-1] if size is None else sides(size)
    _say_crop(headers, (width, height))
    shape = (1 if grey else 3, height, width)

    def read(i: int) -> np.ndarray:
        return _decode(encoded, i, shape, size)

    if len(encoded.labels) * shape[0] * height * width > memory_limit:
        for i, (_, found) in headers.items():
            _check_size(found, i, encoded, shape, size)
        return LazyImages(read, encoded.ids, encoded.labels, classes, shape, mirror=mirror)
    return MemoryImages(_all(read, len(encoded.labels), shape), encoded.labels, classes, mirror=mirror)


def decode_masks(
    encoded: Encoded,
    classes: tuple[str, ...],
    *,
    size: PictureSize | None = None,
    ignore: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> MemoryImages | LazyImages:
    """Masks as a set of one channel, the number of its class in every pixel or `IGNORED`; sizes as in `decode_set`.

    `IGNORED` takes the place of class `ignore`.

    Raises:
        DataError: no mask, one that cannot be read, is in colour, or holds a class that is not there.
    """
    headers = _headers(encoded)
    height, width = headers[0][1][::-1] if size is None else sides(size)
    shape = (1, height, width)

    def read(i: int) -> np.ndarray:
        mask = _read_mask(encoded, i, shape, size, ignore)
        wrong = mask[(mask >= len(classes)) & (mask != IGNORED)]
        if wrong.size:
            raise DataError(
                f"{encoded.where(i)} holds class {wrong.max()}, the data set has {len(classes)} classes "
                f"(0 to {len(classes) - 1}; {IGNORED} marks pixels to be left out)"
            )
        return mask

    if len(encoded.labels) * height * width > memory_limit:
        return LazyImages(read, encoded.ids, encoded.labels, classes, shape)
    return MemoryImages(_all(read, len(encoded.labels), shape), encoded.labels, classes)


def highest_class(encoded: Encoded, ignore: int | None = None) -> int:
    """The highest class in any mask but `ignore`. Raises DataError for one that cannot be read or is in colour."""

    def highest(i: int) -> int:
        mask = _read_mask(encoded, i, (1, 0, 0), 0, ignore)
        return int(mask[mask != IGNORED].max(initial=0))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return max(pool.map(highest, range(len(encoded.labels))))


def border_shares(encoded: Encoded) -> list[float]:
    """Of each class that occurs in some of the masks: the share of its pixels at most two from another or the edge."""
    pixels, inner = np.zeros(IGNORED, dtype=np.int64), np.zeros(IGNORED, dtype=np.int64)
    for i in np.linspace(0, len(encoded.labels) - 1, min(len(encoded.labels), _LOOKED_AT)).astype(int).tolist():
        mask = _read_mask(encoded, i, (1, 0, 0), 0)[0]
        around = {"size": 5, "mode": "constant", "cval": IGNORED}
        alike = minimum_filter(mask, **around) == maximum_filter(mask, **around)
        pixels += np.bincount(mask.ravel(), minlength=IGNORED)[:IGNORED]
        inner += np.bincount(mask[alike], minlength=IGNORED)[:IGNORED]
    return (1 - inner[pixels > 0] / pixels[pixels > 0]).tolist()


def check_same_sizes(images: Encoded, masks: Encoded) -> None:
    """Raises DataError, naming both, unless every mask has the size of its image."""

    def check(i: int) -> None:
        (_, image), (_, mask) = _header(images, i), _header(masks, i)
        if image != mask:
            raise DataError(
                f"{masks.where(i)} has {mask[0]}x{mask[1]} pixels, its image {image[0]}x{image[1]} once both are "
                f"upright (EXIF): a mask must have the size of its image"
            )

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(check, range(len(images.labels))))


def _headers(encoded: Encoded) -> dict[int, tuple[str, tuple[int, int]]]:
    """Mode and size of the first, the last and some of the images in between. Raises DataError when there are none."""
    n = len(encoded.labels)
    if n == 0:
        raise DataError("the data set holds no image")
    return {i: _header(encoded, i) for i in np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int).tolist()}


def _all(read: Callable[[int], np.ndarray], n: int, shape: tuple[int, int, int]) -> UInt8[Tensor, "n c h w"]:
    pixels = np.empty((n, *shape), dtype=np.uint8)

    def fill(first: int) -> None:
        for i in range(first, min(first + 256, n)):
            pixels[i] = read(i)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, n, 256)))
    return torch.from_numpy(pixels)


def _open(encoded: Encoded, i: int) -> Image.Image:
    """Image `i` with its header read. Raises DataError."""
    data = encoded.fetch(i)
    if isinstance(data, Image.Image):
        return data
    if isinstance(data, Path) and not data.is_file():
        raise DataError(f"{encoded.where(i)} is no file (it is missing, or a folder, a pipe or a device)")
    return open_image(data, encoded.where(i))


def open_image(data: Path | bytes, where: str) -> Image.Image:
    """An image with its header read and nothing decoded.

    Raises:
        DataError: of a format that is not in `FORMATS`, damaged, or of more than `limits.IMAGE_PIXELS` pixels.
    """
    if not isinstance(data, Path | bytes):  # Pillow would take a text as a path
        raise DataError(f"{where} is of type {type(data).__name__}; give a Path, or the bytes of an image's file")
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(where, str(error))) from error
    except Exception as error:  # a damaged file makes each decoder raise errors of its own
        raise _unreadable(where, error) from error
    width, height = image.size
    if width * height > limits.IMAGE_PIXELS:
        image.close()
        raise DataError(_too_large(where, f"{width}x{height} pixels"))
    return image


def _too_large(where: str, found: str) -> str:
    return f"{where} is too large ({found}): images have at most {limits.IMAGE_PIXELS} pixels. Take it out or shrink it"


class _Room:
    """Lets images be decoded at the same time up to so many pixels in all, and a larger one alone."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def of(self, image: Image.Image) -> Iterator[None]:
        """Waits until there is room for the pixels of an image."""
        pixels = image.size[0] * image.size[1]
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or self.taken + pixels <= self.most)
            self.taken += pixels
        try:
            yield
        finally:
            with self.changed:
                self.taken -= pixels
                self.changed.notify_all()


_room = _Room(limits.PIXELS_AT_ONCE)


def _header(encoded: Encoded, i: int) -> tuple[str, tuple[int, int]]:
    """Mode, and width and height once it is upright, of image `i`."""
    with _open(encoded, i) as image:
        width, height = image.size
        # the size of a TIFF is that of the upright picture already
        turned = image.format != "TIFF" and _orientation(image) >= 5
        return image.mode, (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the file has none, or has damaged EXIF. Decodes nothing."""
    with contextlib.suppress(Exception):  # viewers show pictures with damaged EXIF as they are stored
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # that of PNG decodes
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it is to be seen: turned and mirrored as its EXIF says."""
    image.load()  # PNG may have EXIF behind its pixels, and TIFF turns them itself
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def read_picture(image: Image.Image, where: str) -> Image.Image:
    """An opened picture, decoded and upright, as mode L if it is grey and RGB otherwise; opacity is dropped.

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
    try:
        deep = image.mode == "I" or image.mode in _DEEP
        tags = getattr(image, "tag_v2", {})
        bits, negative = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC, 1) == 0
        image = _upright(image)
        if deep:  # PIL's own conversion clips instead of scaling, and takes no notice of negatives
            values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
            image = Image.fromarray(~values if negative else values)
        if image.mode in _GREY:
            return image.convert("L")
        # PIL warns of palettes with transparency that become RGB at once
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    except Exception as error:  # as in `open_image`
        raise _unreadable(where, error) from error


def _decode(encoded: Encoded, i: int, shape: tuple[int, int, int], size: PictureSize | None) -> np.ndarray:
    """Image `i` as uint8 `(C, H, W)`."""
    with _open(encoded, i) as opened, _room.of(opened):
        image = read_picture(opened, encoded.where(i))
        _check_size(image.size, i, encoded, shape, size)
        if shape[0] == 1 and image.mode != "L":
            raise DataError(
                f"{encoded.where(i)} is in colour, others of the set are grey: convert all of them to one kind"
            )
        image = image.convert("L" if shape[0] == 1 else "RGB")
        pixels = np.asarray(image if size is None else _resize(image, sides(size)))
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)


def _read_mask(
    encoded: Encoded, i: int, shape: tuple[int, int, int], size: PictureSize | None, ignore: int | None = None
) -> np.ndarray:
    """Mask `i` as uint8 `(1, H, W)`, `IGNORED` in place of class `ignore`; `size` 0 takes it as it is."""
    with _open(encoded, i) as image, _room.of(image):
        if image.mode not in _ONE_NUMBER:
            kind = "holds fractions" if image.mode == "F" else "is in colour"
            raise DataError(
                f"{encoded.where(i)} {kind} (mode {image.mode}); a mask has the number of a class in every "
                f"pixel: save it as a grey or palette PNG"
            )
        try:
            values = np.asarray(_upright(image))  # of a palette image, the indices
        except Exception as error:  # as in `open_image`
            raise _unreadable(encoded.where(i), error) from error
    _check_size((values.shape[1], values.shape[0]), i, encoded, shape, size)
    if values.min() < 0 or values.max() > IGNORED:
        raise DataError(f"{encoded.where(i)} holds {values.max()}; a mask holds numbers from 0 to {IGNORED}")
    mask = Image.fromarray(np.where(values == ignore, IGNORED, values).astype(np.uint8))
    return np.asarray(_resize(mask, sides(size), Image.Resampling.NEAREST) if size else mask)[None]


def sides(size: PictureSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _resize(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    width, height = image.size
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    width, height = max(size[1], round(width * scale)), max(size[0], round(height * scale))
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    return image.resize((width, height), resampling).crop((left, top, left + size[1], top + size[0]))


def _say_crop(headers: Mapping[int, tuple[str, tuple[int, int]]], to: tuple[int, int]) -> None:
    """Say how much of the images is left out when their middle is kept; `to` is width and height."""

    def kept(found: tuple[int, int]) -> float:
        scale = max(to[0] / found[0], to[1] / found[1])
        return to[0] * to[1] / (found[0] * found[1] * scale**2)

    width, height = min((found for _, found in headers.values()), key=kept)
    left_out = 1 - kept((width, height))
    if left_out > 0.01:
        _log.info(
            "images are cut to their middle, %dx%d (height x width): one of %dx%d loses %.0f%%. Another size HxW keeps "
            "other proportions", to[1], to[0], height, width, 100 * left_out,
        )  # fmt: skip


def _check_size(
    found: tuple[int, int], i: int, encoded: Encoded, shape: tuple[int, int, int], size: PictureSize | None
) -> None:
    height, width = sides(size) if size else (found[1], found[0])
    scale = max(height / found[1], width / found[0])
    if found[0] * scale * found[1] * scale > limits.IMAGE_PIXELS:
        raise DataError(_too_large(encoded.where(i), f"{found[0]}x{found[1]} pixels, to become {height}x{width}"))
    if size is None and found != (shape[2], shape[1]):
        raise DataError(
            f"images differ in size: {encoded.where(0)} has {shape[2]}x{shape[1]} pixels, {encoded.where(i)} has "
            f"{found[0]}x{found[1]}. Give a size to which all are resized, their middle being kept: --size "
            f"{min(shape[1:])} for a square, --size {shape[1]}x{shape[2]} for height x width (size= in "
            "Python, data.size in a config)"
        )


def _unreadable(where: str, error: Exception) -> DataError:
    reason = "of none of the formats " + ", ".join(FORMATS) if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(
        f"{where} is no readable image ({reason[:200] or type(error).__name__}). Replace it or take it out of the "
        "data set"
    )
