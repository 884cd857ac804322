"""Channel orders: length of the path beside fast-tsp with the same CPU time, nearest neighbour, random, and the bound.

    OMP_NUM_THREADS=1 python benchmarks/smooth.py --json benchmarks/results/smooth.json

Rows of trained networks: the inner widths of the last stage of ResNet20 (64 channels each, as `smooth` orders them),
and those of ResNet56 stacked (512 channels: no group of a network, but its weights). Made rows: clusters of Gaussian
points ("clustered") and points near a plane of six dimensions ("flat").

fast-tsp gets the distances as 16-bit integers, with the shortest distance taken off first (all paths have as many
steps, and rounding is finer so), and time by the clock until it has had at least the CPU time of ours. It runs with its
default choice of neighbours and with its other, "alpha"; the ratio is to the better of the two on each case. Ours
counts all but the distances: bound, candidates, search. Lengths are means of some runs, ours with different seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Literal

import fast_tsp
import numpy as np
import torch
from machine import describe, write
from safetensors.torch import load_file
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from netsmith.morphing.paths import channel_order, cut_at_dummy, l1_distances

KINDS = ("before", "random", "nearest_neighbour", "two_opt", "fast_tsp", "fast_tsp_alpha", "auto", "spanning_tree")
SHARED = Path(__file__).resolve().parents[2] / "shared"


def inner_rows(file: Path, block: str) -> Tensor:
    """All weights of the channels between the two convolutions of a block, batch norm included: (64, 1156)."""
    state = load_file(file)
    norm = [state[f"{block}.bn1.{p}"][:, None] for p in ("weight", "bias", "running_mean", "running_var")]
    made, read = state[f"{block}.conv1.weight"].flatten(1), state[f"{block}.conv2.weight"].movedim(1, 0).flatten(1)
    return torch.cat([made, *norm, read], dim=1)


def clustered(n: int, d: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(4, n // 16), d))
    spread = 0.7 * rng.lognormal(0, 0.3, size=(n, 1))
    return torch.from_numpy(
        0.7 * centres[rng.integers(len(centres), size=n)] + spread * rng.normal(size=(n, d))
    ).float()


def flat(n: int, d: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 6)) @ rng.normal(size=(6, d)) + 0.2 * rng.normal(size=(n, d))
    return torch.from_numpy(points).float()


def cases(zoo: Path) -> dict[str, Tensor]:
    small, large = zoo / "resnet20_cifar10_jpeg.safetensors", zoo / "resnet56_cifar10_jpeg.safetensors"
    made = {
        "clustered 512": clustered(512, 2304, 0),
        "flat 512": flat(512, 2304, 0),
        "clustered 2048": clustered(2048, 1024, 0),
        "flat 2048": flat(2048, 1024, 0),
    }
    if not small.is_file() or not large.is_file():
        print(f"no trained networks in {zoo}: made rows only")
        return made
    real = {f"ResNet20 layer3.{i}": inner_rows(small, f"layer3.{i}") for i in range(3)}
    stacked = torch.cat([inner_rows(large, f"layer3.{i}") for i in range(1, 9)])
    return real | {"ResNet56 layer3, stacked": stacked} | made


def peer(distances: np.ndarray, cpu: float, neighbours: Literal["auto", "alpha"]) -> tuple[float, float]:
    """Length of fast-tsp's path, and the CPU time it had: at least `cpu` seconds."""
    n = len(distances)
    apart = distances[~np.eye(n, dtype=bool)]
    whole = np.zeros((n + 1, n + 1), np.uint16)
    whole[:n, :n] = np.rint(np.clip((distances - apart.min()) / (apart.max() - apart.min()), 0, 1) * 65535)
    seconds = cpu
    while True:
        start = time.process_time()
        tour = fast_tsp.find_tour(whole, seconds, candidates=neighbours)
        used = time.process_time() - start
        if used >= 0.98 * cpu:  # on a busy machine a second by the clock is less than a second of work
            break
        seconds *= 1.1 * cpu / used
    path = cut_at_dummy(tour, n)
    return float(distances[path[:-1], path[1:]].sum()), used


