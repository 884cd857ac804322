"""Accuracy over parameters, drawn from what `morph_cifar10.py` and `morph_rivals.py` measured.

python benchmarks/morph_curve.py --json benchmarks/results/morph_cifar10.json --out docs/images/cifar10_any_width.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from morph_cifar10 import over_seeds, read

SPACES = {"all": "all inner widths", "last_block": "the last block"}
KINDS = {
    "grid": ("Netsmith's default: one artifact, any width", "#0b6e4f", "o-"),
    "nested": ("nested (slimmable weights), the same steps", "#c1666b", "s--"),
    "inr": ("the paper's generator, the same time", "#7768ae", "v:"),
}
RIVALS = {
    ("l1", "total"): ("Torch-Pruning L1, three networks, the same steps", "#3d405b", "x"),
    ("taylor", "total"): ("Torch-Pruning Taylor, three networks, the same steps", "#e08e45", "+"),
    ("l1", "curve"): ("Torch-Pruning L1, six networks, the same steps", "#3d405b", "D"),
    ("taylor", "curve"): ("Torch-Pruning Taylor, six networks, the same steps", "#e08e45", "^"),
    ("l1", "each"): ("Torch-Pruning L1, three networks, three times the steps", "#9a9ab0", "*"),
}
LOWEST = 0.78
"""Where the axis ends: what collapses leaves the picture, and the table has it."""


def means(pieces: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    """Parameters (in thousands), mean and deviation of the test accuracy (in percent) at each ratio."""
    params = {p["ratio"]: p["params"] for piece in pieces for p in piece["points"]}
    return [
        (params[ratio] / 1000, 100 * (mean or 0.0), 100 * (spread or 0.0))
        for ratio in sorted(params)
        for mean, spread in [over_seeds(pieces, ratio)]
    ]


def draw(axes: Axes, points: Sequence[tuple[float, float, float]], name: str, colour: str, style: str) -> None:
    params, mean, spread = zip(*points, strict=True)
    alone = len(style) == 1
    size = 4.5 if not alone else 5 if style in "D^" else 9
    if max(mean) < 100 * LOWEST:
        axes.text(0.98, 0.03, f"below: {name}, at most {max(mean):.0f}%", ha="right", fontsize=8, color=colour,
                  transform=axes.transAxes)  # fmt: skip
        return
    axes.errorbar(
        params, mean, spread, fmt=style, color=colour, label=name,
        markersize=size, linewidth=1.6, capsize=2, elinewidth=0.9, zorder=3 if alone else 2,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the table; the pieces lie in the folder of its name")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pieces, rivals = read(arguments.json.with_suffix(""))
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.3), layout="constrained")
    for axes, (space, title) in zip(panels, SPACES.items(), strict=True):
        here = [p for p in pieces if p["space"] == space]
        base = here[0]["base"]["test"]
        axes.axhline(100 * base, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for kind, look in KINDS.items():
            of_kind = [p for p in here if p["kind"] == kind]
            if of_kind:
                draw(axes, means(of_kind), *look)
        for (rival, share), look in RIVALS.items():
            of_rival = [r for r in rivals if (r["space"], r["rival"], r["share"]) == (space, rival, share)]
            if of_rival:
                draw(axes, means(of_rival), *look)
        fitted = min(p["params"] for p in here[0]["points"] if p["fitted"]) / 1000
        axes.axvspan(axes.get_xlim()[0], fitted, color="#000000", alpha=0.05, linewidth=0)
        axes.text(fitted, 88.8, "not fitted ", ha="right", fontsize=8, color="#555555")
        axes.margins(x=0.01)
        axes.set(title=f"ResNet20, {title}", xlabel="parameters, thousands", ylim=(100 * LOWEST, 89.2))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    named = {n: h for axes in panels for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    panels[0].set_ylabel("CIFAR-10 test accuracy, %")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
