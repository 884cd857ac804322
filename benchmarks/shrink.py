"""Smaller at once: accuracy after shrinking without labels or training, beside choosing channels only.

    OMP_NUM_THREADS=1 python benchmarks/shrink.py resnet20 resnet56 lite0 --shared SHARED \
        --json benchmarks/results/shrink.json --markdown benchmarks/results/shrink.md

`resnet20` and `resnet56`: CIFAR-10 (JPEG), 1,000 training pictures without labels, accuracy on the test part.
`lite0`: EfficientNet-Lite0 with its ImageNet weights, 160 x 160, every other one of 500 photographs for the fits (200)
and the choice (50), the others judged; only expansion widths vary. Torch-Pruning's L1 cuts the same widths, and is
judged with the norms it has and with norms recalibrated on the same pictures. Times are CPU seconds of one thread,
beside a forward pass of the original over the pictures that the fits see.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import machine
import torch
from PIL import Image
from pruning import _cut
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

import netsmith
from netsmith.widths.folding import recalibrate

RATIOS = (0.875, 0.75, 0.625, 0.5, 0.25)
CIFAR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 32, 32), "num_classes": 10}


class Case:
    """A network, the inputs of its fits, which groups vary, and how it is judged."""

    def __init__(self, name: str, shared: Path) -> None:
        self.name = name
        if name == "lite0":
            self._photographs(shared)
        else:
            self._cifar(shared)
        self.base = self.judge(self.network.model)
        began = time.process_time()
        with torch.no_grad():
            for x in self.pictures.split(50):
                self.network.model(x)
        self.forward = time.process_time() - began

    def _cifar(self, shared: Path) -> None:
        weights = shared / "zoo" / f"{self.name}_cifar10_jpeg.safetensors"
        self.network = netsmith.load_source(f"netsmith:cifar_{self.name}#{weights}", name=self.name, **CIFAR)
        splits = netsmith.open_data(f"parquet:{shared / 'data' / 'cifar10_jpeg'}")
        self.data: Any = splits
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:1000]
        self.pictures = self.network.preprocess(splits.train.images(order))
        task = netsmith.Classification(10)
        self.judge: Callable[[nn.Module], float] = lambda model: netsmith.evaluate(
            model, splits.test, task, preprocess=self.network.preprocess
        )["accuracy"]
        self.groups: Iterable[str] | None = None

    def _photographs(self, shared: Path) -> None:
        weights = shared / "zoo" / "efficientnet_lite0_imagenet.safetensors"
        self.network = netsmith.load_source(
            f"timm:tf_efficientnet_lite0#{weights}", name="efficientnet_lite0", input_size=(3, 160, 160)
        )
        folder = shared / "data" / "imagenet_sample"
        rows = list(csv.DictReader((folder / "labels.csv").open()))

        def read(name: str) -> Tensor:
            picture = pil_to_tensor(Image.open(folder / "pictures" / name).convert("RGB"))
            return center_crop(resize(picture, [183], InterpolationMode.BICUBIC, antialias=True), [160, 160]) / 255

        every = self.network.preprocess(torch.stack([read(row["file"]) for row in rows]))
        classes = torch.tensor([int(row["class_index"]) for row in rows])
        self.pictures = self.data = every[::2]

        @torch.no_grad()
        def judge(model: nn.Module) -> float:
            answers = torch.cat([model(x) for x in every[1::2].split(50)]).argmax(1)
            return float((answers == classes[1::2]).double().mean())

        self.judge = judge
        blocks = self.network.model.get_submodule("blocks")
        self.groups = {f"blocks.{n}" for n, _ in blocks.named_modules() if n.endswith("conv_pw")}
        self.groups -= {"blocks.0.0.conv_pw"}  # no expansion: the first block is depthwise and projection

    def widths(self, ratio: float) -> dict[str, int | float]:
        """The ratio for the groups that vary."""
        folded = netsmith.fold_batch_norms(self.network.model, self.pictures[:2])
        found = netsmith.width_groups(folded, self.pictures[:2]).inner
        return {g.name: ratio for g in found if self.groups is None or g.name in self.groups}

    def torch_pruning(self, widths: dict[str, int]) -> nn.Module:
        """The network cut by Torch-Pruning's L1 to widths in channels."""
        import copy

        model = copy.deepcopy(self.network.model).eval().requires_grad_(True)
        layers = {name: model.get_submodule(name) for name in widths}
        _cut(model, layers, widths, "l1", self.network.preprocess.input_size)
        return model.eval().requires_grad_(False)


def run(case: Case) -> list[dict[str, Any]]:
    """Every method at every size."""
    rows: list[dict[str, Any]] = []

    def add(how: str, asked: str, small: netsmith.Shrunk, seconds: float) -> None:
        rows.append(
            {
                "case": case.name, "how": how, "asked": asked, "params": small.after.params, "macs": small.after.macs,
                "accuracy": case.judge(small.model), "agreement": small.agreement, "seconds": seconds,
                "forwards": seconds / case.forward,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)

    for ratio in RATIOS:
        widths = case.widths(ratio)
        for how in ("l1", "importance", "closed_form"):
            began = time.process_time()
            small = netsmith.shrink(case.network, case.data, widths=widths, method=how)
            add(how, f"widths {ratio:g}", small, time.process_time() - began)
        cut = case.torch_pruning({name: now for name, (now, _) in small.widths.items()})
        row = {"case": case.name, "asked": f"widths {ratio:g}", "params": netsmith.count_params(cut)}
        rows.append({**row, "how": "Torch-Pruning L1", "accuracy": case.judge(cut)})
        recalibrate(cut, case.pictures.split(50))
        rows.append({**row, "how": "Torch-Pruning L1, norms recalibrated", "accuracy": case.judge(cut)})
        print(rows[-2:], flush=True)
    if case.name == "lite0":
        return rows
    name, shares = ("params", (0.75, 0.5, 0.25)) if case.name == "resnet20" else ("macs", (0.75, 0.6, 0.5))
    for share in shares:
        for search in (False, True):
            began = time.process_time()
            budget: dict[str, Any] = {name: share}
            small = netsmith.shrink(case.network, case.data, **budget, search=search)
            how = "closed_form, search" if search else "closed_form"
            add(how, f"{name} {share:g}", small, time.process_time() - began)
    return rows


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = f"{result['machine']['cpu']}, one thread, torch {result['versions']['torch']}, {result['date']}"
    lines = ["# Smaller at once", "", where, ""]
    for name, base in result["bases"].items():
        lines += [f"## {name}: {100 * base:.1f}% as it came", "", "| size | how | params | accuracy | forward passes |"]
        lines += ["|---|---|---|---|---|"]
        for row in result["rows"]:
            if row["case"] == name:
                passes = f"{row['forwards']:.1f}" if "forwards" in row else ""
                size, accuracy = f"{row['params'] / 1e3:.0f}k", f"{100 * row['accuracy']:.1f}"
                lines.append(f"| {row['asked']} | {row['how']} | {size} | {accuracy} | {passes} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=("resnet20", "resnet56", "lite0"))
    parser.add_argument("--shared", type=Path, required=True, help="folder with data and zoo")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {**machine.describe(), "bases": {}, "rows": []}
    for name in arguments.cases:
        case = Case(name, arguments.shared)
        result["bases"][name] = case.base
        result["rows"] += run(case)
        machine.write(arguments.json, result)
    if arguments.markdown:
        arguments.markdown.write_text(page(result))


if __name__ == "__main__":
    main()
