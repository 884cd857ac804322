"""CIFAR-10 at any width: the generators beside each other, in two morph spaces.

    python benchmarks/morph_cifar10.py --json benchmarks/results/morph_cifar10.json
        --data parquet:PATH --base netsmith:cifar_resnet20#FILE --work DIR [--only last_block-grid-0 ...]

One piece is one fit: `SPACE-KIND-SEED`. Each is written to the work folder when it is done, and fits go on where they
were interrupted, so that pieces may run in parallel or on another day; the table is made of those that are there.
Everything is selected on the validation part; each piece reads the test part once, at its end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe, write

from netsmith.data.splits import open_data
from netsmith.morphing.fit import FitSettings
from netsmith.morphing.pipeline import morph
from netsmith.morphing.saving import artifact_bytes, base_bytes, save_morphed
from netsmith.networks.network import load_source
from netsmith.training.settings import TrainSettings

FITTING = ("generator", "keyframes", "fit")
"""Steps that count as fitting; a warm start is part of the first."""
RATIOS = tuple(k / 16 for k in range(16, 1, -1))
COMMON = {
    "lr": 0.02, "weight_decay": 1e-4, "augment": True, "precision": "bf16", "channels_last": True,
    "warmup_epochs": 0.5,
}  # fmt: skip
SPACES: dict[str, dict[str, Any]] = {
    # the paper's: the two convolutions of the last block; fitted from half the width, read below it too
    "last_block": {
        "widths": (0.5, 1.0),
        "training": {**COMMON, "epochs": 20, "lr": 0.03, "batch_size": 256, "clip_grad": 5.0, "ema": 0.998},
        "fitting": {"views": 4, "per_step": 2, "apart": 0.5},
        "draws": {
            "grid": None,
            "nested": ("full", "random", "low", "random"),
            "inr": ("full", "random", "low", "random"),
        },
    },
    "all": {
        "widths": (0.25, 1.0),
        "training": {**COMMON, "epochs": 20, "batch_size": 128, "clip_grad": 2.0, "ema": 0.995},
        "fitting": {"views": 8, "per_step": 1},
        "draws": {
            "grid": None,
            "nested": ("full", "random", "low", "random", "random"),
            "inr": ("full", "random", "low", "random", "random"),
        },
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "grid": {},
    "nested": {},
    # the paper's configuration, started from a regression on the base's weights
    "inr": {"layers": 5, "hidden": 256, "frequencies": 16, "warm_start": 1000},
}
INR_COMMON = {"optimizer": "adamw", "weight_decay": 0.0, "clip_grad": 1.0}
INR_TRAINING: dict[str, dict[str, Any]] = {
    "last_block": {**INR_COMMON, "epochs": 9, "lr": 2.5e-4},
    "all": {**INR_COMMON, "epochs": 6, "lr": 1e-4, "warmup_epochs": 1.0},
}
"""With the warm start, these epochs take about as long as the default's 20."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", default="torchvision:CIFAR10")
    parser.add_argument("--base", required=True, help="source of the base network, with its weights")
    parser.add_argument("--work", type=Path, required=True, help="folder of pieces and checkpoints")
    parser.add_argument("--only", nargs="*", help="pieces to run now, such as all-grid-0; none: only make the table")
    parser.add_argument("--epochs", type=int, help="instead of the space's own")
    parser.add_argument("--lr", type=float, help="instead of the common one")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    pieces = [f"{s}-{k}-{seed}" for s in SPACES for k in KINDS for seed in range(3)]
    for name in pieces if arguments.only is None else arguments.only:
        if not (arguments.work / f"{name}.json").exists():
            run(name, arguments)
    table(arguments)


