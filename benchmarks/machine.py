"""What a result was measured on, and how results are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from netsmith.artifacts.artifact import library_versions


def describe() -> dict[str, Any]:
    """Machine, versions and date."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    peers = {name: installed[name] for name in ("torch-pruning", "ortools", "pytorch-cka") if name in installed}
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {**library_versions(), **peers},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write `{"rows": [...], "ratio": x, ...}` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
