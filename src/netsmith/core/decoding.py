"""From encoded images (JPEG, PNG, ...) to an `ImageSet`: in memory when that fits, decoded on demand otherwise."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from netsmith.core.images import ImageSet, LazyImages, MemoryImages
from netsmith.errors import DataError

MEMORY_LIMIT = 2 * 2**30
"""Sets whose decoded pixels take at most this many bytes are held in memory."""

_LOOKED_AT = 64  # images whose headers are read before a set too large for memory is accepted
_GREY = ("1", "L", "I;16")


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
    size: int | None = None,
    mirror: bool = True,
    memory_limit: int = MEMORY_LIMIT,
) -> ImageSet:
    """The set of those images, all grey (C = 1) or all RGB (C = 3).

    With `size`, the shorter side is resized to it and the middle square kept; without, all must be of one size.

    Raises:
        DataError: no image, one that cannot be read, or sizes that differ.
    """
    n = len(encoded.labels)
    if n == 0:
        raise DataError("the data set holds no image")
    headers = {i: _header(encoded, i) for i in np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int).tolist()}
    grey = all(mode in _GREY for mode, _ in headers.values())
    width, height = headers[0][1] if size is None else (size, size)
    shape = (1 if grey else 3, height, width)

    def read(i: int) -> np.ndarray:
        return _decode(encoded, i, shape, size)

    if n * shape[0] * height * width > memory_limit:
        for i, (_, found) in headers.items():
            _check_size(found, i, encoded, shape, size)
        return LazyImages(read, encoded.ids, encoded.labels, classes, shape, mirror=mirror)
    pixels = np.empty((n, *shape), dtype=np.uint8)

    def fill(first: int) -> None:
        for i in range(first, min(first + 256, n)):
            pixels[i] = read(i)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, n, 256)))
    return MemoryImages(torch.from_numpy(pixels), encoded.labels, classes, mirror=mirror)


def _open(encoded: Encoded, i: int) -> Image.Image:
    """Image `i` with its header read. Raises DataError."""
    data = encoded.fetch(i)
    if isinstance(data, Image.Image):
        return data
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(encoded.where(i), error) from error


def _header(encoded: Encoded, i: int) -> tuple[str, tuple[int, int]]:
    """Mode, and width and height, of image `i`."""
    with _open(encoded, i) as image:
        return image.mode, image.size


def _decode(encoded: Encoded, i: int, shape: tuple[int, int, int], size: int | None) -> np.ndarray:
    """Image `i` as uint8 `(C, H, W)`."""
    with _open(encoded, i) as image:
        _check_size(image.size, i, encoded, shape, size)
        try:
            if image.mode == "I;16":  # 16 bits a pixel: PIL's own conversion clips instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            grey = image.mode in _GREY
            if shape[0] == 1 and not grey:
                raise DataError(
                    f"{encoded.where(i)} is in colour, others of the set are grey: convert all of them to one kind"
                )
            image = image.convert("L" if shape[0] == 1 else "RGB")
        except (OSError, SyntaxError) as error:
            raise _unreadable(encoded.where(i), error) from error
    if size is not None:
        image = _resize(image, size)
    pixels = np.asarray(image)
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)


def _resize(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def _check_size(
    found: tuple[int, int], i: int, encoded: Encoded, shape: tuple[int, int, int], size: int | None
) -> None:
    if size is None and found != (shape[2], shape[1]):
        raise DataError(
            f"images differ in size: {encoded.where(0)} has {shape[2]}x{shape[1]} pixels, {encoded.where(i)} has "
            f"{found[0]}x{found[1]}. Give a size to which all are resized (size: {min(shape[1:])})"
        )


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(f"{where} is no readable image ({error}). Replace it or take it out of the data set")
