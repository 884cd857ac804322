"""JSON that somebody else wrote: bounded in size, depth and numbers, every key once, no NaN."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from netsmith import limits


def parse_json(data: str | bytes, *, most_values: int = limits.JSON_VALUES, finite: bool = True) -> Any:
    """The value of a JSON text; NaN and infinity, which Python writes though JSON has none, where not `finite`.

    Raises:
        ValueError: no JSON (then a `json.JSONDecodeError`), or JSON that no program of ours writes: more than
            `most_values` values, more than `limits.JSON_DEPTH` levels, a key twice in one object, NaN or infinity, a
            whole number beyond 64 bits, text that is no Unicode.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    count = 1 + text.count(",") + text.count("[") + text.count("{")
    if count > most_values:
        raise ValueError(f"it holds up to {count} values, expected at most {most_values}")
    try:
        value = json.loads(
            text,
            parse_constant=_constant if finite else float,
            parse_int=_whole,
            parse_float=_real if finite else float,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {limits.JSON_DEPTH} levels deep") from None
    _check_depth(value)
    if "\\ud" in text.lower():  # halves of a surrogate pair, which cannot be written again
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds text that is no Unicode (half of a surrogate pair)") from None
    return value


def read_json(
    path: Path, *, most_bytes: int = limits.JSON_BYTES, most_values: int = limits.JSON_VALUES, finite: bool = True
) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read. ValueError: it is no regular file, too large, or as `parse_json`.
    """
    return parse_json(read_bounded(path, most_bytes), most_values=most_values, finite=finite)


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file that has at most `most` of them. Raises OSError and ValueError."""
    # a pipe would be waited for, before one could ask what it is
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no regular file")
        if about.st_size > most:
            raise ValueError(f"it has {about.st_size} bytes, expected at most {most}")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _whole(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) > limits.INTEGER:
        shown = text if len(text) < 30 else f"{text[:20]}... ({len(text)} digits)"
        raise ValueError(f"the number {shown} does not fit into 64 bits")
    return value


def _real(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {text[:30]} is beyond what a float holds")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _check_depth(value: Any) -> None:
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        depth += 1
        if depth > limits.JSON_DEPTH:
            raise ValueError(f"it is nested more than {limits.JSON_DEPTH} levels deep")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
