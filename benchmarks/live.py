"""A morphable ResNet20 that changes its size while it serves: how long a switch takes, and whether load disturbs it.

    python benchmarks/live.py --json benchmarks/results/live.json [--seconds 60]

All inner widths of the CIFAR ResNet20 vary (the default generator, as it starts: its speed does not depend on what was
fitted). A cold switch reads a network that is not in the cache; a cached one goes back to a size. Beside them, one
forward pass of one image at full width. Then eight threads infer without a pause while the size is switched every
50 ms: every answer must be, to the last digit, that of the plain network of one of the sizes; the process's memory is
read every second.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, write
from torch import Tensor

from netsmith.morphing.grid import Grid
from netsmith.morphing.live import MorphableModel
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.preparing import prepare
from netsmith.morphing.space import morph_space
from netsmith.networks.zoo import load_source
from netsmith.trace.chain import dissect

COLD_MS, CACHED_MS = 60.0, 1.0
THREADS, EVERY = 8, 0.05


def made() -> MorphableModel:
    """ResNet20 with all inner widths, unfitted."""
    prepared = prepare(load_source("netsmith:cifar_resnet20", pretrained=False))
    chain = dissect(prepared.model, prepared.example)
    space = morph_space(prepared.groups, "all", (0.25, 1.0), chain=chain)
    generator = Grid(prepared.model.state_dict(), space.groups)
    return MorphableModel(Morphable(prepared.model, space, generator), (3, 32, 32))


def ratios(model: MorphableModel) -> list[float]:
    """Ratios of different widths, in random order."""
    found = {tuple(model.widths_for(k / 64).values()): k / 64 for k in range(16, 65)}
    order = list(found.values())
    random.Random(0).shuffle(order)
    return order


def milliseconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began)


def switches(model: MorphableModel) -> dict[str, float]:
    """Medians in ms: cold switch, cached switch, forward pass of one image."""
    order = ratios(model)
    cold = [milliseconds(lambda r=r: model.set_size(r)) for r in order]
    cached = [milliseconds(lambda r=r: model.set_size(r)) for r in order for _ in range(3)]
    model.set_size(1.0)
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        forward = [milliseconds(lambda: model(x)) for _ in range(60)][10:]
    return {
        "cold_ms": statistics.median(cold),
        "cold_worst_ms": max(cold),
        "cached_ms": statistics.median(cached),
        "cached_worst_ms": max(cached),
        "forward_ms": statistics.median(forward),
        "switches": len(order),
    }


def resident_mb() -> float:
    text = Path("/proc/self/statm").read_text().split()
    return int(text[1]) * 4096 / 2**20


def under_load(seconds: float) -> dict[str, Any]:
    """Threads that infer while the size changes: answers that belong to no size, and memory."""
    model = made()
    order = ratios(model)[:12]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = [[model.at(r)(x[None]) for r in order] for x in images]
    model.cache_mb = 6 * model_bytes(model) / 2**20  # half of the sizes: cold and cached switches mix
    stop = threading.Event()
    answers, wrong = [0] * THREADS, [0] * THREADS

    def infer(k: int) -> None:
        with torch.no_grad():
            while not stop.is_set():
                found: Tensor = model(images[k % 4][None])
                answers[k] += 1
                wrong[k] += not any(torch.equal(found, r) for r in right[k % 4])

    model.set_size(order[0])
    threads = [threading.Thread(target=infer, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    began, next_switch, next_reading = time.perf_counter(), 0.0, 0.0
    memory: list[float] = []
    waits: list[float] = []
    pick = random.Random(1)
    while (now := time.perf_counter() - began) < seconds:
        if now >= next_reading:
            memory.append(resident_mb())
            next_reading += 1.0
        ratio = pick.choice(order)
        waits.append(milliseconds(lambda r=ratio: model.set_size(r)))
        next_switch += EVERY
        time.sleep(max(0.0, next_switch - (time.perf_counter() - began)))
    stop.set()
    for thread in threads:
        thread.join()
    warm = memory[min(5, len(memory) - 1) :]
    return {
        "seconds": seconds,
        "threads": THREADS,
        "answers": sum(answers),
        "wrong": sum(wrong),
        "switches": len(waits),
        "switch_ms": statistics.median(waits),
        "memory_mb": {"after_5_s": warm[0], "end": warm[-1], "largest": max(warm)},
    }


def model_bytes(model: MorphableModel) -> int:
    return sum(t.numel() * t.element_size() for t in model.morphable.base.state_dict().values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    took = switches(made())
    load = under_load(arguments.seconds)
    about = describe()
    rows = [{"what": "switch", **took}, {"what": "load", **load}]
    result = {"rows": rows, "ratio": took["cold_ms"] / took["forward_ms"], "peer": "one forward pass of one image"}
    write(arguments.json, {**result, "targets": {"cold_ms": COLD_MS, "cached_ms": CACHED_MS, "wrong": 0}, **about})
    page = "\n".join(
        [
            "# Changing size while serving",
            "",
            "ResNet20, all inner widths, 25 to 100%; medians.",
            "",
            "| cold switch | cached switch | forward pass of one image |",
            "|---|---|---|",
            f"| {took['cold_ms']:.1f} ms | {took['cached_ms']:.3f} ms | {took['forward_ms']:.1f} ms |",
            "",
            f"Aims: {COLD_MS:g} ms and {CACHED_MS:g} ms. Under load: {load['threads']} threads gave "
            f"{load['answers']} answers in {load['seconds']:g} s while the size changed {load['switches']} times, "
            f"every {1e3 * EVERY:g} ms; "
            f"{load['wrong']} of them belonged to no size. Memory {load['memory_mb']['after_5_s']:.0f} MB after 5 s, "
            f"{load['memory_mb']['end']:.0f} MB at the end, {load['memory_mb']['largest']:.0f} MB at most.",
            "",
            f"{about['machine']['cpu']}, {about['machine']['cores']} cores shared with other work, one thread a call; "
            f"torch {about['versions']['torch']}; {about['date']}.",
            "",
        ]
    )
    arguments.json.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
