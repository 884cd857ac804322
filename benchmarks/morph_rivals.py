"""CIFAR-10: networks pruned by Torch-Pruning (L1 and Taylor) or trained alone, at the sizes of `morph_cifar10.py`.

    python benchmarks/morph_rivals.py --data parquet:PATH --base netsmith:cifar_resnet20#FILE --work DIR
        --only all-l1-total all-taylor-total all-l1-each last_block-l1-total ...

A piece is `SPACE-RIVAL-SHARE` or `SPACE-RIVAL-SHARE-SEED` (0 without): with `total` the steps of one fit in
`morph_cifar10.py` are shared among three sizes (75, 50, 25%), with `curve` among the six from 87.5 down to 25% that the
default is trained for, and with `each` every one of the three gets as many. Loss, optimizer and order of images
are those of the fits there. Each is written to the work folder when it is done, and goes on where it was interrupted;
`morph_cifar10.py` puts them into its table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from morph_cifar10 import SPACES
from rivals import Bench

from netsmith.data.splits import open_data
from netsmith.morphing.fit import FitSettings
from netsmith.morphing.pipeline import morph
from netsmith.networks.network import load_source
from netsmith.training.finetuning import optimizer_steps
from netsmith.training.settings import TrainSettings

SIZES = {
    "total": (0.75, 0.5, 0.25),
    "curve": (0.875, 0.75, 0.625, 0.5, 0.375, 0.25),
    "each": (0.75, 0.5, 0.25),
}
"""Ratios of a rival's networks, by how the steps are shared."""


def run(name: str, arguments: argparse.Namespace) -> None:
    space_name, rival, share, *rest = name.split("-")
    space, seed = SPACES[space_name], int(rest[0]) if rest else 0
    training, fitting = TrainSettings(**space["training"], seed=seed), FitSettings(**space["fitting"])
    data = open_data(arguments.data)
    network = load_source(arguments.base, name="resnet20")
    steps = optimizer_steps(len(data.train), training) * training.epochs
    result = morph(network, data, space={"blocks": space_name, "widths": space["widths"]}, ratios=(1.0,), seed=seed)
    last, began = [0.0], time.perf_counter()

    def told(what: str, done: float, total: float | None, note: str = "") -> None:
        if time.perf_counter() - last[0] > 60:
            last[0] = time.perf_counter()
            print(name, f"{last[0] - began:.0f}s", what, done, total, note, flush=True)

    bench = Bench(result, training, fitting, training, 2048, arguments.work / "rivals", "cpu", told)
    sizes = SIZES[share]
    row = bench.sized(rival, share, sizes, steps if share == "each" else steps // len(sizes))
    points = [{"ratio": p["ratio"], "params": p["params"], "macs": p["macs"], **p["accuracy"]} for p in row["points"]]
    piece: dict[str, Any] = {"space": space_name, "rival": rival, "share": share, "seed": seed, "steps": row["steps"]}
    piece |= {"seconds": row["seconds"], "points": points, "threads": torch.get_num_threads(), **describe()}
    (arguments.work / f"{name}.rival.json").write_text(json.dumps(piece, indent=1) + "\n")
    print(name, {p["ratio"]: round(100 * p["test"], 2) for p in points}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:CIFAR10")
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        if not (arguments.work / f"{name}.rival.json").exists():
            run(name, arguments)


if __name__ == "__main__":
    main()
