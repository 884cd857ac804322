"""Where a result comes from and what it took: versions, machine, seeds, hashes, seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from netsmith.files.yaml_text import read_yaml
from netsmith.report.rendering import flatten

Rows = list[tuple[str, str]]


def _seeds(config: str | None, extra: Mapping[str, Any]) -> Rows:
    """Seeds, of details.json if it has them, else every one that the configuration sets, with its place in it."""
    given = {k: v for k, v in extra.items() if "seed" in k}
    if given or config is None:
        return flatten(given)
    return [(k, v) for k, v in flatten(read_yaml(config).value) if k.rpartition(".")[2].endswith("seed")]


def _hashes(folder: Path, weights: Iterable[tuple[str, Any]], manifest: Mapping[str, Any]) -> Rows:
    """SHA-256 of the small result files as they are, and of the artifact's files as its manifest has them."""
    found = []
    for name in ("summary.json", "details.json", "recipe.json", "config.yaml"):
        path = folder / name
        if path.is_file():
            found.append((name, hashlib.sha256(path.read_bytes()).hexdigest()))
    found += [(f"weights of {name}", digest) for name, digest in weights if isinstance(digest, str)]
    files = manifest.get("files")
    for name, entry in files.items() if isinstance(files, Mapping) else ():
        value = entry.get("sha256") if isinstance(entry, Mapping) else entry
        if isinstance(value, str):
            found.append((f"artifact/{name}", value))
    return found


def provenance(
    folder: Path,
    *,
    versions: Mapping[str, Any],
    machine: Mapping[str, Any],
    extra: Mapping[str, Any],
    config: str | None,
    weights: Iterable[tuple[str, Any]],
    manifest: Mapping[str, Any],
) -> list[tuple[str, Rows]]:
    """`(title, rows)` of what is known; `extra` are fields of details.json beyond the contract, `weights` are
    `(network, SHA-256)`, `manifest` is the artifact's."""
    groups = [
        ("Versions", flatten(versions)),
        ("Data", flatten(extra.get("data", {}))),
        ("Machine", flatten(machine)),
        ("Seeds", _seeds(config, extra)),
        ("SHA-256", [*flatten(extra.get("hashes", {})), *_hashes(folder, weights, manifest)]),
    ]
    return [(title, rows) for title, rows in groups if rows]


def steps(seconds: Mapping[str, float | None]) -> tuple[list[tuple[str, float, float]], float]:
    """`(step, seconds, share of the longest)` and the whole time; a field `total` is no step."""
    known = {k: v for k, v in seconds.items() if v is not None and k != "total"}
    longest = max(known.values(), default=1.0) or 1.0
    rows = [(k.replace("_", " "), v, v / longest) for k, v in known.items()]
    return rows, seconds.get("total") or sum(known.values(), 0.0)
