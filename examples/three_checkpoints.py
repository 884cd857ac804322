"""I have three checkpoints and a budget.

    python three_checkpoints.py [FOLDER]

A network of your own, one of timm and one of torchvision, and no room for any but a small one: blocks of them are put
together into a network within the budget, which is accurate before it is trained, is trained a little, and leaves as an
artifact and as ONNX.
"""

from __future__ import annotations

import sys
from pathlib import Path

import zoo

import netsmith
import shapes


def main(folder: Path) -> None:
    data = netsmith.open_data(f"folder:{shapes.write(folder / 'shapes')}")
    networks = zoo.trained(data, folder / "zoo")
    for network in networks:
        accuracy = netsmith.evaluate(
            network.model, data.test, netsmith.Classification(4), preprocess=network.preprocess
        )["accuracy"]
        print(f"{network.name:10s} {netsmith.count_params(network.model):9,d} params  {100 * accuracy:.1f}%")

    result = netsmith.reassemble(
        networks,
        data,
        netsmith.Budget(params="600k"),
        partition={"k": 3, "eps": 0.5},
        search={"distinct_sets": False},  # in so small a zoo few assemblies take a block of each set
        probe={"images": 256},
        stitch={"images": 500},
        finetune=zoo.TRAINING,
    )
    print("made of", ", ".join(str(block) for block in result.recipe.blocks))
    print({name: f"{100 * value:.1f}%" for name, value in result.accuracy.items() if isinstance(value, float)})
    netsmith.save_reassembled(result, folder / "reassembled", overwrite=True)
    model = netsmith.load(folder / "reassembled")  # a plain torch module
    print(f"{netsmith.count_params(model):,d} params within 600,000")

    network = netsmith.load_source(str(folder / "reassembled"))
    netsmith.export(network, folder / "reassembled.onnx", overwrite=True)  # checked in onnxruntime
    netsmith.export(network, folder / "reassembled.pt2", overwrite=True)
    print("wrote reassembled.onnx and reassembled.pt2, which need no Netsmith to run")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples"))
