"""Reading a ResNet20 from a generator as the mean of K noisy reads: time and memory as K grows.

    OMP_NUM_THREADS=1 python benchmarks/sample.py --json benchmarks/results/sample.json

All inner widths of the CIFAR ResNet20 vary. `inr` is the paper's configuration (5 layers of 256, 16 frequencies), read
at half the width; `grid` is the default, read at an eighth, below its fitted range, where its reads are noisy too. What
is measured is the mean of K reads, and the whole sample: a plain network with these weights, ready to run. Beside them:
K times one read of the generator, in the same process. Every K is a process of its own; seconds are of CPU time; peak
memory is `ru_maxrss`, and what it rose by while sampling.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = {"inr": 0.5, "grid": 0.125}
COUNTS = (1, 16, 100)
TARGET, MEMORY = 1.5, 1.1


def measured(kind: str, count: int, repeats: int) -> dict[str, Any]:
    """One row, in this process."""
    import torch

    from netsmith.morphing.generator import Generator, Noise
    from netsmith.morphing.grid import Grid
    from netsmith.morphing.inr import INR
    from netsmith.morphing.live import MorphableModel, Sampling, sample_tensors
    from netsmith.morphing.morphable import Morphable
    from netsmith.morphing.preparing import prepare
    from netsmith.morphing.space import morph_space
    from netsmith.networks.zoo import load_source
    from netsmith.trace.chain import dissect

    torch.set_num_threads(1)
    prepared = prepare(load_source("netsmith:cifar_resnet20", pretrained=False))
    space = morph_space(prepared.groups, "all", (0.25, 1.0), chain=dissect(prepared.model, prepared.example))
    state = prepared.model.state_dict()
    made: dict[str, type[Generator]] = {"inr": INR, "grid": Grid}
    generator = made[kind](state, space.groups)
    model = Morphable(prepared.model, space, generator)
    served = MorphableModel(model, (3, 32, 32))
    widths = space.at(CASES[kind])
    how = Sampling(count, 0.5)
    with torch.no_grad():
        for _ in range(2):
            model.tensors(widths, Noise(0.5, torch.Generator().manual_seed(0)))
        model.module(widths)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reads, means, samples = [], [], []
        for k in range(repeats):
            noise = Noise(0.5, torch.Generator().manual_seed(k))
            began = time.process_time()
            for _ in range(max(3, count)):
                model.tensors(widths, noise)
            reads.append((time.process_time() - began) / max(3, count))
            began = time.process_time()
            sample_tensors(model, widths, how)
            means.append(time.process_time() - began)
            began = time.process_time()
            served.at(widths, how=how)
            samples.append(time.process_time() - began)
    read, mean, sample = min(reads), min(means), min(samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "kind": kind,
        "ratio_of_widths": CASES[kind],
        "reads": count,
        "read_ms": 1e3 * read,
        "mean_ms": 1e3 * mean,
        "mean_over_reads": mean / (count * read),
        "sample_ms": 1e3 * sample,
        "sample_over_reads": sample / (count * read),
        "peak_mb": peak / 1024,
        "added_mb": (peak - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "K"), help="a single row, printed as json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one[0], int(arguments.one[1]), arguments.repeats)))
        return
    rows = []
    for kind in CASES:
        for count in COUNTS:
            command = [sys.executable, "-W", "ignore", __file__, "--json", "-", "--one", kind, str(count)]
            command += ["--repeats", str(arguments.repeats)]
            made = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
            rows.append(json.loads(made.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    from machine import describe, write

    memory = {
        kind: next(r["peak_mb"] for r in rows if r["kind"] == kind and r["reads"] == COUNTS[-1])
        / next(r["peak_mb"] for r in rows if r["kind"] == kind and r["reads"] == 1)
        for kind in CASES
    }
    worst = max(r["mean_over_reads"] for r in rows)
    result = {"rows": rows, "ratio": worst, "peer": "K reads of the generator", "target": TARGET, "memory": memory}
    about = describe()
    write(arguments.json, {**result, "memory_target": MEMORY, **about})
    arguments.json.with_suffix(".md").write_text(page(rows, memory, about))


def page(rows: list[dict[str, Any]], memory: dict[str, float], about: dict[str, Any]) -> str:
    lines = [
        "# K noisy reads of a ResNet20",
        "",
        "| kind | width | K | a read | mean of K | over K reads | whole sample | over K reads | peak | rose by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['kind']} | {r['ratio_of_widths']:g} | {r['reads']} | {r['read_ms']:.1f} ms | {r['mean_ms']:.1f} ms | "
        f"{r['mean_over_reads']:.2f} | {r['sample_ms']:.1f} ms | "
        f"{r['sample_over_reads']:.2f} | {r['peak_mb']:.0f} MB | {r['added_mb']:.1f} MB |"
        for r in rows
    ]
    lines += [
        "",
        f"Aims: at most {TARGET} times K reads; peak memory at K = {COUNTS[-1]} over that at K = 1 at most {MEMORY}: "
        + ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in memory.items())
        + ". To make the plain network costs the same whatever K is.",
        "",
        f"{about['machine']['cpu']}, one thread, CPU time; torch {about['versions']['torch']}; {about['date']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
