"""The k best assemblies under a budget, exactly: branch and bound beside integer programs.

    OMP_NUM_THREADS=1 python benchmarks/search.py --json benchmarks/results/search.json

Two sizes: 24 networks in 4 stages (24^4 assemblies) and 8 stages of 100 blocks (100^8); every pair has an adapter with
a cost and parameters of its own, blocks are of distinct equivalence sets and of at least two networks. Ours finds and
proves the 100 best. A solver finds assemblies one by one, so it is asked for few (`k`) and given a time limit; what it
takes a piece is compared (at least that much where it met its limit), and where it finishes its best must be ours.
Seconds are of CPU time, one thread, with the wall time beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from integer_program import k_best_by
from machine import describe, write

from netsmith.search.blocks import Block
from netsmith.search.k_best import Bounds, Choice, SearchResult, k_best

SIZES = {"24^4": (4, 24, 24), "100^8": (8, 100, 25)}
# Budgets a stage; "window" leaves a corridor a few percent wide in two resources at once.
BUDGETS: dict[str, dict[str, Bounds]] = {
    "none": {},
    "params": {"params": (None, 0.6e6)},
    "params + macs": {"params": (0.3e6, 0.45e6), "macs": (None, 40e6)},
    "window": {"params": (0.40e6, 0.42e6), "macs": (40e6, 43e6)},
}

# Where the solvers run too: 100^8 takes them to their limit.
BESIDE = {"24^4": tuple(BUDGETS), "100^8": ("none", "params + macs")}
LIBRARIES = ("scipy", "numpy", "ortools")


def instance(size: str, seed: int) -> tuple[list[list[Choice]], list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Blocks of deeper stages mostly in deeper sets, larger blocks stitched better."""
    stages, width, networks = SIZES[size]
    rng = np.random.default_rng(seed)
    choices, quality = [], []
    for s in range(stages):
        params = np.exp(rng.normal(np.log(0.4e6), 0.8, width))
        macs = np.exp(rng.normal(np.log(40e6), 0.6, width))
        group = np.where(rng.random(width) < 0.8, s, rng.integers(stages, size=width))
        choices.append(
            [
                Choice(
                    Block(f"network{i % networks}", s, s + 1 + i // networks),
                    int(group[i]),
                    float(0.2 * rng.random()),
                    {"params": float(round(params[i])), "macs": float(round(macs[i]))},
                )
                for i in range(width)
            ]
        )
        quality.append(np.argsort(np.argsort(params)) / width)
    costs = [np.clip(rng.beta(2, 4, (width, width)) - 0.2 * quality[s][:, None], 0, 1) for s in range(stages - 1)]
    adapters = {"params": [np.round(rng.uniform(4e3, 60e3, (width, width))) for _ in range(stages - 1)]}
    return choices, costs, adapters


def timed(size: str, budget: str, seed: int, **options: Any) -> tuple[SearchResult, float, float]:
    stages, costs, adapters = instance(size, seed)
    times = len(stages)
    bounds: dict[str, Bounds] = {
        name: (None if low is None else low * times, None if high is None else high * times)
        for name, (low, high) in BUDGETS[budget].items()
    }
    wall, cpu = time.perf_counter(), time.process_time()
    solver, seconds = options.pop("solver"), options.pop("seconds")
    if solver == "exact":
        found = k_best(stages, costs, adapters, bounds, mix=True, **options)
    else:
        found = k_best_by(solver, stages, costs, adapters, bounds, mix=True, seconds=seconds, **options)
    return found, time.process_time() - cpu, time.perf_counter() - wall


def row(size: str, budget: str, seed: int, solver: str, limit: float) -> tuple[dict[str, Any], SearchResult]:
    exact = solver == "exact"
    k = 100 if exact else (3 if size == "24^4" else 1)
    found, cpu, wall = timed(size, budget, seed, k=k, solver=solver, seconds=None if exact else limit)
    best = found.assemblies[0].cost if found.assemblies else None
    number = len(found.assemblies)
    return {
        "size": size,
        "budget": budget,
        "seed": seed,
        "solver": solver,
        "k": k,
        "found": number,
        "proven": found.optimal,
        "best": best,
        "worst": found.assemblies[-1].cost if found.assemblies else None,
        "explored": found.explored,
        "seconds": cpu,
        "wall_seconds": wall,
    }, found


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Search: exact k best assemblies under a budget",
        "",
        "Distinct sets, at least two networks, an adapter's cost and params on every pair. Seconds of CPU, one thread.",
        "`explored`: partial assemblies scored (exact), programs solved (solvers).",
        "",
        "| assemblies | budget | seed | solver | k | found | proven | best | last | explored | seconds | clock |",
        "|" + "---|" * 12,
    ]
    for r in result["rows"]:
        best, worst = ("-" if v is None else f"{v:.4f}" for v in (r["best"], r["worst"]))
        lines.append(
            f"| {r['size']} | {r['budget']} | {r['seed']} | {r['solver']} | {r['k']} | {r['found']} "
            f"| {'yes' if r['proven'] else 'no'} | {best} | {worst} | {r['explored']} "
            f"| {r['seconds']:.3f} | {r['wall_seconds']:.3f} |"
        )
    exact = [r for r in result["rows"] if r["solver"] == "exact"]
    longest = [
        f"{size} {max(r['seconds'] for r in exact if r['size'] == size):.2f} s of CPU "
        f"({max(r['wall_seconds'] for r in exact if r['size'] == size):.2f} s by the clock)"
        for size in dict.fromkeys(r["size"] for r in exact)
    ]
    lines += [
        "",
        f"Longest exact search for the 100 best: {', '.join(longest)}; the machine did other work at the same time.",
        "A solver that found nothing met its time limit, which is by the clock.",
        f"CPU time of HiGHS (scipy.optimize.milp) for one assembly over ours for the 100 best, geometric mean: "
        f"{result['ratio']:.1f}.",
        "",
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, shared with other work; "
        + ", ".join(f"{n} {v}" for n, v in result["solvers"].items())
        + f"; {result['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a table beside it (.md)")
    parser.add_argument("--seeds", type=int, default=3, help="instances of each size and budget")
    parser.add_argument("--solver-seconds", type=float, default=60.0, help="time limit of a solver, by the clock")
    options = parser.parse_args()
    solvers = ["milp", *(["cpsat"] if importlib.util.find_spec("ortools") else [])]
    rows: list[dict[str, Any]] = []
    ratios = []
    for size, budget, seed in itertools.product(SIZES, BUDGETS, range(options.seeds)):
        ours, found = row(size, budget, seed, "exact", 0.0)
        rows.append(ours)
        print(ours, flush=True)
        if seed or budget not in BESIDE[size]:
            continue
        for solver in solvers:
            other, theirs = row(size, budget, seed, solver, options.solver_seconds)
            rows.append(other)
            print(other, flush=True)
            if theirs.optimal:
                costs = [a.cost for a in found.assemblies[: len(theirs.assemblies)]]
                assert np.allclose([a.cost for a in theirs.assemblies], costs, atol=1e-6), "the solver disagrees"
            if solver == "milp":  # where it met its limit the ratio is at least this
                ratios.append(other["seconds"] / max(1, other["found"]) / ours["seconds"])
    result = {
        "rows": rows,
        "ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "ratio_of": "CPU seconds of scipy.optimize.milp for one assembly over ours for the 100 best",
        "solvers": {
            n: importlib.metadata.version(n) for n in ("scipy", "numpy", "ortools") if importlib.util.find_spec(n)
        },
    } | describe()
    print(markdown(result))
    if options.json:
        write(options.json, result)
        options.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
