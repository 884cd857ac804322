"""Partition of 24 networks with 434 units into K = 4 equivalence sets, beside the published heuristic.

    OMP_NUM_THREADS=1 python benchmarks/partition.py --json benchmarks/results/partition.json

The heuristic is that of Deep Model Reassembly (Yang et al., NeurIPS 2022), written anew after its description: cut
every network at random, take random blocks as centres; move the borders of blocks by one unit while that brings blocks
nearer to their nearest centre; then take each set's medoid as its centre; repeat. It gets as many restarts, all run at
once in numpy as ours are, tries every border in both directions (not one at random), and stops after three rounds
without a gain.

Both are scored alike: the sum of S(block, medoid), every medoid one of the blocks and in its own set. Seconds are of
CPU time on one core; wall time depends on what else the machine does and is given too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path

import numpy as np
from machine import describe, write

from netsmith.reassembly.partition import partition

K, EPS, RESTARTS = 4, 0.2, 200
# Units of 24 networks, as a zoo of residual, transformer and depthwise networks may have them; 434 in all.
UNITS = (8, 10, 11, 12, 12, 12, 12, 14, 14, 15, 16, 16, 16, 17, 18, 18, 20, 21, 22, 24, 26, 28, 35, 37)


class Heuristic:
    """The published search, `r` restarts side by side; borders are (r, n, K + 1) units."""

    def __init__(self, units: tuple[int, ...], table: np.ndarray, rng: np.random.Generator) -> None:
        self.units = np.array(units)
        self.table = table
        self.offset = np.concatenate([[0], np.cumsum(self.units + 1)])[:-1]
        self.bound = np.floor((1 + EPS) * self.units / K + 1e-9)
        self.rng = rng

    def run(self, restarts: int) -> float:
        """The best objective of all restarts."""
        borders = np.stack([self._random_cuts(n, restarts) for n in range(len(self.units))], axis=1)
        start, stop = self._blocks(borders)
        pick = self.rng.permuted(np.tile(np.arange(start.shape[1]), (restarts, 1)), axis=1)[:, :K]
        centres = np.stack([np.take_along_axis(a, pick, axis=1) for a in (start, stop)])  # (2, r, K) cuts
        best = np.full(restarts, -np.inf)
        active, idle = np.arange(restarts), np.zeros(restarts, int)
        while len(active):
            borders = self._move_borders(borders, centres)
            centres, objective = self._medoids(borders, centres)
            idle = np.where(objective > best[active] + 1e-9, 0, idle + 1)
            best[active] = np.maximum(best[active], objective)
            on = idle < 3
            active, idle, borders, centres = active[on], idle[on], borders[on], centres[:, on]
        return float(best.max())

    def _random_cuts(self, n: int, restarts: int) -> np.ndarray:
        inner = itertools.combinations(range(1, self.units[n]), K - 1)
        cuts = np.array([(0, *c, self.units[n]) for c in inner])
        cuts = cuts[np.diff(cuts, axis=1).max(axis=1) <= self.bound[n]]
        return cuts[self.rng.integers(len(cuts), size=restarts)]

    def _blocks(self, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cuts = borders + self.offset[:, None]
        flat = (len(borders), -1)
        return cuts[:, :, :-1].reshape(flat), cuts[:, :, 1:].reshape(flat)

    def _nearest(self, start: np.ndarray, stop: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """(r, n) similarity of blocks to the nearest centre."""
        here, there = centres[0][:, None], centres[1][:, None]
        return (self.table[start[..., None], here] + self.table[stop[..., None], there]).max(axis=-1)

    def _move_borders(self, borders: np.ndarray, centres: np.ndarray) -> np.ndarray:
        borders, changed = borders.copy(), True
        while changed:
            changed = False
            for j, way in itertools.product(range(1, K), (-1, 1)):
                left, here, right = (borders[:, :, i] + self.offset for i in (j - 1, j, j + 1))
                moved = here + way
                allowed = np.maximum(moved - left, right - moved) <= self.bound
                allowed &= np.minimum(moved - left, right - moved) >= 1
                before = self._nearest(left, here, centres) + self._nearest(here, right, centres)
                after = self._nearest(left, moved, centres) + self._nearest(moved, right, centres)
                better = allowed & (after > before + 1e-12)
                borders[:, :, j] += np.where(better, way, 0)
                changed |= bool(better.any())
        return borders

    def _medoids(self, borders: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Medoids of the sets of nearest blocks, and the objective with them."""
        start, stop = self._blocks(borders)
        centres, objective = centres.copy(), np.empty(len(borders))
        for r in range(len(borders)):
            every = self.table[np.ix_(start[r], start[r])] + self.table[np.ix_(stop[r], stop[r])]
            to = self.table[start[r][:, None], centres[0, r]] + self.table[stop[r][:, None], centres[1, r]]
            label = to.argmax(axis=1)
            medoids: list[int] = []
            for k in range(K):
                members = np.flatnonzero(label == k)
                if not len(members):  # an empty set starts anew at a random block
                    members = np.setdiff1d(np.arange(len(label)), medoids)
                    medoids.append(int(self.rng.choice(members)))
                    continue
                free = [m for m in members if m not in medoids] or [int(self.rng.choice(len(label)))]
                medoids.append(int(free[int(every[members][:, free].sum(axis=0).argmax())]))
            score = every[:, medoids].max(axis=1)
            score[medoids] = every[medoids, medoids]
            objective[r] = score.sum()
            centres[0, r], centres[1, r] = start[r][medoids], stop[r][medoids]
        return centres, objective


