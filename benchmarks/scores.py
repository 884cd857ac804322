"""Does a score rank well? Kendall's tau of every score against the accuracy reached after a short tuning.

    python benchmarks/scores.py --vit vit.safetensors --json benchmarks/results/scores.json

Random recipes that fit the budget are drawn from the partition of the zoo (the CIFAR ResNets of `--zoo` and a
small ViT). Each is stitched in closed form and scored on validation images (the training-free scores of the
paper on one batch of 64), then tuned for two epochs; the accuracy reached is read on the test part, which no
score has seen. Tau-b comes with a 95% bootstrap interval over the recipes. `--part 0/2` does every second
recipe, so that two processes can share the work; results are kept in `--work`, one file a recipe, and a run
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import SHARED, zoo
from machine import describe, write
from scipy.stats import kendalltau

from netsmith.data.splits import balanced_indices, open_data, probe_set
from netsmith.reassembly.candidates import stages_of
from netsmith.reassembly.finetuning import finetune
from netsmith.reassembly.members import chains_of, preprocessing_of, study
from netsmith.reassembly.partition import partition
from netsmith.reassembly.representation import represent
from netsmith.reassembly.scores import ScoreContext, get_score, score_names
from netsmith.reassembly.similarity import similarity
from netsmith.reassembly.stitch import Probe, ProbeCache, assemble, plan_recipe, recipe_cost
from netsmith.training.engine import TrainSettings, evaluate
from netsmith.training.tasks import Classification

MANY_IMAGES = ("stitch", "knn", "logme")


def draw(args: argparse.Namespace, parents: tuple, data: Any) -> list:
    """`--recipes` random recipes under the budget, one block a stage, of at least two networks."""
    images, _ = probe_set(data, 512, seed=0)
    reps = [represent(p.chain, p.network.preprocess(images)) for p in parents]
    sets = partition(
        {p.name: [1.0] * len(p.chain) for p in parents}, similarity(reps).values, args.k, eps=args.eps, seed=0
    )
    chains, refs = chains_of(parents), {p.name: p.ref for p in parents}
    found = []
    for blocks in itertools.product(*stages_of(sets)):
        if len({b.network for b in blocks}) < 2:
            continue
        recipe = plan_recipe(blocks, chains, refs, num_classes=len(data.classes))
        if recipe_cost(recipe, chains)[0] <= args.params:
            found.append(recipe)
    order = np.random.default_rng(args.seed).permutation(len(found))
    print(f"{len(found)} recipes fit the budget", flush=True)
    return [found[i] for i in order[: args.recipes]]


def judge(args: argparse.Namespace, recipe: Any, parents: tuple, data: Any, cache: ProbeCache) -> dict[str, Any]:
    """Stitch, score and tune one recipe."""
    chains = chains_of(parents)
    images, labels = probe_set(data, args.fit_images, seed=0)
    probe = Probe(images, labels, preprocessing_of(parents))
    began = time.perf_counter()
    module = assemble(recipe, chains, init="lstsq", probe=probe, cache=cache)
    preprocess = next(p.network.preprocess for p in parents if p.name == recipe.stem)
    chosen = balanced_indices(data.validation.labels, 1000, 0)
    held, held_labels = preprocess(data.validation.images(chosen)), data.validation.labels[chosen]
    scores, seconds = {}, {"fit": time.perf_counter() - began}
    for name in score_names():
        many = name in MANY_IMAGES
        began = time.perf_counter()
        order = slice(None) if many else slice(0, len(chosen), max(1, len(chosen) // 64))
        scores[name] = get_score(name)(ScoreContext(module, held[order], held_labels[order]))
        seconds[name] = time.perf_counter() - began
    train_set = data.train
    if args.images < len(train_set):
        train_set = train_set.subset(balanced_indices(train_set.labels, args.images, 1))
    settings = TrainSettings(
        epochs=2,
        batch_size=128,
        lr=args.lr,
        schedule="onecycle",
        augment=True,
        clip_grad=1.0,
        precision="bf16",
        channels_last=True,
    )
    result = finetune(module, (train_set, data.validation), settings, preprocess=preprocess)
    accuracy = evaluate(
        module, data.test, Classification(len(data.classes)), preprocess=preprocess, precision="bf16", device="cpu"
    )["accuracy"]
    params, macs = recipe_cost(recipe, chains)
    seconds["tuning"] = result.seconds
    return {
        "blocks": [str(b) for b in recipe.blocks],
        "params": params,
        "macs": macs,
        "accuracy": accuracy,
        "scores": scores,
        "seconds": seconds,
    }


def tau(values: np.ndarray, accuracy: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau-b with its 95% bootstrap interval (2000 draws over recipes)."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(values), size=len(values)) for _ in range(2000)]
    spread = [kendalltau(values[d], accuracy[d]).statistic for d in draws]
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return float(kendalltau(values, accuracy).statistic), float(low), float(high)


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"parquet:{SHARED}/data/cifar10_jpeg")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo")
    parser.add_argument("--vit", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/scores_benchmark"))
    parser.add_argument("--params", type=float, default=0.5e6)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--eps", type=float, default=0.6)
    parser.add_argument("--recipes", type=int, default=40)
    parser.add_argument("--images", type=int, default=50_000, help="training images an epoch")
    parser.add_argument("--fit-images", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", default="0/1", help="I/N: every N-th recipe from the I-th; only then the table is left out"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    data = open_data(args.data)
    parents = study(zoo(args.zoo, args.vit), data.train.images([0]))
    recipes, cache = draw(args, parents, data), ProbeCache()
    part, parts = map(int, args.part.split("/"))
    for number, recipe in list(enumerate(recipes))[part::parts]:
        path = args.work / f"{recipe.digest[:16]}.json"
        if not path.exists():
            row = judge(args, recipe, parents, data, cache)
            path.write_text(json.dumps(row))
            print(f"{number}: {row['accuracy']:.4f} {row['scores']['stitch']:.4f} {row['seconds']}", flush=True)
    files = [args.work / f"{r.digest[:16]}.json" for r in recipes]
    rows = [json.loads(f.read_text()) for f in files if f.exists()]
    if parts == 1 or len(rows) == len(recipes):
        _report(args, rows)


def _report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    accuracy = np.array([r["accuracy"] for r in rows])
    table = []
    for name in rows[0]["scores"]:
        middle, low, high = tau(np.array([r["scores"][name] for r in rows]), accuracy)
        seconds = float(np.median([r["seconds"][name] for r in rows]))
        table.append({"score": name, "tau": middle, "low": low, "high": high, "seconds": seconds})
    table.sort(key=lambda r: -r["tau"])
    for r in table:
        print(f"{r['score']:<10} tau {r['tau']:+.3f}  [{r['low']:+.3f}, {r['high']:+.3f}]  {r['seconds']:.2f} s")
    best = {r["score"]: r["tau"] for r in table}
    result = {
        "rows": table,
        "ratio": best["stitch"] / max(best["params"], best["naswot"])
        if max(best["params"], best["naswot"]) > 0
        else None,
        "ratio_of": "tau of stitch over the greater of params and naswot",
        "recipes": rows,
        "settings": {"images_an_epoch": args.images, "epochs": 2, "lr": args.lr, "k": args.k, "eps": args.eps},
        **describe(),
    }
    if args.json is not None:
        write(args.json, result)


if __name__ == "__main__":
    main()