def measure(name: str, rows: Tensor, runs: int) -> dict[str, float | str | int]:
    start = time.process_time()
    distances = l1_distances(rows)
    for_distances = time.process_time() - start
    ours, theirs, alpha, seconds, given = [], [], [], [], []
    bound = 0.0
    for seed in range(runs):
        start = time.process_time()
        path = channel_order(rows, solver="3opt", seed=seed)
        seconds.append(time.process_time() - start - for_distances)
        ours.append(path.length)
        bound = max(bound, path.bound)
        for lengths, neighbours in ((theirs, "auto"), (alpha, "alpha")):
            length, used = peer(distances, seconds[-1], neighbours)
            lengths.append(length)
            given.append(used)
    others = {s: channel_order(rows, solver=s).length for s in ("2opt", "greedy", "random")}
    return {
        "rows": name,
        "channels": len(rows),
        "weights": rows.shape[1],
        "before": path.before,
        "auto": float(np.mean(ours)),
        "fast_tsp": float(np.mean(theirs)),
        "fast_tsp_alpha": float(np.mean(alpha)),
        "two_opt": others["2opt"],
        "nearest_neighbour": others["greedy"],
        "random": others["random"],
        "bound": bound,
        "spanning_tree": float(minimum_spanning_tree(distances).sum()),
        "ratio": float(np.mean(ours) / min(np.mean(theirs), np.mean(alpha))),
        "cpu_seconds": float(np.mean(seconds)),
        "cpu_seconds_fast_tsp": float(np.mean(given)),
        "cpu_seconds_distances": for_distances,
        "runs": runs,
    }


def markdown(result: dict) -> str:
    lines = [
        "# Channel orders: length of the path over its lower bound",
        "",
        "Length over the bound, less one: 0% is the optimum, proved. `auto` and fast-tsp had the same CPU time.",
        "",
        "| rows | channels | weights | as it came | random | nearest neighbour | 2opt | fast-tsp "
        "| fast-tsp, alpha | auto | auto / better fast-tsp | spanning tree | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        over = {k: 100 * (r[k] / r["bound"] - 1) for k in KINDS}
        coarse = " | ".join(f"{over[k]:.1f}%" for k in ("before", "random", "nearest_neighbour"))
        fine = " | ".join(f"{over[k]:.4f}%" for k in ("two_opt", "fast_tsp", "fast_tsp_alpha", "auto"))
        lines.append(
            f"| {r['rows']} | {r['channels']} | {r['weights']} | {coarse} | {fine} | {r['ratio']:.6f} "
            f"| {over['spanning_tree']:.1f}% | {r['cpu_seconds']:.2f} |"
        )
    m = result["machine"]
    lines += [
        "",
        "The spanning tree is the simpler lower bound: how far below ours it lies. Distances are not in the CPU time: "
        + ", ".join(f"{r['cpu_seconds_distances']:.2f} s" for r in result["rows"])
        + ".",
        f"Length of auto over the better fast-tsp (geometric mean): {result['ratio']:.6f}; longer on "
        f"{sum(r['ratio'] > 1 + 1e-9 for r in result['rows'])} of {len(result['rows'])}.",
        "auto gives the same path for the same seed; fast-tsp does not.",
        "",
        f"{m['cpu']}, {m['cores']} cores shared with other work, one thread; fast-tsp {result['fast_tsp']}, numpy "
        f"{np.__version__}; {result['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a table beside it (.md)")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo", help="folder of the trained CIFAR ResNets")
    parser.add_argument("--runs", type=int, default=2, help="runs of ours and of fast-tsp on each case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, points in cases(options.zoo).items():
        rows.append(measure(name, points, options.runs))
        print(*(f"{k} {v:.7g}" if isinstance(v, float) else v for k, v in rows[-1].items()), flush=True)
    ratio = math.exp(sum(math.log(r["ratio"]) for r in rows) / len(rows))
    result = {
        "rows": rows,
        "ratio": ratio,
        "ratio_of": "length of auto over the better of two of fast-tsp at the same CPU time",
    }
    result |= {"fast_tsp": fast_tsp.__version__} | describe()
    print(markdown(result))
    if options.json:
        write(options.json, result)
        options.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