def random_table(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Similarities of cuts: "plain", without any structure; or "depth", alike at like depth and with noise, as CKA."""
    cuts = sum(UNITS) + len(UNITS)
    if kind == "plain":
        values = rng.random((cuts, cuts))
        values = (values + values.T) / 2
        np.fill_diagonal(values, 1.0)
        return values
    depth = np.concatenate([np.sort(np.concatenate([[0, 1], rng.random(u - 1)])) for u in UNITS])
    family = np.repeat(rng.integers(3, size=len(UNITS)), np.array(UNITS) + 1)
    bumps = np.exp(-0.5 * ((depth[:, None] - np.linspace(0, 1, 16)) / 0.12) ** 2)
    features = np.concatenate([bumps, 0.4 * bumps * rng.random((3, 16))[family], 0.5 * rng.random((cuts, 12))], axis=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T


def measure(kind: str, seed: int) -> dict[str, float | str | int]:
    table = random_table(np.random.default_rng(seed), kind)
    networks = {f"network{i}": [1] * u for i, u in enumerate(UNITS)}
    wall, cpu = time.perf_counter(), time.process_time()
    found = partition(networks, table, K, eps=EPS, restarts=RESTARTS, seed=seed)
    ours = time.process_time() - cpu, time.perf_counter() - wall
    wall, cpu = time.perf_counter(), time.process_time()
    published = Heuristic(UNITS, table, np.random.default_rng(seed)).run(RESTARTS)
    theirs = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "table": kind,
        "seed": seed,
        "objective": found.objective,
        "objective_published": published,
        "ahead": found.objective - published,
        "seconds": ours[0],
        "seconds_published": theirs[0],
        "wall_seconds": ours[1],
        "wall_seconds_published": theirs[1],
    }


def markdown(result: dict) -> str:
    rows = result["rows"]
    lines = [
        f"# Partition: {len(UNITS)} networks, {sum(UNITS)} units, K = {K}, eps = {EPS}, {RESTARTS} restarts",
        "",
        "Objective: sum of S(block, its medoid), higher is better. Seconds of CPU time (wall time in the JSON).",
        "",
        "| table | seed | exact steps | published heuristic | ahead by | seconds | seconds, published |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['table']} | {r['seed']} | {r['objective']:.4f} | {r['objective_published']:.4f} | {r['ahead']:+.4f} "
        f"| {r['seconds']:.2f} | {r['seconds_published']:.2f} |"
        for r in rows
    ]
    behind = sum(r["ahead"] < -1e-9 for r in rows)
    lines += [
        "",
        f"Falls below the heuristic on {behind} of {len(rows)} tables.",
        f"Longest: {max(r['seconds'] for r in rows):.2f} s of CPU, {max(r['wall_seconds'] for r in rows):.2f} s by the "
        "clock (the machine did other work at the same time).",
        f"Time of the heuristic over ours (geometric mean): {result['ratio']:.2f}.",
        "",
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, one thread; numpy {np.__version__}; "
        f"{result['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a table beside it (.md)")
    parser.add_argument("--seeds", type=int, default=10, help="random tables of each kind")
    options = parser.parse_args()
    rows = []
    for kind, seed in itertools.product(("plain", "depth"), range(options.seeds)):
        rows.append(measure(kind, seed))
        print(*(f"{k} {v:.4g}" if isinstance(v, float) else v for k, v in rows[-1].items()), flush=True)
    ratio = math.exp(sum(math.log(r["seconds_published"] / r["seconds"]) for r in rows) / len(rows))
    result = {"rows": rows, "ratio": ratio, "ratio_of": "CPU seconds of the published heuristic over ours"} | describe()
    print(markdown(result))
    if options.json:
        write(options.json, result)
        options.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    assert sum(UNITS) == 434, sum(UNITS)
    assert len(UNITS) == 24
    main()
