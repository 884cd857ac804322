"""A zoo of 10, 30 and 100 networks with 20 units each: similarity table, partition and search, with their memory.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --json benchmarks/results/scale.json

The representations are synthetic (a common path through feature space, walked at each network's own pace, with noise of
its own), 512 probe images; what is kept of them is one Gram matrix a cut, whatever their width. Each size runs in a
process of its own, whose peak memory is read at the end and from which that of the imports is taken off. The search has
4 stages with one block of every network each: 100^4 assemblies, a budget on params and MACs, the 20 best with proof.

`slope` is the exponent with which a figure grows from 30 to 100 networks (1: linear). `ratio` is the peak memory at 100
networks over the bytes of their Gram matrices: what is held beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write

from netsmith.reassembly.partition import partition
from netsmith.reassembly.representation import Representations, gram
from netsmith.reassembly.similarity import similarity
from netsmith.search.blocks import Block
from netsmith.search.k_best import Choice, k_best

SIZES, UNITS, IMAGES, WIDTH, K = (10, 30, 100), 20, 512, 256, 4


def zoo(networks: int, seed: int) -> list[Representations]:
    """Networks whose cuts follow one path, each at its own pace."""
    rng = torch.Generator().manual_seed(seed)
    path = torch.randn(8, IMAGES, 64, generator=rng)
    found = []
    for name in range(networks):
        pace = torch.sort(torch.rand(UNITS + 1, generator=rng)).values * (len(path) - 1)
        grams = torch.empty(UNITS + 1, IMAGES, IMAGES)
        for cut, place in enumerate(pace.tolist()):
            low = min(int(place), len(path) - 2)
            rows = torch.lerp(path[low], path[low + 1], place - low) @ torch.randn(64, WIDTH, generator=rng)
            grams[cut] = gram(rows + 2 * torch.randn(IMAGES, WIDTH, generator=rng))
        found.append(Representations(f"network{name}", tuple(map(str, range(UNITS + 1))), grams))
    return found


def peak() -> float:
    """MB of this process at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(networks: int, restarts: int) -> dict[str, Any]:
    """One size, in this process."""
    torch.set_num_threads(1)
    before = peak()
    seconds: dict[str, float] = {}

    def clock(name: str, began: float) -> None:
        seconds[name] = round(time.process_time() - began, 3)

    reps = zoo(networks, seed=0)
    after_grams = peak()
    began = time.process_time()
    table = similarity(reps)
    clock("similarity", began)
    after_table = peak()
    began = time.process_time()
    sizes = {rep.network: [1.0] * UNITS for rep in reps}
    sets = partition(sizes, table.values, K, eps=0.2, restarts=restarts, seed=0)
    clock("partition", began)
    after_sets = peak()
    began = time.process_time()
    rng = np.random.default_rng(0)
    stages = list(zip(*sets.blocks, strict=True))
    options = [[_choice(block, sets.assignment[block], rng) for block in stage] for stage in stages]
    costs = [rng.beta(2, 4, (networks, networks)) for _ in range(K - 1)]
    adapters = {"params": [np.round(rng.uniform(4e3, 6e4, (networks, networks))) for _ in range(K - 1)]}
    bounds = {"params": (None, 1.2e6), "macs": (1e8, 1.5e8)}
    result = k_best(options, costs, adapters, bounds, 20, distinct_groups=False)
    clock("search", began)
    return {
        "networks": networks,
        "cuts": networks * (UNITS + 1),
        "gram_mb": round(networks * (UNITS + 1) * IMAGES**2 * 4 / 2**20, 1),
        "seconds": seconds,
        "peak_mb": round(peak() - before, 1),
        "peak_mb_by_step": {
            "grams": round(after_grams - before, 1),
            "similarity": round(after_table - after_grams, 1),
            "partition": round(after_sets - after_table, 1),
            "search": round(peak() - after_sets, 1),
        },
        "optimal": result.optimal,
        "assemblies": len(result.assemblies),
    }


def _choice(block: Block, group: int, rng: np.random.Generator) -> Choice:
    params, macs = float(round(np.exp(rng.normal(12.6, 0.6)))), float(round(np.exp(rng.normal(17.3, 0.5))))
    return Choice(block, group, 0.2 * float(rng.random()), {"params": params, "macs": macs})


def slope(rows: list[dict[str, Any]], read: Any) -> float:
    """The exponent of growth between the last two sizes."""
    a, b = rows[-2], rows[-1]
    return round(math.log(max(read(b), 1e-3) / max(read(a), 1e-3)) / math.log(b["networks"] / a["networks"]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--only", type=int, help="one size, printed as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only, arguments.restarts)))
        return
    rows = []
    for networks in SIZES:
        words = [
            sys.executable,
            __file__,
            "--json",
            "-",
            "--only",
            str(networks),
            "--restarts",
            str(arguments.restarts),
        ]
        done = subprocess.run(
            words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    slopes = {name: slope(rows, lambda r, name=name: r["seconds"][name]) for name in rows[0]["seconds"]}
    slopes["peak_mb"] = slope(rows, lambda r: r["peak_mb"])
    ratio = rows[-1]["peak_mb"] / rows[-1]["gram_mb"]
    write(arguments.json, {"rows": rows, "slope": slopes, "ratio": ratio, "peer": "the Gram matrices", **describe()})
    arguments.json.with_suffix(".md").write_text(page(rows, slopes))
    print(slopes, f"{ratio:.2f}")


def page(rows: list[dict[str, Any]], slopes: dict[str, float]) -> str:
    """A table."""
    lines = [
        "# A zoo at scale",
        "",
        f"{UNITS} units a network, {IMAGES} probe images, K = {K}, one thread, CPU seconds; see `benchmarks/scale.py`.",
        "",
        "| networks | cuts | Gram matrices | similarity | partition | search | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        s = r["seconds"]
        lines.append(
            f"| {r['networks']} | {r['cuts']} | {r['gram_mb']:.0f} MB | {s['similarity']:.1f} s "
            f"| {s['partition']:.1f} s | {s['search']:.2f} s | {r['peak_mb']:.0f} MB |"
        )
    shown = ", ".join(f"{name.replace('_mb', ' memory')} {value:g}" for name, value in slopes.items())
    return "\n".join([*lines, "", f"Exponent of growth from 30 to 100 networks: {shown}.", ""])


if __name__ == "__main__":
    main()
