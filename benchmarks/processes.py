"""Two processes over one, one thread each: representations of a zoo, and scoring of candidates, shared by claims.

    python benchmarks/processes.py --json benchmarks/results/processes.json [--zoo FOLDER --data parquet:PATH]

Both parts are cut into pieces (a network, a candidate) that the processes take from a cache as they get to them; times
are those between two barriers, imports left out, best of `--repeats`. `ratio` is the efficiency, the time of one
process over twice that of two; of both parts the lower one. It needs a machine whose two cores do nothing else. The
first network of each depth has the weights of `--zoo`, where that has some; the others' are random, which costs the
same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, write

from netsmith.data.splits import open_data
from netsmith.distributed import processes
from netsmith.files.cache import Cache
from netsmith.networks.network import load_source
from netsmith.reassembly.settings import ReassemblySettings
from netsmith.reassembly.steps import Clock, Run
from netsmith.training.session import join

DEPTHS = (20, 20, 32, 32, 44, 44, 56, 56)
PARTS = ("representations", "scoring")


def networks(zoo: Path | None, images: tuple[int, int, int], classes: int) -> list[Any]:
    found = []
    for i, depth in enumerate(DEPTHS):
        file = None if zoo is None else zoo / f"resnet{depth}_cifar10_jpeg.safetensors"
        weights = f"#{file}" if file is not None and file.is_file() and depth not in DEPTHS[:i] else ""
        found.append(
            load_source(
                f"netsmith:cifar_resnet{depth}{weights}", name=f"resnet{depth}_{i}", num_classes=classes,
                input_size=images, pretrained=bool(weights), seed=i,
            )
        )  # fmt: skip
    return found


def work(arguments: argparse.Namespace) -> None:
    """What each process does; the first one prints the times."""
    torch.set_num_threads(1)
    join("cpu")
    data = open_data(arguments.data)
    zoo = networks(arguments.zoo, data.shape, len(data.classes))
    settings = ReassemblySettings.model_validate(
        {
            "probe": {"images": arguments.probe},
            "partition": {"k": 4, "eps": 0.5, "restarts": 20},
            "search": {"candidates": arguments.candidates, "distinct_sets": False},
            "stitch": {"images": 1000},
            "score": {"also": (), "images": 500},
        }
    )
    run = Run(zoo, data, settings, "cpu", Clock(Cache(arguments.cache), None))
    run.study()
    times = {}

    def timed(name: str, began: float) -> None:
        processes.wait()
        times[name] = time.perf_counter() - began

    processes.wait()
    began = time.perf_counter()
    table = run.compare()
    timed("representations", began)
    found = run.search(run.partition(table))
    processes.wait()
    began = time.perf_counter()
    run.score(found)
    timed("scoring", began)
    if processes.first():
        print(json.dumps({"seconds": times, "candidates": len(found.assemblies)}), flush=True)
    processes.leave()


def launched(count: int, words: list[str]) -> dict[str, Any]:
    """The times of so many processes."""
    with tempfile.TemporaryDirectory() as cache:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        done = subprocess.run(
            [*launcher, __file__, *words, "--cache", cache],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", default="torchvision:CIFAR10")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--probe", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cache is not None:
        work(arguments)
        return
    words = [w for w in sys.argv[1:] if w != "--json" and w != str(arguments.json)]
    best: dict[int, dict[str, float]] = {}
    items = {"representations": len(DEPTHS), "scoring": 0}
    for turn in range(2 * arguments.repeats):
        count = 1 + turn % 2
        result = launched(count, words)
        items["scoring"] = result["candidates"]
        print(count, result, flush=True)
        known = best.setdefault(count, result["seconds"])
        best[count] = {name: min(known[name], result["seconds"][name]) for name in PARTS}
    rows = [
        {
            "part": name,
            "pieces": items[name],
            "one_process_s": round(best[1][name], 2),
            "two_processes_s": round(best[2][name], 2),
            "efficiency": round(best[1][name] / (2 * best[2][name]), 3),
        }
        for name in PARTS
    ]
    ratio = min(row["efficiency"] for row in rows)
    write(arguments.json, {"rows": rows, "ratio": ratio, "peer": "one process, one thread", **describe()})
    lines = ["# Two processes over one", "", "One thread each; see `benchmarks/processes.py`.", ""]
    lines += ["| part | pieces | one process | two | efficiency |", "|---|---|---|---|---|"]
    for r in rows:
        times = f"{r['one_process_s']} s | {r['two_processes_s']} s"
        lines.append(f"| {r['part']} | {r['pieces']} | {times} | {r['efficiency']} |")
    arguments.json.with_suffix(".md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
