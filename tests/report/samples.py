"""Result files as a finished run leaves them, for a zoo of 4 small networks or of 24 large ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# name, source, licence, commercial, units, params, MACs, validation, test
SMALL = (
    (
        "resnet20",
        "netsmith:cifar_resnet20#r20.safetensors",
        "BSD-2-Clause",
        True,
        9,
        269_722,
        40_813_184,
        0.8925,
        0.881,
    ),
    (
        "resnet32",
        "netsmith:cifar_resnet32#r32.safetensors",
        "BSD-2-Clause",
        True,
        15,
        464_154,
        69_124_736,
        0.889,
        0.8921,
    ),
    (
        "resnet56",
        "netsmith:cifar_resnet56#r56.safetensors",
        "BSD-2-Clause",
        True,
        27,
        853_018,
        125_747_840,
        0.8965,
        0.899,
    ),
    (
        "vit_small32",
        "netsmith:small_vit#vit.safetensors",
        "CC-BY-NC-4.0",
        False,
        8,
        1_205_962,
        83_110_400,
        0.81,
        0.8079,
    ),
)
SECONDS = {
    "representation": 21.43,
    "similarity": 0.87,
    "partition": 1.92,
    "search": 0.061,
    "stitch": 38.5,
    "finetune": 412.7,
}
# name, units, params (M), MACs (G), test (%)
_LARGE = """resnet18 8 11.69 1.81 69.8|resnet34 16 21.80 3.66 73.3|resnet50 16 25.56 4.09 80.4
resnet101 33 44.55 7.80 81.9
resnext50_32x4d 16 25.03 4.23 81.1|mobilenetv3_large_100 15 5.48 0.22 75.8|regnety_008 14 6.26 0.81 76.3
regnety_016 27 11.20 1.63 77.9|regnety_032 21 19.44 3.20 82.0|regnety_080 17 39.18 8.00 81.3
regnety_160 18 83.59 15.93 83.7|regnety_320 20 145.05 32.30 80.8|vit_tiny_patch16_224 12 5.72 1.25 75.5
vit_small_patch16_224 12 22.05 4.60 81.4|vit_base_patch16_224 12 86.57 17.57 85.1
vit_large_patch16_224 24 304.33 61.55 85.8
swin_tiny_patch4_window7_224 12 28.29 4.49 81.4|swin_small_patch4_window7_224 24 49.61 8.75 83.2
swin_base_patch4_window7_224 24 87.77 15.44 85.3|convnext_atto 12 3.70 0.55 75.7|convnextv2_nano 14 15.62 2.45 81.9
efficientnet_b0 16 5.29 0.39 77.7|densenet121 58 7.98 2.87 75.6|vit_small_patch16_224_moco_v3 12 22.05 4.60 73.2"""


def _large() -> list[tuple[Any, ...]]:
    rows = []
    for line in _LARGE.replace("\n", "|").split("|"):
        name, units, params, macs, test = line.split()
        free = name not in ("convnextv2_nano", "vit_small_patch16_224_moco_v3")
        accuracy = float(test) / 100
        size = (round(float(params) * 1e6), round(float(macs) * 1e9))
        licence = "Apache-2.0" if free else "CC-BY-NC-4.0"
        rows.append((name, f"timm:{name}", licence, free, int(units), *size, round(accuracy + 0.004, 4), accuracy))
    return rows


def _network(row: tuple[Any, ...], image: int) -> dict[str, Any]:
    name, source, licence, free, n, params, macs, validation, test = row
    tokens = "vit" in name

    def shape(i: int) -> list[int]:
        stage = min(3 * max(i, 0) // n, 2)
        return [65, 192] if tokens else [16 << stage, image >> stage, image >> stage]

    units = [
        {
            "name": f"blocks.{i}" if tokens else f"layer{3 * i // n + 1}.{i - (3 * i // n * n + 2) // 3}",
            "layout": "NLC" if tokens else "NCHW",
            "in_shape": shape(i - 1),
            "out_shape": shape(i),
            "params": int(params * 0.96 / n),
            "macs": int(macs * 0.97 / n),
        }
        for i in range(n)
    ]
    return {
        "name": name,
        "source": source,
        "licence": licence,
        "commercial": free,
        "params": params,
        "macs": macs,
        "accuracy": {"validation": validation, "test": test},
        "units": units,
        "stem": {"params": int(params * 0.01), "macs": int(macs * 0.02)},
        "head": {"params": int(params * 0.03), "macs": int(macs * 0.01)},
    }


def _similarity(networks: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    depth, owner, labels, offsets = [], [], [], []
    for k, n in enumerate(networks):
        offsets.append(len(labels))
        cuts = ["stem", *(u["name"] for u in n["units"])]
        labels += cuts
        depth += list(np.linspace(0, 1, len(cuts)) ** rng.uniform(0.7, 1.4))
        owner += [k] * len(cuts)
    d, o = np.array(depth), np.array(owner)
    values = np.exp(-((d[:, None] - d[None]) ** 2) / 0.09) * np.where(o[:, None] == o[None], 1.0, 0.82)
    noise = rng.normal(0, 0.02, values.shape)
    values = np.clip(values + (noise + noise.T) / 2, -0.02, 1)
    np.fill_diagonal(values, 1.0)
    return {
        "metric": "cka",
        "networks": [n["name"] for n in networks],
        "offsets": offsets,
        "labels": labels,
        "values": [[round(float(v), 5) for v in row] for row in values],
    }


def _partition(networks: list[dict[str, Any]], k: int, rng: np.random.Generator) -> dict[str, Any]:
    blocks, assignment, members = {}, {}, [[] for _ in range(k)]
    for n in networks:
        length = len(n["units"])
        ends = [round((i + 1) * length / k + (rng.uniform(-0.3, 0.3) if i < k - 1 else 0)) for i in range(k)]
        blocks[n["name"]] = [[a, b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        for i, (a, b) in enumerate(blocks[n["name"]]):
            assignment[f"{n['name']}[{a}:{b}]"] = (i * 3 + 1) % k
            members[(i * 3 + 1) % k].append(f"{n['name']}[{a}:{b}]")
    sets = [{"medoid": m[int(rng.integers(len(m)))], "blocks": m} for m in members]
    return {
        "k": k,
        "eps": 0.2,
        "size": "units",
        "objective": 27.41832,
        "trace": [24.1, 26.9, 27.41832],
        "sets": sets,
        "blocks": blocks,
        "assignment": assignment,
    }


def _chosen(blocks: list[str], networks: list[dict[str, Any]], params: int, macs: int) -> list[dict[str, Any]]:
    by_name = {n["name"]: n for n in networks}
    first = by_name[blocks[0].rpartition("[")[0]]
    parts: list[dict[str, Any]] = []

    def add(
        kind: str, network: str | None, name: str, to: tuple[Any, str], size: tuple[int, int], units: Any = ()
    ) -> None:
        last = parts[-1] if parts else {"out_shape": [3, 32, 32], "layout_out": "NCHW"}
        ends = {"in_shape": last["out_shape"], "out_shape": to[0], "layout_in": last["layout_out"], "layout_out": to[1]}
        parts.append(
            {
                "kind": kind,
                "network": network,
                "name": name,
                **ends,
                "params": size[0],
                "macs": size[1],
                "units": list(units),
            }
        )

    add("stem", first["name"], "stem", (first["units"][0]["in_shape"], first["units"][0]["layout"]), (464, 442_368))
    for i, block in enumerate(blocks):
        name, _, span = block.rpartition("[")
        start, stop = (int(v) for v in span[:-1].split(":"))
        units = by_name[name]["units"][start:stop]
        if i:
            add("adapter", None, "1x1 conv", (units[0]["in_shape"], units[0]["layout"]), (2_112 * i, 270_336 * i))
        size = (int(params * (0.07, 0.2, 0.3, 0.38)[i % 4]), int(macs / len(blocks) * 0.95))
        add("block", name, block, (units[-1]["out_shape"], units[-1]["layout"]), size, [u["name"] for u in units])
    add("head", None, "pool and linear", ([10], "NC"), (650, 640))
    return parts


def _candidates(
    partition: dict[str, Any], total: int, most: float, macs: float, reach: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    names = list(partition["blocks"])
    found = []
    for rank in range(1, total + 1):
        picks = [names[int(rng.integers(len(names)))] for _ in range(partition["k"])]
        blocks = [f"{n}[{partition['blocks'][n][i][0]}:{partition['blocks'][n][i][1]}]" for i, n in enumerate(picks)]
        share = float(rng.uniform(0.35, 0.995))
        stitched = reach - 0.0016 * rank * 60 / total - float(rng.exponential(0.022)) + 0.05 * (share - 0.7)
        found.append(
            {
                "rank": rank,
                "blocks": blocks,
                "params": int(most * share),
                "macs": int(macs * min(0.99, share + 0.1 * float(rng.normal()))),
                "cost": round(0.4 + 0.012 * rank + float(rng.normal(0, 0.01)), 6),
                "scores": {
                    "stitch": round(stitched, 5),
                    "naswot": round(float(rng.normal(1500, 40)), 3),
                    "params": share,
                },
                "latency_ms": None,
                "accuracy": {"stitched_validation": round(stitched, 4)},
                "chosen": rank == 1,
            }
        )
    found[0]["accuracy"].update(
        stitched_validation=reach, finetuned_validation=reach + 0.072, finetuned_test=reach + 0.068
    )
    found[0]["params"], found[0]["latency_ms"] = int(most * 0.93244), 3.214
    return found


def _baselines(chosen: dict[str, Any], final: float) -> list[dict[str, Any]]:
    size = {"params": chosen["params"], "macs": chosen["macs"]}
    return [
        {"name": "random adapters", **size, "accuracy": final - 0.021, "note": "same recipe, same epochs"},
        {
            "name": "from scratch",
            **size,
            "accuracy": final - 0.083,
            "note": "same architecture and epochs, random weights",
        },
    ]


def sample(networks: int = 4, *, candidates: int | None = None, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(summary, details)` of a run over 4 or 24 networks."""
    rng = np.random.default_rng(seed)
    small = networks == 4
    zoo = [_network(row, 32 if small else 56) for row in (SMALL if small else _large())]
    most, macs = (500_000, 90e6) if small else (30e6, 6e9)
    k = 4
    partition = _partition(zoo, k, rng)
    found = _candidates(partition, candidates or (40 if small else 100), most, macs, 0.8125 if small else 0.771, rng)
    chosen = found[0]
    if small:
        used = ("resnet20", "resnet56", "vit_small32", "resnet32")
        chosen["blocks"] = ["{0}[{1[0]}:{1[1]}]".format(n, partition["blocks"][n][i]) for i, n in enumerate(used)]
    final = chosen["accuracy"]["finetuned_test"]
    stitched = chosen["accuracy"]["stitched_validation"]
    budget = {
        "params": {"min": None, "max": most},
        "macs": {"min": None, "max": macs},
        "latency_ms": None,
        "memory_mb": None,
    }
    rise = [stitched + 0.072 * (1 - 0.62**e) / (1 - 0.62**10) for e in range(1, 11)]
    history = [
        {"epoch": e, "loss": round(1.375 * 0.8**e + 0.31, 4), "accuracy": round(r, 4)}
        for e, r in enumerate(rise, start=1)
    ]
    summary = {
        "kind": "reassembly",
        "schema": 1,
        "budget": budget,
        "blocks": chosen["blocks"],
        "params": chosen["params"],
        "macs": chosen["macs"],
        "accuracy": {"stitched": round(stitched - 0.004, 5), "finetuned": round(final, 5), "split": "test"},
        "zoo": [
            {"name": n["name"], "params": n["params"], "macs": n["macs"], "accuracy": n["accuracy"]["test"]}
            for n in zoo
        ],
        "seconds": dict(SECONDS),
    }
    details = {
        "schema": 1,
        "networks": zoo,
        "similarity": _similarity(zoo, rng),
        "partition": partition,
        "budget": budget,
        "candidates": found,
        "search": {"optimal": True, "gap": 0.0, "explored": 18_432},
        "chosen": {
            "parts": _chosen(chosen["blocks"], zoo, chosen["params"], chosen["macs"]),
            "params": chosen["params"],
            "macs": chosen["macs"],
            "accuracy": {"stitched": round(stitched - 0.004, 5), "finetuned": round(final, 5)},
            "history": history,
        },
        "baselines": _baselines(chosen, final),
        "seconds": dict(SECONDS),
        "machine": {"cpu": "2 cores", "device": "cpu", "memory_gb": 8, "platform": "Linux x86_64"},
        "versions": {"netsmith": "0.1.0", "torch": "2.4.1", "timm": "1.0.9", "python": "3.11.7"},
    }
    return summary, details


CONFIG = """\
# resolved by netsmith reassemble
zoo: zoo.yaml
data: digits
partition: {k: 4, eps: 0.2, restarts: 200}
budget:
  params: {max: 500000}
finetune: {epochs: 10, optimizer: sgd, lr: 0.05}
seed: 0
"""


def write_sample(
    folder: Path, summary: dict[str, Any], details: dict[str, Any], *, config: str | None = CONFIG
) -> Path:
    """The sample as files in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "details.json").write_text(json.dumps(details))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder


def comparison(rows: int = 9, columns: int = 15) -> dict[str, Any]:
    """What `netsmith compare` hands over."""
    a, b = np.linspace(0, 1, rows), np.linspace(0, 1, columns)
    values = np.exp(-((a[:, None] - b[None]) ** 2) / 0.1)
    return {
        "metric": "cka",
        "rows": {"name": "resnet20", "source": "netsmith:cifar_resnet20", "cuts": [f"layer1.{i}" for i in range(rows)]},
        "columns": {
            "name": "resnet32",
            "source": "netsmith:cifar_resnet32",
            "cuts": [f"layer2.{i}" for i in range(columns)],
        },
        "values": values.tolist(),
        "images": 512,
        "facts": {"data": "digits", "seed": 0},
    }
