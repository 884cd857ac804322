"""Channel orders: length and time of `channel_order` (fast-tsp) beside 3-opt, 2-opt, nearest neighbour, and a bound.

    OMP_NUM_THREADS=1 python benchmarks/smooth.py --json benchmarks/results/smooth.json

Rows of trained networks: the inner widths of the last stage of ResNet20 (64 channels each, as `smooth` orders them),
and those of ResNet56 stacked (512 channels: no group of a network, but its weights). Made rows: clusters of Gaussian
points ("clustered") and points near a plane of six dimensions ("flat").

The peer is an iterated 3-opt search in Python (`exchange.py`), 10 disturbances a channel, at least 3000 and at most
20,000; the bound is that of Held and Karp (`bound.py`). Times are CPU seconds, those of the distances apart. Lengths
are means of some runs.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import fast_tsp
import numpy as np
import torch
from bound import candidates, lower_bound
from exchange import Tour
from machine import describe, write
from safetensors.torch import load_file
from torch import Tensor

from netsmith.morphing.paths import channel_order, l1_distances

KINDS = ("before", "random", "nearest_neighbour", "two_opt", "three_opt", "auto")
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


def three_opt(distances: np.ndarray, upper: float, seed: int) -> tuple[float, float]:
    """Length of the best path of an iterated 3-opt search, and the lower bound that it begins with."""
    n = len(distances)
    bound, prices = lower_bound(distances, upper)
    lengths, near = candidates(distances, prices, 6)
    starts, rng = max(1, min(6, 6 * (256 - n) // 256)), random.Random(seed)
    cities, best = [n, *range(n)], math.inf
    for _ in range(starts):
        rng.shuffle(cities)
        tour = Tour(lengths, near, cities)
        tour.improve(rng)
        tour.search(rng, min(max(10 * n, 3000), 20_000) // starts, bound + 2.0 * float(prices.sum()))
        at = tour.cities.index(n)
        path = [*tour.cities[at + 1 :], *tour.cities[:at]]
        best = min(best, float(distances[path[:-1], path[1:]].sum()))
    return best, bound


def measure(name: str, rows: Tensor, runs: int) -> dict[str, float | str | int]:
    start = time.process_time()
    distances = l1_distances(rows)
    for_distances = time.process_time() - start
    ours, theirs, seconds, peers = [], [], [], []
    bound, others = 0.0, {s: channel_order(rows, solver=s) for s in ("2opt", "greedy", "random")}
    for seed in range(runs):
        start = time.process_time()
        ours.append(channel_order(rows, solver="fast-tsp").length)
        seconds.append(time.process_time() - start - for_distances)
        start = time.process_time()
        length, bound = three_opt(distances, others["greedy"].length, seed)
        theirs.append(length)
        peers.append(time.process_time() - start)
    return {
        "rows": name,
        "channels": len(rows),
        "weights": rows.shape[1],
        "before": others["random"].before,
        "auto": float(np.mean(ours)),
        "three_opt": float(np.mean(theirs)),
        "two_opt": others["2opt"].length,
        "nearest_neighbour": others["greedy"].length,
        "random": others["random"].length,
        "bound": bound,
        "ratio": float(np.mean(ours) / np.mean(theirs)),
        "cpu_seconds": float(np.mean(seconds)),
        "cpu_seconds_three_opt": float(np.mean(peers)),
        "cpu_seconds_distances": for_distances,
        "runs": runs,
    }


def markdown(result: dict) -> str:
    lines = [
        "# Channel orders: length of the path over its lower bound",
        "",
        "Length over the bound, less one: 0% is the optimum, proved. CPU seconds without those of the distances.",
        "",
        "| rows | channels | weights | as it came | random | nearest neighbour | 2-opt | 3-opt | auto | auto / 3-opt "
        "| CPU s, auto | CPU s, 3-opt |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        over = {k: 100 * (r[k] / r["bound"] - 1) for k in KINDS}
        coarse = " | ".join(f"{over[k]:.1f}%" for k in ("before", "random", "nearest_neighbour"))
        fine = " | ".join(f"{over[k]:.4f}%" for k in ("two_opt", "three_opt", "auto"))
        lines.append(
            f"| {r['rows']} | {r['channels']} | {r['weights']} | {coarse} | {fine} | {r['ratio']:.6f} "
            f"| {r['cpu_seconds']:.2f} | {r['cpu_seconds_three_opt']:.2f} |"
        )
    m = result["machine"]
    lines += [
        "",
        f"Length of auto over 3-opt (geometric mean): {result['ratio']:.6f}.",
        "",
        f"{m['cpu']}, {m['cores']} cores shared with other work, one thread; fast-tsp {result['fast_tsp']}, numpy "
        f"{np.__version__}; {result['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a table beside it (.md)")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo", help="folder of the trained CIFAR ResNets")
    parser.add_argument("--runs", type=int, default=2, help="runs of fast-tsp and of 3-opt on each case")
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
        "ratio_of": "length of auto (fast-tsp) over that of an iterated 3-opt search",
    }
    result |= {"fast_tsp": fast_tsp.__version__} | describe()
    print(markdown(result))
    if options.json:
        write(options.json, result)
        options.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
