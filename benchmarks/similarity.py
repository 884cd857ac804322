"""Linear CKA of every cut with every other, over all pairs of a zoo: Netsmith beside pytorch-cka.

    python benchmarks/similarity.py --json benchmarks/results/similarity.json

Same networks, same images, same cuts. pytorch-cka works pair by pair, so it runs N^2 forward passes where N suffice.
It is measured three times:

- `pooled, whole`: the same representation as ours (pooled over space or tokens), all images in one batch, which is what
  it needs to give the same numbers; the tables are compared. The ratio in the file is against this one.
- `pooled, batches`: the same representation in minibatches of 128; its estimate is then another one (HSIC averaged
  over minibatches).
- `flattened, batches`: as it comes, on whole activations, in minibatches of 128.

Its sums are float32 on features that are not centred, which costs it digits; so our table is also compared with its
formula in float64 on our features.

Every measurement is a process of its own with one thread. Seconds are of CPU time (other work on the machine is then
not counted), without loading and dissecting; peak memory is `ru_maxrss` of the process, and what was resident before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
CIFAR = ("resnet20", "resnet32", "resnet56")
TIMM = (
    "resnet18",
    "vit_tiny_patch16_224",
    "mobilenetv3_large_100",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv2_100",
    "regnety_008",
    "edgenext_xx_small",
)
WHOLE, BATCHES, FLATTENED = "pooled, whole", "pooled, batches", "flattened, batches"
PEERS = {WHOLE: (True, None), BATCHES: (True, 128), FLATTENED: (False, 128)}


# Imports of torch stay inside the functions that a worker runs: ru_maxrss of a process starts at that of its parent.


def prepare(folder: Path, data: Path, count: int) -> None:
    """Writes the images, class-balanced, from the training part."""
    from safetensors.torch import save_file

    from netsmith.data.splits import open_data, probe_set

    images, _ = probe_set(open_data(f"parquet:{data}"), count)
    save_file({"images": images.contiguous()}, folder / "images.safetensors")


def load_zoo(zoo: str, job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Chains and preprocessed images of each network."""
    from safetensors.torch import load_file

    from netsmith.networks.network import load_source
    from netsmith.trace.chain import dissect

    raw = load_file(Path(job["folder"]) / "images.safetensors")["images"]
    chains, images = {}, {}
    for name in job["networks"]:
        if zoo == "cifar":
            source = f"netsmith:cifar_{name}#{job['zoo_dir']}/{name}_cifar10_jpeg.safetensors"
            network = load_source(source, name=name, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        else:
            size = (3, job["size"], job["size"])
            network = load_source(f"timm:{name}", name=name, pretrained=False, input_size=size)
        images[name] = network.preprocess(raw)
        chains[name] = dissect(network.model, images[name][:2], name=name)
    return chains, images


def run_ours(chains: dict[str, Any], images: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    from netsmith.reassembly.representation import represent
    from netsmith.reassembly.similarity import similarity

    start = time.process_time()
    reps = [represent(chain, images[name]) for name, chain in chains.items()]
    middle = time.process_time()
    table = similarity(reps)
    return table.values, {"representation": middle - start, "product": time.process_time() - middle}


def largest_error(chains: dict[str, Any], images: dict[str, Any]) -> float:
    """Of our table against pytorch-cka's formula in float64 on the same features."""
    import numpy as np
    from cka import cka_from_features

    from netsmith.reassembly.representation import represent
    from netsmith.reassembly.similarity import similarity

    reps = [represent(chain, images[name], keep_features=True) for name, chain in chains.items()]
    rows = [row.double() for rep in reps for row in rep.features or ()]
    return float(np.abs(similarity(reps).values.clip(0) - cka_from_features(rows, rows).numpy()).max())


def run_peer(chains: dict[str, Any], images: dict[str, Any], pooled: bool, batch: int | None) -> tuple[Any, Any]:
    """All pairs, each network with itself too, as the table has them."""
    import warnings

    warnings.simplefilter("ignore")
    import numpy as np
    from cka import compute_cka
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from netsmith.reassembly import representation

    class Tap(nn.Module):
        def __init__(self, layout: Any) -> None:
            super().__init__()
            self.layout = layout

        def forward(self, x: Tensor) -> Tensor:
            return representation.pooled(x, self.layout) if pooled else x

    class Tapped(nn.Module):
        """The network up to its last cut, with a named layer at each cut; takes its channels of a joint input."""

        def __init__(self, chain: Any) -> None:
            super().__init__()
            self.stem, self.units = chain.stem, nn.ModuleList(unit.module for unit in chain.units)
            self.taps = nn.ModuleList(Tap(cut.layout) for cut in chain.cuts)

        def forward(self, x: Tensor) -> None:
            x = self.stem(x)
            self.taps[0](x)
            for unit, tap in zip(self.units, list(self.taps)[1:], strict=True):
                x = unit(x)
                tap(x)

    names = list(chains)
    tapped = {name: Tapped(chain) for name, chain in chains.items()}
    layers = {name: [f"taps.{i}" for i in range(len(chain.cuts))] for name, chain in chains.items()}
    parts: dict[tuple[str, str], Any] = {}
    seconds: dict[str, float] = {}
    for i, a in enumerate(names):
        for b in names[i:]:
            start = time.process_time()
            # one loader a pair is all that the library takes
            loader = DataLoader(TensorDataset(images[a]), batch_size=batch or len(images[a]))
            found = compute_cka(
                tapped[a], tapped[b], loader, layers=layers[a], model2_layers=layers[b], device="cpu", progress=False
            )[0].numpy()
            parts[a, b], parts[b, a] = found, found.T
            seconds[f"{a}|{b}"] = time.process_time() - start
    return np.block([[parts[a, b] for b in names] for a in names]), seconds


def time_product(n: int) -> list[dict[str, Any]]:
    """The product alone, on random Gram matrices."""
    import torch

    from netsmith.reassembly.representation import Representations
    from netsmith.reassembly.similarity import similarity

    grams = torch.randn(384, n, n)
    grams += grams.transpose(1, 2).clone()
    rows = []
    for cuts in (48, 96, 192, 384):
        reps = Representations("random", tuple(map(str, range(cuts))), grams[:cuts])
        start = time.process_time()
        similarity([reps])
        rows.append({"cuts": cuts, "seconds": time.process_time() - start})
    return rows


def worker(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    if job["do"] == "prepare":
        prepare(Path(job["folder"]), Path(job["data"]), job["images"])
        return {}
    if job["do"] == "product":
        return {"rows": time_product(job["images"])}
    chains, images = load_zoo(job["zoo"], job)
    first = images[job["networks"][0]]
    # pytorch-cka takes one loader for both networks: so that all see the same pixels, all get the first one's
    images = dict.fromkeys(images, first)
    if job["do"] == "check":
        return {"largest_error": largest_error(chains, images)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, start = time.perf_counter(), time.process_time()
    if job["do"] == "ours":
        values, detail = run_ours(chains, images)
    else:
        values, detail = run_peer(chains, images, *PEERS[job["do"]])
    seconds = time.process_time() - start
    np.save(Path(job["folder"]) / job["values"], values)
    return {
        "seconds": seconds,
        "wall_seconds": time.perf_counter() - wall,
        "detail": detail,
        "resident_before_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cuts": len(values),
        "units": {name: len(chain) for name, chain in chains.items()},
    }


def spawn(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of least CPU time (noise only adds to it), with all times and the largest peak."""
    best = min(runs, key=lambda run: run["seconds"])
    return {**best, "all_seconds": [run["seconds"] for run in runs], "peak_mb": max(run["peak_mb"] for run in runs)}


def measure(base: dict[str, Any], repeats: int, peers: tuple[str, ...]) -> list[dict[str, Any]]:
    """Ours and the peers in turn on one zoo; the rows of the table."""
    import numpy as np

    folder = Path(base["folder"])
    runs: dict[str, list[dict[str, Any]]] = {"netsmith": [], **{peer: [] for peer in peers}}
    tables: dict[str, Any] = {}
    for _ in range(repeats):
        for who in runs:
            runs[who].append(spawn({**base, "do": "ours" if who == "netsmith" else who, "values": "values.npy"}))
            tables[who] = np.load(folder / "values.npy")
    rows = []
    for who, found in runs.items():
        count = len(base["networks"])
        row = {"zoo": base["zoo"], "networks": count, "pairs": count * (count + 1) // 2, "who": who, **fastest(found)}
        if who != "netsmith":
            row["who"] = f"pytorch-cka, {who}"
            row["times_ours"] = row["seconds"] / rows[0]["seconds"]
            # the library cuts negative estimates off at 0
            row["largest_difference"] = float(np.abs(tables[who] - tables["netsmith"].clip(0)).max())
        elif WHOLE in peers:
            row["largest_error"] = spawn({**base, "do": "check"})["largest_error"]
        rows.append(row)
        show(row)
    return rows


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours at 2, 4, 8 networks; the peer's pairs among them, summed from its run over all pairs."""
    peer = next(row for row in rows if row["who"] == f"pytorch-cka, {WHOLE}" and row["networks"] == len(TIMM))
    found = []
    for row in rows:
        if row["who"] == "netsmith" and row["zoo"] == "timm":
            among = set(TIMM[: row["networks"]])
            theirs = sum(seconds for pair, seconds in peer["detail"].items() if set(pair.split("|")) <= among)
            kept = {key: row[key] for key in ("networks", "pairs", "cuts", "seconds")}
            kept |= {**row["detail"], "seconds_a_cut": row["seconds"] / row["cuts"], "peer_seconds": theirs}
            found.append(kept)
    return sorted(found, key=lambda row: row["networks"])


def show(row: dict[str, Any]) -> None:
    ratio = f"{row['times_ours']:8.1f}x" if "times_ours" in row else " " * 9
    print(
        f"{row['zoo']:16} {row['networks']:2} nets {row['cuts']:4} cuts  {row['who']:32} "
        f"{row['seconds']:8.1f} s {row['peak_mb']:8.0f} MB{ratio}",
        flush=True,
    )


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    model = next((line.split(":", 1)[1].strip() for line in listed.splitlines() if "Model name" in line), "unknown")
    libraries = {name: version(name) for name in ("netsmith", "torch", "timm", "pytorch-cka", "numpy")}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads_used": 1,
        "shared_with_other_work": True,
        "python": platform.python_version(),
        **libraries,
        "date": date.today().isoformat(),
    }


def markdown(result: dict[str, Any]) -> str:
    m = result["machine"]
    lines = [
        "# All-pairs linear CKA of a zoo: Netsmith beside pytorch-cka",
        "",
        f"`python benchmarks/similarity.py --json benchmarks/results/similarity.json`, {m['date']}. {m['cpu']}, "
        f"{m['cores']} cores shared with other work, one thread each; Python {m['python']}, torch {m['torch']}, "
        f"timm {m['timm']}, pytorch-cka {m['pytorch-cka']}. {result['images']} images; timm networks at "
        f"random weights and {result['size']}x{result['size']} pixels. Seconds are CPU time: only ratios carry over.",
        "",
        "| zoo | networks | pairs | cuts | | s | times ours | peak MB | MB before | largest difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratio = f"{row['times_ours']:.1f}" if "times_ours" in row else "1"
        off = f"{row['largest_difference']:.0e}" if "times_ours" in row else ""
        lines.append(
            f"| {row['zoo']} | {row['networks']} | {row['pairs']} | {row['cuts']} | {row['who']} | "
            f"{row['seconds']:.1f} | {ratio} | {row['peak_mb']:.0f} | {row['resident_before_mb']:.0f} | {off} |"
        )
    lines += [
        "",
        f"Ratio, the smallest of the zoos: for the same numbers (`{WHOLE}`) **{result['ratio']:.1f}**; against "
        f"minibatches (another estimate) {result['ratio_batches']:.1f}; against pytorch-cka as it comes "
        f"{result['ratio_flattened']:.1f}. Pairs count a network with itself: the table holds those too.",
        "",
        f"Ours differs from pytorch-cka's own formula in float64 on the same features by at most "
        f"{result['largest_error']:.0e}. The differences of `{WHOLE}` come from its float32 sums of features that are "
        "not centred.",
        "",
        "For N networks the peer takes N^2 forward passes and we take N: where the passes are all there is, a zoo of "
        "three gains little more than 3.",
        "",
        "## Growth with the zoo (timm)",
        "",
        "One pass a network: cost follows the cuts, the peer's follows the pairs. The peer's seconds are the sums "
        f"over the pairs among those networks in its run over all pairs (`{WHOLE}`).",
        "",
        "| networks | pairs | cuts | s | of it the product | s a cut | pytorch-cka, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['networks']} | {row['pairs']} | {row['cuts']} | {row['seconds']:.1f} | {row['product']:.2f} | "
        f"{row['seconds_a_cut']:.2f} | {row['peer_seconds']:.1f} |"
        for row in result["growth"]
    ]
    lines += [
        "",
        "The product alone, on random Gram matrices, grows with the square of the cuts once it is larger than what is "
        "done once a cut (centring, copies):",
        "",
        "| cuts | s |",
        "|---|---|",
    ]
    lines += [f"| {row['cuts']} | {row['seconds']:.2f} |" for row in result["product"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers; a .md goes beside it")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo", help="folder of the trained CIFAR ResNets")
    parser.add_argument(
        "--data", type=Path, default=SHARED / "data" / "cifar10_jpeg", help="folder of the CIFAR images"
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=96, help="side of the timm networks' input, in pixels")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each on the CIFAR zoo; the timm zoo has one")
    parser.add_argument("--only", choices=("cifar", "timm"), help="one of the zoos")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(json.loads(args.worker))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = {"folder": folder, "zoo_dir": str(args.zoo.resolve()), "size": args.size}
        spawn({**base, "do": "prepare", "data": str(args.data.resolve()), "images": args.images})
        product = spawn({"do": "product", "images": args.images})["rows"]
        if args.only != "timm":
            rows += measure({**base, "zoo": "cifar", "networks": CIFAR}, args.repeats, tuple(PEERS))
        if args.only != "cifar":
            # all pairs for the same numbers; the other two, as slow, on the pairs of the first four networks
            for count, peers in ((2, ()), (4, (BATCHES, FLATTENED)), (8, (WHOLE,))):
                rows += measure({**base, "zoo": "timm", "networks": TIMM[:count]}, 1, peers)
    ratios = [min(row["times_ours"] for row in rows if row["who"].endswith(peer)) for peer in PEERS]
    result = {"rows": rows, "ratio": ratios[0], "ratio_batches": ratios[1], "ratio_flattened": ratios[2]}
    result["largest_error"] = max(row.get("largest_error", 0.0) for row in rows)
    result |= {"growth": [] if args.only == "cifar" else growth(rows), "product": product}
    result |= {"images": args.images, "size": args.size, "machine": machine()}
    print(f"at least {ratios[0]:.1f} times faster than pytorch-cka for the same numbers")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
