"""Shrink my network to half, without retraining for each size.

    python half_without_retraining.py [FOLDER]

One fitting, then any width: the network of your own is read at a half, at a quarter, and within a budget, each a plain
module in milliseconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import zoo

import netsmith
import shapes


def main(folder: Path) -> None:
    data = netsmith.open_data(f"folder:{shapes.write(folder / 'shapes')}")
    # or a module that you have: netsmith.load_source(module, mean=..., std=..., input_size=...)
    network = next(n for n in zoo.trained(data, folder / "zoo") if n.name == "own")
    result = netsmith.morph(
        network,
        data,
        space={"widths": (0.25, 1.0)},
        training=netsmith.TrainSettings(epochs=12, batch_size=32, lr=0.01, clip_grad=2.0),
        ratios=(1.0, 0.75, 0.5, 0.25),
    )
    for point in result.points:
        print(f"{point.ratio:5.2f}  {point.params:7,d} params  {100 * point.metrics['test']['accuracy']:.1f}%")

    began = time.perf_counter()
    half = result.model.at(0.5)
    print(
        f"half of every width in {1e3 * (time.perf_counter() - began):.0f} ms: {netsmith.count_params(half):,d} params"
    )
    small = result.model.at(params=30_000)
    print(f"the widest within 30,000 params has {netsmith.count_params(small):,d}")
    netsmith.save_morphed(result, folder / "any_width", overwrite=True)
    netsmith.export(netsmith.load_source(f"{folder / 'any_width'}@0.5"), folder / "half.onnx", overwrite=True)
    print("wrote half.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples"))
