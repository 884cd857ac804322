"""How alike two networks are, cut by cut and in their answers, on the same probe images.

Similarity of every cut of the first with every cut of the second; for each unit of the first the unit of the second
whose output is most like its own, and the unit of the same name. Where both tell the same classes apart, the divergence
of their class probabilities (in nats) and how often they name the same class.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsmith.errors import did_you_mean

from .options import add_common, add_images, add_output, add_size, positive
from .parser import UsageError
from .session import Session

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from netsmith.networks.network import Network
    from netsmith.reassembly.agreement import Agreement
    from netsmith.trace.chain import Chain

SUMMARY = "similarity of two networks, cut by cut"
EXAMPLES = (
    (
        "netsmith compare netsmith:cifar_resnet20 netsmith:cifar_resnet32 --data digits --input-size 1x8x8",
        "two small networks, offline",
    ),
    (
        "netsmith compare timm:resnet18 timm:resnet50 --data folder:imagenet --out runs/cmp",
        "with a page and JSON",
    ),
    ("netsmith compare runs/any_width/artifact@0.5 runs/any_width/artifact@1.0", "two widths of a morphed network"),
    ("netsmith compare A B --data parquet:cifar10 --metric lr --images 1024", "R² of predicting B from A"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two sources, the probe and the metric."""
    parser.add_argument("first", metavar="SOURCE", help="a network (see `netsmith dissect --help`)")
    parser.add_argument("second", metavar="SOURCE", help="another one, or the same with other weights")
    parser.add_argument(
        "--data",
        default="digits",
        metavar="DATA",
        help="digits, torchvision:NAME, folder:PATH, images:PATH, parquet:PATH (default: digits)",
    )
    add_size(parser)
    parser.add_argument(
        "--images", type=positive, metavar="N", help="probe images, of the training split (default: 512, or all)"
    )
    parser.add_argument("--metric", default="cka", metavar="NAME", help="cka, rbf_cka or lr (default: cka)")
    parser.add_argument("--biased", action="store_true", help="the plug-in estimate of HSIC, as in the papers")
    add_images(parser)
    parser.add_argument("--random-weights", action="store_true", help="build both without their weights: no download")
    add_output(parser, required=False, what="folder for comparison.html and comparison.json")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, represent, compare, print and write."""
    from netsmith.reassembly.names import METRICS

    if arguments.metric not in METRICS:
        raise UsageError(f"unknown metric '{arguments.metric}'. {did_you_mean(arguments.metric, METRICS)}")

    # torch is loaded from here on
    from netsmith.data.splits import probe_set
    from netsmith.reassembly.representation import represent
    from netsmith.reassembly.similarity import similarity

    from .folder import check_folder, open_folder
    from .networks import device_of, load_chain, open_for, recalibrate_sized

    if arguments.out is not None:
        check_folder(arguments.out, arguments.overwrite)
    seed, device = arguments.seed or 0, device_of(arguments.device)
    sources = [arguments.first, arguments.second]
    data = open_for(sources, arguments.data, session, seed=arguments.seed, size=arguments.size)
    images, _ = probe_set(data.splits, arguments.images, seed=seed)
    chains, reps, networks = [], [], []
    with session.console.progress() as bars:
        for source in (arguments.first, arguments.second):
            other = chains[0].name if chains else None
            network, chain = load_chain(
                source, arguments, example_shape=tuple(images.shape[1:]), not_named=other, one_of_two=True
            )
            recalibrate_sized(source, network, data.splits, session, seed=data.seed)
            networks.append(network)
            chains.append(chain)
            step = bars.step(f"representing {chain.name}")
            reps.append(represent(chain, network.preprocess(images), device=device, progress=step))
        answers = compare_answers(networks[0], networks[1], images, device, bars.step("comparing answers"))
    table = similarity(reps, metric=arguments.metric, biased=arguments.biased)
    values = table.between(chains[0].name, chains[1].name)
    facts = describe(chains[0], chains[1], values, answers, arguments, table.samples)
    show(facts, session)
    if arguments.out is not None:
        open_folder(arguments.out, arguments.overwrite, session)
        write(facts, arguments.out, session)
        session.finished = True
    return 0


def compare_answers(
    a: Network, b: Network, images: Tensor, device: torch.device, step: Callable[[int, int], None]
) -> Agreement | str:
    """How alike the networks' answers are, or why that cannot be said."""
    from netsmith.data.classes import same_classes
    from netsmith.reassembly.agreement import agreement
    from netsmith.trace.cost import in_parts

    def answering(network: Network) -> Callable[[Tensor], Tensor]:
        model = network.model.to(device).eval()

        def answer(batch: Tensor) -> Tensor:
            return in_parts(model, network.preprocess(batch.to(device)))

        return answer

    if a.task != b.task:
        return f"one is for {a.task}, the other for {b.task}"
    if a.task == "generation" or not a.num_classes or not b.num_classes:
        return "they tell no classes apart"
    if a.num_classes != b.num_classes:
        return f"one tells {a.num_classes} classes apart, the other {b.num_classes}"
    order = same_classes(a.model, b.model, a.num_classes)
    if order is None:
        return "their classes have other names"
    if a.task == "segmentation" and a.preprocess.input_size != b.preprocess.input_size:
        return "they take images of different sizes"
    second = answering(b)
    return agreement(answering(a), lambda batch: second(batch)[:, order], images, progress=step)


