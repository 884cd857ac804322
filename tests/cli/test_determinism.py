"""The same seed on the same machine: the same bytes, but for a short list of fields that hold times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from netsmith.cli.main import main

sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import MORPH, REASSEMBLE

TIMES = {"seconds", "latency_ms", "machine"}
"""What docs/promises.md names: these fields of JSON files, and report.html and log.txt, which show them."""


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, object]:
    """All files of a run but those that hold times of day; JSON without the fields that do."""
    found: dict[str, object] = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(file.relative_to(out))
        if name.split("/")[0] not in ("cache", "checkpoints", "log.txt", "report.html"):
            found[name] = timeless(json.loads(file.read_text())) if file.suffix == ".json" else file.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["reassemble", "morph"])
def test_two_runs_leave_the_same_bytes(tmp_path, verb):
    config = tmp_path / "config.yaml"
    if verb == "reassemble":
        config.write_text(REASSEMBLE.replace("BATCH", "128"))
    else:
        base = (
            MORPH.split("weights:")[0] + "data: digits\ndevice: cpu\ntraining: {epochs: 1, batch_size: 128, lr: 0.1}\n"
        )
        (tmp_path / "base.yaml").write_text(base)
        assert main(["train", str(tmp_path / "base.yaml"), "--out", str(tmp_path / "base"), "--quiet"]) == 0
        weights = str(tmp_path / "base/artifact/weights.safetensors")
        config.write_text(MORPH.replace("BATCH", "128").replace("WEIGHTS", weights))
    outcomes = []
    for name in ("a", "b"):
        assert main([verb, str(config), "--out", str(tmp_path / name), "--quiet"]) == 0
        outcomes.append(outcome(tmp_path / name))
    a, b = outcomes
    assert a.keys() == b.keys()
    assert {"summary.json", "details.json", "artifact/manifest.json", "artifact/README.md"} <= a.keys()
    assert any(name.endswith(".safetensors") for name in a)
    assert [name for name in a if a[name] != b[name]] == []


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path):
    (tmp_path / "zoo.yaml").write_text(REASSEMBLE.replace("BATCH", "128"))
    for seed in (0, 1):
        words = ["--out", str(tmp_path / str(seed)), "--seed", str(seed), "--quiet"]
        assert main(["reassemble", str(tmp_path / "zoo.yaml"), *words]) == 0
    a, b = (outcome(tmp_path / str(seed)) for seed in (0, 1))
    assert a["recipe.json"] != b["recipe.json"]
    assert a["artifact/weights.safetensors"] != b["artifact/weights.safetensors"]
