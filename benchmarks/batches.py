"""How many images a forward pass takes by default, beside every other batch: CPU time of evaluate, represent and fit.

    python benchmarks/batches.py --json benchmarks/results/batches.json

User and system time together: what large batches cost on a CPU are pages that the operating system gives and takes
back. Each size is run twice, in turns, and the better time counts; networks have random weights, images are noise. A
fit is that of an adapter and a head between blocks of two networks, with the batches of its recipe: within one, its
pieces run on fewer images at once, and this number is overruled here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import timm
import torch
from machine import describe, write

import netsmith
from netsmith.data.images import MemoryImages
from netsmith.reassembly import probe as probing
from netsmith.reassembly import representation
from netsmith.reassembly.recipe import InputSpec, NetworkRef
from netsmith.search.blocks import Block
from netsmith.trace import cost as profile
from netsmith.training import engine

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LIMIT = 1.2
NETWORKS = {  # timm or our own, pixels, images
    "tf_efficientnet_lite0": (224, 64),
    "vit_tiny_patch16_224": (224, 32),
    "netsmith:cifar_resnet20": (32, 256),
}
FITS = {"resnet18 + tf_efficientnet_lite0": (160, 32)}


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name.startswith("netsmith:"):
        return netsmith.load_source(name, pretrained=False).model.eval()
    return timm.create_model(name).eval()


def cpu_seconds(work: Callable[[], object]) -> float:
    before = os.times()
    work()
    after = os.times()
    return after.user - before.user + after.system - before.system


def compared(name: str, verb: str, count: int, chosen: int, work: Callable[[int | None], object]) -> dict:
    """The time of the default beside every size's."""
    sizes = [None, *(s for s in SIZES if s <= count)]
    work(None)
    took = {size: float("inf") for size in sizes}
    for _ in range(2):
        for size in sizes:
            took[size] = min(took[size], cpu_seconds(lambda size=size: work(size)))
    best = min((s for s in sizes if s is not None), key=lambda s: took[s])
    row = {
        "network": name, "verb": verb, "images": count, "default": chosen, "default_s": took[None], "best": best,
        "best_s": took[best], "largest": sizes[-1], "largest_s": took[sizes[-1]],
        "ratio": took[None] / min(took.values()),
    }  # fmt: skip
    print(row, flush=True)
    return row


def evaluated(name: str, pixels: int, count: int) -> dict:
    model = network(name)
    images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8)
    classes = model(torch.rand(1, 3, pixels, pixels)).shape[1]
    data = MemoryImages(images, torch.arange(count) % classes, tuple(map(str, range(classes))))
    task = netsmith.Classification(classes)
    chosen = profile.images_at_once(model, torch.rand(1, 3, pixels, pixels))
    return compared(
        name, "evaluate", count, chosen, lambda size: engine.evaluate(model, data, task, batch_size=size, device="cpu")
    )


def represented(name: str, pixels: int, count: int) -> dict:
    images = torch.rand(count, 3, pixels, pixels)
    chain = netsmith.dissect(network(name), images[:1], name=name)
    chosen = profile.images_at_once(chain.model, images)
    return compared(
        name, "represent", count, chosen, lambda size: representation.represent(chain, images, batch_size=size)
    )


def fitted(names: str, pixels: int, count: int) -> dict:
    images, pair = torch.rand(count, 3, pixels, pixels), names.split(" + ")
    chains = {name: netsmith.dissect(network(name), images[:1], name=name) for name in pair}
    first, second = (len(chains[name].units) for name in pair)
    blocks = [Block(pair[0], 0, first // 2), Block(pair[1], second // 2, second)]
    given = InputSpec((0.0,) * 3, (1.0,) * 3, (3, pixels, pixels))
    refs = {name: NetworkRef(name, f"module:{name}", "0" * 64, 10, given, {}) for name in pair}
    recipe = netsmith.plan_recipe(blocks, chains, refs, num_classes=10)
    probe = netsmith.Probe(images, torch.arange(count) % 10, {name: lambda x: x for name in pair})

    def work(size: int | None) -> object:
        if size is None:
            return netsmith.assemble(recipe, chains, init="lstsq", probe=probe)
        with (
            mock.patch.object(profile, "images_at_once", return_value=size),
            mock.patch.object(probing, "images_at_once", return_value=size),
        ):
            return netsmith.assemble(recipe, chains, init="lstsq", probe=probe)

    return compared(names, "fit", count, profile.images_at_once(chains[pair[0]].model, images), work)


def page(rows: list[dict], about: dict) -> str:
    machine = about["machine"]
    lines = [
        "# Batches", "",
        f"`benchmarks/batches.py`, {about['date']}, {machine['cpu']}, {machine['threads']} thread, "
        f"torch {about['versions']['torch']}. CPU seconds, user and system.", "",
        "| network | verb | images | default batch | s | best batch | s | largest batch | s | default / best |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    lines += [
        f"| {r['network']} | {r['verb']} | {r['images']} | {r['default']} | {r['default_s']:.2f} | {r['best']} | "
        f"{r['best_s']:.2f} | {r['largest']} | {r['largest_s']:.2f} | {r['ratio']:.2f} |"
        for r in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [verb(name, *how) for verb in (evaluated, represented) for name, how in NETWORKS.items()]
    rows += [fitted(names, *how) for names, how in FITS.items()]
    about = describe()
    write(arguments.json, {"rows": rows, "ratio": max(r["ratio"] for r in rows), "limit": LIMIT, **about})
    arguments.json.with_suffix(".md").write_text(page(rows, about))


if __name__ == "__main__":
    main()
