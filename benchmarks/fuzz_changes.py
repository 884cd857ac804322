"""How fuzzing changes a sound input: by its structure, so that what comes out gets past the first check."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

ATOMS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 64, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 10**18, 10**30, -(10**9), 0.0, -0.0,
    0.5, 1.5, -1.5, 1e-300, 1e9, 1e30, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "0", "1e9", "1e999",
    "null", "a", "auto", "\0", "\x1b]0;x\x07", "\ud800", "\u202e", "x" * 300, "é" * 50, "<script>alert(1)</script>",
    "../../etc/passwd", "/etc/passwd", "a/../../b", "~", "~root", "$HOME", "C:\\x", "|", "#", "@", ":", "a:b", "a@1e9",
    "py:/nowhere/x.py:f", "py:x.py:f", "timm:resnet18", "netsmith:lenet", "torchvision:resnet18#/dev/zero",
    "smp:Unet/resnet18", "hf:a/b", "folder:/nowhere", "parquet:/dev/null", "digits:x", "cuda:999", "__class__",
    "forward", "training", "[", "{", "%s%n", "{0}", "${x}", "-", "²", "٣", "1_000", "0x10", "0o17", ".inf", [], {},
    [[]], [None], {"": None}, {"source": "netsmith:lenet"}, {"min": 1, "max": 0}, [0, 0, 0], [3, 32, 32],
    [1e9, 1e9, 1e9],
    [10**9] * 3, ["a"] * 40,
)  # fmt: skip
"""Values that are put where others stood."""

TOKENS = (
    "!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!x", "&a", "*a", "<<: *a", "? ", "- ",
    ": ", "\t", "\0", "\x85", "\u2028", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "|\n", ">\n", "'", '"', "{", "}",
    "[",
    "]", ",", "#", "@", "`", "\\x", '"\\ud800"', "[" * 400, "{a: " * 200, "9" * 5000, "1e999", ".nan", "~", "\r",
    "\ufeff", "source: py:a.py:f\n",
    "a: &a [*a]\n", "x: &x [1,1,1,1]\ny: &y [*x,*x,*x,*x]\nz: &z [*y,*y,*y,*y]\n", "zoo:\n", "data:\n",
)  # fmt: skip
"""Texts that are put into YAML."""


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a nested value is."""
    found = [here]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*here, key))
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What is at a place."""
    for key in path:
        value = value[key]
    return value


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with one to four changes: replaced, taken out, doubled, put elsewhere, renamed, nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        places = [p for p in paths(value) if p]
        if not places:
            return rng.choice(ATOMS)
        path = rng.choice(places)
        holder, key = at(value, path[:-1]), path[-1]
        act = rng.randrange(12)
        if act < 5:
            holder[key] = copy.deepcopy(rng.choice(ATOMS))
        elif act == 5:
            del holder[key]
        elif act == 6:
            holder[key] = copy.deepcopy(at(value, rng.choice(places)))
        elif act == 7 and isinstance(holder[key], list):
            holder[key] = holder[key] * rng.choice((2, 3, 50))
        elif act == 8 and isinstance(holder, dict):
            holder[str(rng.choice(ATOMS))[:40] or "x"] = holder.pop(key)
        elif act == 9:
            for _ in range(rng.choice((1, 3, 70))):
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        elif type(holder[key]) is int:
            holder[key] += rng.choice((-2, -1, 1, 2, 7, 1000, -1000))
        elif isinstance(holder[key], float):
            holder[key] *= rng.choice((-1, 0.5, 2, 1e3, 1e-9))
        elif isinstance(holder[key], str):
            holder[key] = changed_text(holder[key], rng, TOKENS)
    return value


def changed_text(text: str, rng: random.Random, tokens: tuple[str, ...] = TOKENS) -> str:
    """A text with one to four pieces put in, taken out, doubled or exchanged."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 40)))
        act = rng.randrange(5)
        if act == 0:
            text = text[:a] + rng.choice(tokens) + text[a:]
        elif act == 1:
            text = text[:a] + text[b:]
        elif act == 2:
            text = text[:b] + text[a:b] * rng.choice((1, 2, 20)) + text[b:]
        elif act == 3:
            text = text[:a] + rng.choice(tokens) + text[b:]
        else:
            text = text[:a] + chr(rng.choice((0, 9, 10, 13, 32, 34, 58, 91, 123, 0x2028, 0xD800, 0x1F600))) + text[b:]
    return text


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to eight flipped, cut out, doubled or set to extremes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not out:
            break
        a = rng.randrange(len(out))
        act = rng.randrange(6)
        if act == 0:
            out[a] ^= 1 << rng.randrange(8)
        elif act == 1:
            out[a] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif act == 2:
            del out[a : a + rng.choice((1, 4, 64))]
        elif act == 3:
            out[a:a] = out[a : a + rng.choice((1, 4, 64))]
        elif act == 4:
            out[a : a + 4] = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**6)))
        else:
            out[a : a + 8] = struct.pack("<Q", rng.choice((0, 2**63, 2**64 - 1, 10**12)))
    return bytes(out)


def changed_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, another length of it, or other bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length], data[8 + length :]
    act = rng.randrange(4)
    if act < 2:
        header = as_json(changed(json.loads(header), rng)).encode("utf-8", "surrogatepass")
    elif act == 2:
        header = changed_text(header.decode(), rng, tuple(map(as_json, ATOMS))).encode("utf-8", "surrogatepass")
    else:
        return changed_bytes(data, rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice((0, 1, len(header) + 1, 10**8, 10**9, 2**63, 2**64 - 1))
    rest = rest if rng.random() < 0.9 else rest[: rng.randrange(len(rest) + 1)]
    return struct.pack("<Q", claimed) + header + rest


def as_json(value: Any) -> str:
    """JSON as others may write it: NaN, infinity, whatever."""
    return json.dumps(value, allow_nan=True, ensure_ascii=True)
