"""Results kept by content: a result's key is what it was made from, so only what changed is computed again."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from netsmith.files.output import to_json, write_bytes, write_text

_log = logging.getLogger("netsmith.cache")
_SCHEMA = 1


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of nested values: the same content gives the same text in every process and on every machine.

    Understood: None, bool, int, float, complex, str, bytes, paths, enums, lists and tuples (alike), sets, mappings (in
    any order), dataclasses, pydantic models, NumPy scalars and arrays, tensors (on any device) and so state dicts.
    Values of different types differ (`1`, `1.0`, `True` and `"1"` are four things).

    Raises:
        TypeError: for anything else; hashing its `repr` would change between runs.
    """
    state = hashlib.sha256()
    _feed(state, parts)
    return state.hexdigest()


def _put(state: Any, tag: str, data: bytes = b"") -> None:
    # the length in front keeps ("ab", "c") and ("a", "bc") apart
    state.update(tag.encode() + struct.pack("<Q", len(data)))
    state.update(data)


def _utf8(text: str) -> bytes:
    # names of files that are not UTF-8 have halves of surrogate pairs; passed on as they are, no two texts are alike
    return text.encode(errors="surrogatepass")


def _feed(state: Any, value: object) -> None:
    if value is None:
        _put(state, "none")
    elif isinstance(value, enum.Enum):
        _put(state, "enum", f"{type(value).__qualname__}.{value.name}".encode())
    elif isinstance(value, bool | np.bool_):
        _put(state, "bool", b"1" if value else b"0")
    elif isinstance(value, int | np.integer):
        _put(state, "int", str(int(value)).encode())
    elif isinstance(value, float | np.floating):
        _put(state, "float", struct.pack("<d", float(value)))
    elif isinstance(value, complex):
        _put(state, "complex", struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        _put(state, "str", _utf8(value))
    elif isinstance(value, bytes | bytearray):
        _put(state, "bytes", bytes(value))
    elif isinstance(value, Path):
        _put(state, "path", _utf8(value.as_posix()))
    elif isinstance(value, Tensor):
        _feed_tensor(state, value)
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("cannot hash an array of Python objects")
        _put(state, "array", f"{value.dtype.str} {value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _put(state, "map", str(len(value)).encode())
        for pair in sorted((digest(k), k) for k in value):
            state.update(pair[0].encode())
            _feed(state, value[pair[1]])
    elif isinstance(value, list | tuple):
        _put(state, "seq", str(len(value)).encode())
        for item in value:
            _feed(state, item)
    elif isinstance(value, set | frozenset):
        _put(state, "set", "".join(sorted(digest(item) for item in value)).encode())
    elif isinstance(value, BaseModel):
        _put(state, "model", type(value).__qualname__.encode())
        _feed(state, value.model_dump(mode="python"))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _put(state, "data", type(value).__qualname__.encode())
        _feed(state, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        raise TypeError(f"cannot hash a {type(value).__qualname__} by its content")


def _feed_tensor(state: Any, value: Tensor) -> None:
    _put(state, "tensor", f"{value.dtype} {tuple(value.shape)}".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.numel():
        state.update(flat.view(torch.uint8).numpy().data)


class CacheEntry(dict[str, Tensor]):
    """Tensors by name; `meta` is the JSON that was stored beside them."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.meta: dict[str, Any] = dict(meta)


class Cache:
    """A folder of entries, each a safetensors file and a JSON file that holds its hash.

    Entries are written whole or not at all and verified when read; a damaged one is reported through `logging` and
    treated as absent. Keys are file names: use `digest`, with a readable word in front where it helps.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        """The safetensors file of an entry; its JSON stands beside it."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}", key):
            raise ValueError(f"a cache key is letters, digits, '.', '_' and '-', got {key!r}")
        return self.root / f"{key}.safetensors"

    def load(self, key: str) -> CacheEntry | None:
        """The entry, or None when there is none or it is damaged."""
        file = self.path(key)
        note = file.with_suffix(".json")
        if not note.exists():
            return None
        try:
            record = json.loads(note.read_text(encoding="utf-8"))
            if record["schema"] != _SCHEMA:
                _log.warning("cache entry %s is of another version; computing it again", note)
                return None
            data = file.read_bytes()
            if hashlib.sha256(data + _canonical(record["meta"])).hexdigest() != record["sha256"]:
                raise ValueError("its hash differs")
            return CacheEntry(tensors_from_bytes(data), record["meta"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            _log.warning("cache entry %s is damaged (%s); computing it again", note, error)
            return None

    def store(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> Path:
        """Write an entry; the JSON goes last, so a killed process leaves no entry that looks whole.

        Raises:
            OutputError: no space or permission.
        """
        file = self.path(key)
        # through JSON and back, so that what is hashed is what a reader will see
        plain = json.loads(to_json(dict(meta or {})))
        data = tensors_to_bytes(independent(tensors))
        write_bytes(file, data)
        sha256 = hashlib.sha256(data + _canonical(plain)).hexdigest()
        write_text(file.with_suffix(".json"), to_json({"schema": _SCHEMA, "sha256": sha256, "meta": plain}, indent=2))
        return file

    def get_or_compute(
        self, key: str, compute: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    ) -> CacheEntry:
        """The entry, computed and stored first where it is missing; `compute` returns tensors and meta."""
        entry = self.load(key)
        if entry is not None:
            return entry
        tensors, meta = compute()
        self.store(key, tensors, meta)
        return CacheEntry(tensors, json.loads(to_json(dict(meta))))

    def remove(self, key: str) -> None:
        """Forget an entry; nothing happens when there is none."""
        for file in (self.path(key).with_suffix(".json"), self.path(key)):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()


def _canonical(meta: object) -> bytes:
    return to_json(meta).encode()


def independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which no two share memory: what safetensors can write."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        pointer = flat.untyped_storage().data_ptr()
        if pointer in seen or flat.untyped_storage().nbytes() != flat.numel() * flat.element_size():
            flat = flat.clone()
        seen.add(pointer)
        result[name] = flat
    return result