def describe(
    a: Chain, b: Chain, values: np.ndarray, answers: Agreement | str, arguments: argparse.Namespace, samples: int
) -> dict[str, Any]:
    """The comparison as JSON-able facts; `values[i, j]` is the similarity of cut i of `a` to cut j of `b`."""
    places = {unit.name: unit.index for unit in b.units}
    same = [
        {"unit": unit.name, "similarity": float(values[unit.index + 1, places[unit.name] + 1])}
        for unit in a.units
        if unit.name in places
    ]
    best = []
    for unit in a.units:
        # cut 0 is the stem's output: unit i's own is cut i + 1
        row = values[unit.index + 1, 1:]
        match = int(row.argmax())
        best.append({"unit": unit.name, "best": b.units[match].name, "similarity": float(row[match])})
    return {
        "kind": "comparison",
        "schema": 1,
        "metric": arguments.metric,
        "images": samples,
        "rows": _side(a, arguments.first),
        "columns": _side(b, arguments.second),
        "values": [[float(v) for v in row] for row in values],
        "best": best,
        "same": same,
        "outputs": _outputs(answers),
        "facts": {"data": arguments.data, "biased": arguments.biased, "seed": arguments.seed or 0},
    }


def _outputs(answers: Agreement | str) -> dict[str, Any]:
    if isinstance(answers, str):
        return {"missing": answers}
    return {
        "kl": {"first_second": answers.forward, "second_first": answers.backward},
        "unit": "nats",
        "agreement": answers.same,
        "per": answers.per,
        "images": answers.images,
    }


def _side(chain: Chain, source: str) -> dict[str, Any]:
    cuts = [cut.name for cut in chain.cuts]
    return {"name": chain.name, "source": source, "cuts": cuts, "params": chain.params, "macs": chain.macs}


SHADES = " .:-=+*#%@"


def show(facts: dict[str, Any], session: Session) -> None:
    """The heatmap in characters, each unit with the one of its name and its best match, and the answers."""
    rows, columns, console = facts["rows"], facts["columns"], session.console
    console.result(
        f"{facts['metric']} of {rows['name']} (rows) and {columns['name']} (columns) on {facts['images']} images of "
        f"{facts['facts']['data']}"
    )
    label = min(28, max(len(c) for c in rows["cuts"]))
    wide = label + 5 + 4 * len(columns["cuts"]) <= console.out.width
    if wide:
        console.result(" " * (label + 4) + "".join(f"{j:>4}" for j in range(len(columns["cuts"]))))
    for i, (cut, row) in enumerate(zip(rows["cuts"], facts["values"], strict=True)):
        cells = "".join(f"{round(100 * v):>4}" for v in row) if wide else "".join(_shade(v) for v in row)
        console.result(f"{i:>3} {cut[-label:]:<{label}}{cells}")
    scale = "in hundredths" if wide else f"from 0 '{SHADES[0]}' to 1 '{SHADES[-1]}'"
    console.result(f"{scale}; row and column 0 are the outputs of the stems\n")
    own = {s["unit"]: f"{s['similarity']:.3f}" for s in facts["same"]}
    matches = [
        [m["unit"], *([own.get(m["unit"], "")] if own else []), m["best"], f"{m['similarity']:.3f}"]
        for m in facts["best"]
    ]
    heads = [f"unit of {rows['name']}", *([">of the same unit"] if own else []), f"most alike in {columns['name']}"]
    console.table([*heads, f">{facts['metric']}"], matches)
    console.result()
    show_outputs(facts["outputs"], rows["name"], columns["name"], session)


def show_outputs(outputs: dict[str, Any], first: str, second: str, session: Session) -> None:
    """How alike the answers are, or why that is not known."""
    if "missing" in outputs:
        session.console.result(f"answers not compared: {outputs['missing']}")
        return
    kl, per = outputs["kl"], outputs["per"]
    session.console.result(
        f"KL divergence of the class probabilities, mean over {per}s, in nats: KL({first} || {second}) = "
        f"{kl['first_second']:.4f}, KL({second} || {first}) = {kl['second_first']:.4f}\n"
        f"same first class: {100 * outputs['agreement']:.2f}% of {per}s"
    )


def write(facts: dict[str, Any], out: Path, session: Session) -> None:
    """comparison.json, and the heatmap as a page."""
    from netsmith.files.output import write_json
    from netsmith.report.comparison import write_comparison

    session.console.result(f"wrote {write_json(out / 'comparison.json', facts)}")
    session.console.result(f"wrote {write_comparison(out, facts)}")


def _shade(value: float) -> str:
    return SHADES[min(len(SHADES) - 1, max(0, int(value * len(SHADES))))]