def run(name: str, arguments: argparse.Namespace) -> None:
    space_name, kind, seed = name.rsplit("-", 2)
    space = SPACES[space_name]
    changed = dict(INR_TRAINING[space_name]) if kind == "inr" else {}
    if arguments.epochs:
        changed["epochs"] = arguments.epochs
    if arguments.lr:
        changed["lr"] = arguments.lr
    training = TrainSettings(**{**space["training"], **changed, "seed": int(seed)})
    fitting = FitSettings(**space["fitting"], draws=space["draws"][kind])
    network = load_source(arguments.base, name="resnet20")
    began = time.perf_counter()

    last = [0.0]

    def told(what: str, done: float, total: float | None, note: str = "") -> None:
        if time.perf_counter() - last[0] > 60:
            last[0] = time.perf_counter()
            print(name, f"{last[0] - began:.0f}s", what, done, total, note, flush=True)

    result = morph(
        network,
        open_data(arguments.data),
        space={"blocks": space_name, "widths": space["widths"]},
        generator={"kind": kind, "settings": KINDS[kind]},
        fitting=fitting,
        training=training,
        ratios=RATIOS,
        seed=int(seed),
        checkpoints=arguments.work / f"{name}-checkpoints",
        progress=told,
    )
    folder = save_morphed(result, arguments.work / f"{name}-artifact", overwrite=True)
    piece = {
        "space": space_name,
        "kind": kind,
        "seed": int(seed),
        "settings": result.model.morphable.generator.settings(),
        "epochs": training.epochs,
        "steps": training.epochs * (50_000 // training.batch_size),
        "threads": torch.get_num_threads(),
        "base": {part: m["accuracy"] for part, m in result.base.items()},
        "floor": {part: m["accuracy"] for part, m in result.floor.items()},
        "bytes_over_base": artifact_bytes(folder) / base_bytes(network),
        "seconds": result.seconds,
        "points": [
            {
                "ratio": p.ratio,
                "params": p.params,
                "macs": p.macs,
                "fitted": p.fitted,
                **{part: m["accuracy"] for part, m in p.metrics.items()},
            }
            for p in result.points
        ],
        "machine": describe(),
    }
    (arguments.work / f"{name}.json").write_text(json.dumps(piece, indent=1))
    print(name, {p["ratio"]: round(100 * p["test"], 2) for p in piece["points"]}, flush=True)


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pieces in a folder: fits, and rivals."""
    fits, rivals = (sorted(folder.glob(pattern)) for pattern in ("*-*-?.json", "*.rival.json"))
    return [json.loads(p.read_text()) for p in fits], [json.loads(p.read_text()) for p in rivals]


def over_seeds(pieces: Sequence[Mapping[str, Any]], ratio: float) -> tuple[float | None, float | None]:
    """Mean and deviation of the test accuracy at a ratio; None where there are too few."""
    tests = [p["test"] for piece in pieces for p in piece["points"] if p["ratio"] == ratio]
    return statistics.mean(tests) if tests else None, statistics.stdev(tests) if len(tests) > 1 else None


def table(arguments: argparse.Namespace) -> None:
    """One row a space and kind: mean and deviation over seeds of test accuracy at each ratio."""
    found, beside = read(arguments.work)
    rows = []
    for space in SPACES:
        for kind in KINDS:
            pieces = [p for p in found if p["space"] == space and p["kind"] == kind]
            if not pieces:
                continue
            row: dict[str, Any] = {
                "space": space,
                "kind": kind,
                "seeds": len(pieces),
                "steps": pieces[0]["steps"],
                "bytes_over_base": pieces[0]["bytes_over_base"],
                "fit_seconds": statistics.mean(sum(p["seconds"].get(k, 0) for k in FITTING) for p in pieces),
                "base": pieces[0]["base"]["test"],
                "floor": pieces[0]["floor"]["test"],
            }
            for ratio in RATIOS:
                row[f"{ratio:g}"], row[f"{ratio:g} spread"] = over_seeds(pieces, ratio)
            rows.append(row)
    default = {r["space"]: r for r in rows if r["kind"] == "grid"}
    nested = {r["space"]: r for r in rows if r["kind"] == "nested"}
    both = [s for s in SPACES if s in default and s in nested]
    pairs = [(default[s][f"{r:g}"], nested[s][f"{r:g}"]) for s in both for r in RATIOS]
    ratio = min((a / b for a, b in pairs if a and b), default=None)
    result = {"rows": rows, "rivals": beside, "ratio": ratio, "peer": "nested (slimmable), the same loop and steps"}
    write(arguments.json, result | {"machine": found[0]["machine"] if found else describe()})
    text = "\n".join(["# CIFAR-10 at any width", "", ABOUT, "", *lines(rows), "", *rival_lines(beside), ""])
    print(text)
    arguments.json.with_suffix(".md").write_text(text)


ABOUT = """Test accuracy (8,000 images) of ResNet20 (88.10%) at ratios of its inner widths; selection on validation.
`last_block`: two convolutions vary, fitted from 0.5 to 1; `all`: nine blocks, fitted from 0.25 to 1. Mean and standard
deviation of the seeds. See `benchmarks/morph_cifar10.py` and `benchmarks/morph_rivals.py`."""


def rival_lines(rivals: list[dict[str, Any]]) -> list[str]:
    """Networks of one size each: pruned and tuned, or trained alone."""
    if not rivals:
        return []
    ratios = sorted({p["ratio"] for rival in rivals for p in rival["points"]}, reverse=True)
    shares = {"total": "steps shared by three", "curve": "steps shared by six", "each": "steps for each"}
    names = {"l1": "Torch-Pruning L1", "taylor": "Torch-Pruning Taylor", "alone": "trained alone"}
    out = ["| space | a network for each size | seeds | steps each | " + " | ".join(f"{r:g}" for r in ratios) + " |"]
    out.append("|---" * (4 + len(ratios)) + "|")
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in rivals:
        alike.setdefault((r["space"], r["rival"], r["share"]), []).append(r)
    for (space, rival, share), pieces in alike.items():
        cells = [shown(*over_seeds(pieces, ratio)) for ratio in ratios]
        about = [space, f"{names[rival]}, {shares[share]}"]
        out.append("| " + " | ".join([*about, str(len(pieces)), str(pieces[0]["steps"]), *cells]) + " |")
    return out


def shown(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return ""
    return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def lines(rows: list[dict[str, Any]]) -> list[str]:
    head = "| space | kind | seeds | steps | fit | bytes / base | " + " | ".join(f"{r:g}" for r in RATIOS) + " |"
    out = [head, "|---" * (6 + len(RATIOS)) + "|"]
    for row in rows:
        cells = [shown(row[f"{r:g}"], row[f"{r:g} spread"]) for r in RATIOS]
        fit = f"{row['fit_seconds'] / 60:.0f} min"
        about = [row["space"], row["kind"], str(row["seeds"]), str(row["steps"]), fit, f"{row['bytes_over_base']:.2f}"]
        out.append("| " + " | ".join([*about, *cells]) + " |")
    return out


if __name__ == "__main__":
    main()
