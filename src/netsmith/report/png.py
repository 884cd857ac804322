"""A PNG of palette indices from the standard library alone, so that a page can hold a large heatmap."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def palette_png(indices: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """PNG bytes of `indices` `(h, w)` uint8, coloured by `palette` (at most 256 RGB triples).

    One IDAT chunk, no interlacing, filter 0 in every row (PNG specification, 2nd edition, sections 9 and 11): the
    page's script can then read the indices back by inflating that one chunk.
    """
    assert indices.dtype == np.uint8
    assert indices.ndim == 2
    assert 0 < len(palette) <= 256
    height, width = indices.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = indices
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(v for colour in palette for v in colour)),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def data_uri(png: bytes) -> str:
    """The picture as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
