"""Result files as a finished morph leaves them: of a CIFAR ResNet20, and of a variational autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = tuple((f"layer{s + 1}.{i}.conv1", 16 << s) for s in range(3) for i in range(3))
# ratio: params, MACs (M), accuracy on test
WIDTHS = {
    1.0: (269_722, 40.81, 0.8812),
    0.875: (236_412, 35.79, 0.8795),
    0.75: (203_102, 30.76, 0.8772),
    0.625: (169_792, 25.74, 0.8740),
    0.5: (136_482, 20.71, 0.8691),
    0.375: (103_172, 15.69, 0.8402),
    0.25: (69_862, 10.66, 0.7604),
    0.125: (36_552, 5.64, 0.1707),
}
SECONDS = {"load": 0.81, "groups": 4.2, "fold": 0.4, "smooth": 21.7, "fit": 1_712.4, "rivals": 2_204.0, "report": 0.2}


def _both(test: float, rng: np.random.Generator) -> dict[str, float]:
    return {"validation": round(test + float(rng.normal(0, 0.004)), 4), "test": test}


def _picture(rng: np.random.Generator) -> dict[str, Any]:
    wave = np.sin(np.linspace(0, 9, 64))[:, None] * np.cos(np.linspace(0, 5, 48))[None]
    after = 0.08 * wave + rng.normal(0, 0.015, (64, 48))
    before = after[rng.permutation(64)][:, rng.permutation(48)]
    return {
        "tensor": "layer3.2.conv1.weight",
        "before": np.round(before, 5).tolist(),
        "after": np.round(after, 5).tolist(),
    }


def _smooth(rng: np.random.Generator) -> dict[str, Any]:
    groups = []
    for name, width in GROUPS:
        before = width * float(rng.uniform(9, 11))
        after, bound = before * float(rng.uniform(0.72, 0.85)), before * float(rng.uniform(0.62, 0.7))
        groups.append({"name": name, "width": width, "before": before, "after": after, "bound": bound})
    total = {k: sum(g[k] for g in groups) for k in ("before", "after", "bound")}
    return {
        "order": "smooth",
        "solver": "fast-tsp",
        "deterministic": False,
        **total,
        "groups": groups,
        "picture": _picture(rng),
    }


def _history(rng: np.random.Generator, ends: dict[str, float], steps: int = 4_000) -> list[dict[str, Any]]:
    rows = []
    for step in range(50, steps + 1, 50):
        way = step / steps
        row: dict[str, Any] = {
            "step": step,
            "loss": round(0.35 + 1.6 * 0.03**way + abs(float(rng.normal(0, 0.03))), 4),
            "lr": round(0.01 * (1 - way), 6),
        }
        if step % 400 == 0:
            row["metric"] = {k: round(v - abs(v) * 0.25 * 0.02**way, 4) for k, v in ends.items()}
        rows.append(row)
    return rows


def _rivals(rng: np.random.Generator) -> list[dict[str, Any]]:
    def points(shift: dict[float, float]) -> list[dict[str, Any]]:
        return [
            {
                "ratio": r,
                "params": WIDTHS[r][0],
                "macs": int(WIDTHS[r][1] * 1e6),
                "accuracy": _both(round(WIDTHS[r][2] + d, 4), rng),
            }
            for r, d in shift.items()
        ]

    nested = points({1.0: -0.004, 0.75: -0.005, 0.5: -0.006, 0.25: 0.011})
    same = points({0.75: -0.011, 0.5: -0.014, 0.25: -0.032})
    each = points({0.75: -0.002, 0.5: 0.003, 0.25: 0.026})
    alone = points({0.5: 0.001, 0.25: 0.041})
    return [
        {"name": "nested", "note": "same total of steps", "steps": 4_000, "points": nested},
        {"name": "Torch-Pruning L1", "note": "same total of steps", "steps": 1_000, "points": same},
        {"name": "Torch-Pruning Taylor", "note": "these steps for each size", "steps": 4_000, "points": each},
        {"name": "trained alone", "note": "one network a size", "steps": 78_000, "points": alone},
    ]


def _base(params: int, macs: int, size: int) -> dict[str, Any]:
    return {
        "name": "resnet20",
        "source": "netsmith:cifar_resnet20#r20.safetensors",
        "licence": "BSD-2-Clause",
        "params": params,
        "macs": macs,
        "bytes": size,
    }


def classification(seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(summary, details)` of a ResNet20 morphed in all inner widths, with four rivals."""
    rng = np.random.default_rng(seed)
    widths = [
        {
            "ratio": r,
            "widths": {name: max(1, round(r * width)) for name, width in GROUPS},
            "params": params,
            "macs": int(macs * 1e6),
            "fitted": r >= 0.25,
            "accuracy": _both(test, rng),
            "latency_ms": round(2.1 + 3.2 * r, 3),
        }
        for r, (params, macs, test) in WIDTHS.items()
    ]
    details = {
        "schema": 1,
        "kind": "morph",
        "base": {**_base(269_722, 40_813_184, 1_089_000), "accuracy": {"validation": 0.8925, "test": 0.8836}},
        "task": {"name": "classification", "primary": "accuracy", "higher_is_better": True},
        "floor": {"validation": 0.1, "test": 0.1016},
        "space": {
            "mode": "all",
            "groups": [{"name": n, "width": w, "min": w // 4, "max": w, "kind": "inner"} for n, w in GROUPS],
            "refused": [{"name": "layer2.0", "width": 32, "reason": "padded shortcut: the output differs by 0.31"}],
            "fitted": [0.25, 1.0],
        },
        "smooth": _smooth(rng),
        "generator": {
            "kind": "grid",
            "params": 512_907,
            "bytes": 2_060_000,
            "settings": {"keyframes": [1.0, 0.5, 0.25], "residual": {"scale": 0.3, "width": 64}},
        },
        "fit": {
            "steps": 4_000,
            "seconds": 1_712.4,
            "history": _history(rng, {"1.0": 0.882, "0.5": 0.869, "0.25": 0.761}),
        },
        "widths": widths,
        "rivals": _rivals(rng),
        "artifact": {"bytes": 2_070_000, "ratio_to_base": 2_070_000 / 1_089_000},
        "seconds": dict(SECONDS),
        "machine": {"cpu": "2 cores", "device": "cpu", "memory_gb": 8, "platform": "Linux x86_64"},
        "versions": {"netsmith": "0.1.0", "torch": "2.4.1", "torch_pruning": "1.6.0", "python": "3.11.7"},
    }
    return summary_of(details), details


def generation(seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(summary, details)` of a variational autoencoder, its metric the evidence lower bound."""
    rng = np.random.default_rng(seed)
    values = {1.0: -0.4213, 0.5: -0.4388, 0.25: -0.4901}
    widths = [
        {
            "ratio": r,
            "widths": {"encoder.0": round(32 * r), "decoder.2": round(64 * r)},
            "params": int(200_000 * r**1.5) + 40_000,
            "macs": int(9e6 * r**1.5) + 10**6,
            "fitted": True,
            "accuracy": {"validation": round(v + 0.001, 4), "test": v},
            "latency_ms": None,
        }
        for r, v in values.items()
    ]
    base = _base(240_000, 10_000_000, 964_000) | {"name": "conv_vae", "source": "netsmith:conv_vae#vae.safetensors"}
    details = {
        "schema": 1,
        "kind": "morph",
        "base": {**base, "accuracy": {"validation": -0.4192, "test": -0.4201}},
        "task": {"name": "generation", "primary": "elbo", "higher_is_better": True},
        "floor": None,
        "space": {"mode": "last_block", "groups": [], "refused": [], "fitted": [0.25, 1.0]},
        "smooth": None,
        "generator": {"kind": "inr", "params": 90_000, "bytes": 360_000, "settings": {}},
        "fit": {
            "steps": 800,
            "seconds": 85.0,
            "history": _history(rng, {"1.0": -0.42, "0.5": -0.44, "0.25": -0.49}, steps=800),
        },
        "widths": widths,
        "rivals": [],
        "artifact": {"bytes": 365_000, "ratio_to_base": 365_000 / 964_000},
        "seconds": {"fit": 85.0},
        "machine": {},
        "versions": {"netsmith": "0.1.0"},
    }
    return summary_of(details), details


def summary_of(details: dict[str, Any]) -> dict[str, Any]:
    """The contract's short form of `details`."""
    base, floor = details["base"], details["floor"]
    return {
        "kind": "morph",
        "schema": 1,
        "base": {"params": base["params"], "macs": base["macs"], "accuracy": base["accuracy"]["test"]},
        "floor": None if floor is None else floor["test"],
        "widths": [
            {"ratio": w["ratio"], "params": w["params"], "macs": w["macs"], "accuracy": w["accuracy"]["test"]}
            for w in details["widths"]
        ],
        "artifact_bytes": details["artifact"]["bytes"],
        "seconds": dict(details["seconds"]),
    }


CONFIG = """\
# resolved by netsmith morph
base: netsmith:cifar_resnet20#r20.safetensors
data: parquet:cifar10
space: {blocks: all, widths: [0.25, 1.0]}
seed: 0
"""


def write_morph(folder: Path, summary: dict[str, Any], details: dict[str, Any], *, config: str | None = CONFIG) -> Path:
    """The sample as files in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "details.json").write_text(json.dumps(details))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder
