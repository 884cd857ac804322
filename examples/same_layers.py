"""Which layers of these two networks do the same?

    python same_layers.py [FOLDER]

All cuts of both networks are compared on the same images (linear CKA); for each unit of the first: the unit of the
second whose output is most alike. `netsmith compare A B --data folder:...` does the same, and draws the map.
"""

from __future__ import annotations

import sys
from pathlib import Path

import zoo

import netsmith
import shapes


def main(folder: Path) -> None:
    data = netsmith.open_data(f"folder:{shapes.write(folder / 'shapes')}")
    first, second = (n for n in zoo.trained(data, folder / "zoo") if n.name != "mobilenet")
    images, _ = netsmith.probe_set(data, 256)
    chains, representations = [], []
    for network in (first, second):
        inputs = network.preprocess(images)
        chain = netsmith.dissect(network.model, inputs[:2], name=network.name)
        chains.append(chain)
        representations.append(netsmith.represent(chain, inputs))
    table = netsmith.similarity(representations).between(first.name, second.name)
    for unit in chains[0].units:
        row = table[unit.index + 1]
        best = int(row[1:].argmax())
        match = chains[1].units[best].name
        print(f"{first.name} {unit.name:10s} is most like {second.name} {match:10s} {row[best + 1]:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples"))
