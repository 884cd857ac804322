"""The header of a safetensors file, checked before the library sees it: nothing is allocated for what it claims."""

from __future__ import annotations

import math
import struct
from typing import Any

from netsmith import limits
from netsmith.json_text import parse_json

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one number of each type; of these, the ones that PyTorch has can be loaded."""


def check_header(start: bytes, size: int) -> None:
    """Check a header against its file.

    Args:
        start: the first bytes of the file, with the header in them as far as the file has one.
        size: bytes of the whole file.

    Raises:
        ValueError: what is wrong: a header longer than the file or than `limits.HEADER_BYTES`, no JSON, a tensor whose
            type, shape and bytes contradict each other, or tensors that overlap, leave gaps or go past the end.
    """
    if size < 8 or len(start) < 8:
        raise ValueError(f"it has {size} bytes, and a header alone takes 8")
    length = struct.unpack("<Q", start[:8])[0]
    if length > size - 8:
        raise ValueError(f"its header claims {length} bytes, and the file has {size}")
    if length > limits.HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, expected at most {limits.HEADER_BYTES}")
    header = parse_json(start[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    meta = header.pop("__metadata__", {})
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise ValueError("'__metadata__' in its header is not texts by name")
    if len(header) > limits.TENSORS:
        raise ValueError(f"it lists {len(header)} tensors, expected at most {limits.TENSORS}")
    ends = sorted(_span(name, entry) for name, entry in header.items())
    at = 0
    for begin, end, name in ends:
        if begin != at:
            fault = "overlaps another" if begin < at else "leaves a gap before it"
            raise ValueError(f"the tensor {name[:80]!r} {fault}: its bytes begin at {begin}, expected {at}")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"its tensors have {at} bytes, and the file has room for {size - 8 - length}")


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """First byte, end and name of a tensor, once they agree with its type and shape."""
    shown = repr(name[:80])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"the tensor {shown} is of the type {str(dtype)[:40]!r}, which is not known")
    if not _wholes(shape) or len(shape) > limits.DIMENSIONS:
        raise ValueError(f"the shape of the tensor {shown} is not up to {limits.DIMENSIONS} numbers of at least 0")
    if not _wholes(offsets) or len(offsets) != 2:
        raise ValueError(f"the data_offsets of the tensor {shown} are not two numbers of at least 0")
    begin, end = offsets
    needed = math.prod(shape) * BITS[dtype] // 8
    if end - begin != needed:
        raise ValueError(f"the tensor {shown} needs {needed} bytes for its shape, and has {end - begin}")
    if math.prod(max(1, n) for n in shape) > limits.INTEGER:  # empty, with strides that no number holds
        raise ValueError(f"the shape of the tensor {shown} has too large numbers: {str(shape)[:80]}")
    return begin, end, name


def _wholes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
