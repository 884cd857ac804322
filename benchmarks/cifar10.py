"""CIFAR-10 under a budget: the reassembled network beside its parents, random adapters, and training from scratch.

    python benchmarks/cifar10.py --vit vit.safetensors --json benchmarks/results/cifar10.json

The zoo is the three CIFAR ResNets of `--zoo` and a small ViT (weights of the preset `train_vit_cifar10`). The
best mixed recipe under `--params` is chosen by its stitched accuracy on validation and then trained three ways
with the same settings for the same epochs: from the closed-form stitch, from random adapters and head, and from
scratch. Test images are read once each, at the end. Work is kept in `--work`, so that a run goes on where it
stopped; `--only` does one of the three trainings, so that they can run side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, write

from netsmith.data.splits import Splits, open_data
from netsmith.files.cache import Cache
from netsmith.networks.network import Network, load_source
from netsmith.reassembly.finetuning import finetune
from netsmith.reassembly.members import chains_of, preprocessing_of, rebuild, study
from netsmith.reassembly.pipeline import Reassembled, reassemble
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.saving import write_results
from netsmith.reassembly.stitch import Assembled, Probe, assemble
from netsmith.search.budget import Budget, format_count
from netsmith.training.engine import TrainSettings, evaluate
from netsmith.training.tasks import Classification

SHARED = Path(__file__).resolve().parents[2] / "shared"
WAYS = ("stitched", "random adapters", "scratch")


def zoo(folder: Path, vit: Path | None) -> list[Network]:
    """The networks that blocks are taken from."""
    found = [
        load_source(f"netsmith:cifar_resnet{d}#{folder}/resnet{d}_cifar10_jpeg.safetensors", name=f"resnet{d}")
        for d in (20, 32, 56)
    ]
    if vit is not None:
        imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        found.append(load_source(f"netsmith:small_vit#{vit}", name="vit", options={"depth": 5}, **imagenet))
    return found


def find(args: argparse.Namespace, networks: list[Network], data: Splits) -> Reassembled:
    """The best mixed recipe under the budget, stitched without a gradient step."""
    last = [0.0]

    def tell(what: str, done: float, total: float | None, note: str = "") -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"  {what} {done}/{total} {note}", flush=True)

    return reassemble(
        networks,
        data,
        Budget(params=args.params),
        partition={"k": args.k, "eps": args.eps},
        probe={"images": 1000},
        stitch={"images": args.fit_images},
        search={"candidates": args.candidates, "distinct_sets": False},
        cache=Cache(args.work / "cache"),
        progress=tell,
    )


def start(way: str, recipe: Recipe, networks: list[Network], data: Splits, fit_images: int) -> Assembled:
    """The network of the recipe as each of the three trainings finds it."""
    if way == "scratch":
        return assemble(recipe, rebuild(recipe), init="random")
    parents = study(networks, data.train.images([0]))
    if way == "random adapters":
        return assemble(recipe, chains_of(parents), init="random")
    from netsmith.data.splits import probe_set

    images, labels = probe_set(data, fit_images, seed=recipe.seed)
    return assemble(recipe, chains_of(parents), init="lstsq", probe=Probe(images, labels, preprocessing_of(parents)))


def settings(args: argparse.Namespace, way: str) -> TrainSettings:
    """The same for all, but the learning rate: weights that are not trained yet need a higher one."""
    return TrainSettings(
        epochs=args.epochs,
        batch_size=128,
        lr=args.scratch_lr if way == "scratch" else args.lr,
        weight_decay=5e-4,
        schedule="onecycle",
        augment=True,
        clip_grad=1.0,
        precision=args.precision,
        channels_last=True,
    )


def train_one(args: argparse.Namespace, way: str, recipe: Recipe, networks: list[Network], data: Splits) -> dict:
    """Train one way, and read the test part once before and once after."""
    path = args.work / f"{way.replace(' ', '_')}.json"
    if path.exists():
        return json.loads(path.read_text())
    module = start(way, recipe, networks, data, args.fit_images)
    preprocess = next(n.preprocess for n in networks if n.name == recipe.stem)
    task = Classification(len(data.classes))
    before = evaluate(module, data.test, task, preprocess=preprocess, device="cpu")["accuracy"]
    last = [0.0]

    def tell(what: str, done: float, total: float | None, note: str = "") -> None:
        if time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            print(f"  {way}: {what} {done}/{total} {note}", flush=True)

    result = finetune(
        module,
        data,
        settings(args, way),
        preprocess=preprocess,
        checkpoints=args.work / "checkpoints" / way.replace(" ", "_"),
        progress=tell,
    )
    row = {
        "way": way,
        "epochs": args.epochs,
        "lr": settings(args, way).lr,
        "test_before": before,
        "validation": result.metrics["accuracy"],
        "test": evaluate(module, data.test, task, preprocess=preprocess, device="cpu")["accuracy"],
        "seconds": result.seconds,
        "history": result.history,
    }
    path.write_text(json.dumps(row))
    return row


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"parquet:{SHARED}/data/cifar10_jpeg")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo")
    parser.add_argument("--vit", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10_benchmark"))
    parser.add_argument("--params", default="0.5M")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--eps", type=float, default=0.6)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--fit-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--scratch-lr", type=float, default=0.1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=[*WAYS, "none"], help="do one of the trainings and stop; none: only find")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.WARNING)
    args.work.mkdir(parents=True, exist_ok=True)

    data, networks = open_data(args.data), zoo(args.zoo, args.vit)
    saved = args.work / "recipe.json"
    if not saved.exists():
        found = find(args, networks, data)
        write_results(found, args.work)
        _show_candidates(found)
    recipe = Recipe.from_json(saved.read_text())
    print(recipe, flush=True)
    if args.only:
        print(train_one(args, args.only, recipe, networks, data) if args.only != "none" else "found", flush=True)
        return
    rows = [train_one(args, way, recipe, networks, data) for way in WAYS]
    summary = json.loads((args.work / "summary.json").read_text())
    details = json.loads((args.work / "details.json").read_text())
    _report(args, recipe, rows, summary, details)


def _show_candidates(found: Reassembled) -> None:
    for candidate in found.candidates[:10]:
        blocks = " + ".join(str(b) for b in candidate.recipe.blocks)
        print(f"  {candidate.scores['stitch']:.4f}  {format_count(candidate.params):>8}  {blocks}", flush=True)


def _report(args: argparse.Namespace, recipe: Recipe, rows: list[dict], summary: dict, details: dict) -> None:
    lines: list[dict[str, Any]] = [
        {"name": m["name"], "params": m["params"], "macs": m["macs"], "test": m["accuracy"], "kind": "parent"}
        for m in summary["zoo"]
    ]
    for row in rows:
        lines.append(
            {
                "name": f"reassembled, {row['way']}, before training",
                "params": summary["params"],
                "macs": summary["macs"],
                "test": row["test_before"],
                "kind": "before",
            }
        )
        lines.append(
            {
                "name": f"reassembled, {row['way']}, {row['epochs']} epochs",
                "params": summary["params"],
                "macs": summary["macs"],
                "test": row["test"],
                "validation": row["validation"],
                "kind": "trained",
                "lr": row["lr"],
            }
        )
    for line in lines:
        print(
            f"{line['name']:<48} {format_count(line['params']):>9} {format_count(line['macs']):>9} {line['test']:.2%}"
        )
    tuned, scratch = rows[0]["test"], rows[2]["test"]
    result = {
        "rows": lines,
        "ratio": (1 - scratch) / (1 - tuned),
        "ratio_of": "test error from scratch over test error of the stitched and tuned network",
        "blocks": [str(b) for b in recipe.blocks],
        "budget": summary["budget"],
        "candidates": [{k: c[k] for k in ("blocks", "params", "cost", "scores")} for c in details["candidates"]],
        "histories": {row["way"]: row["history"] for row in rows},
        "settings": {"epochs": args.epochs, "k": args.k, "eps": args.eps, "fit_images": args.fit_images},
        **describe(),
    }
    if args.json is not None:
        write(args.json, result)


if __name__ == "__main__":
    main()
