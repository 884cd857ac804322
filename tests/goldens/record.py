"""The numbers of both methods on tiny networks, to be equal before and after a change of the code.

`python tests/goldens/record.py` writes `goldens.json` anew: only where a change of the numbers is meant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import netsmith

sys.path.insert(0, str(Path(__file__).parent.parent / "reassembly"))

from tiny import chains, images, preprocess, probe, references

GOLDENS = Path(__file__).parent / "goldens.json"


def methods() -> dict[str, Any]:
    """Similarity, partition, search and adapters of three tiny networks."""
    zoo, pictures = chains(), preprocess(images(32)[0])
    table = netsmith.similarity([netsmith.represent(chain, pictures) for chain in zoo.values()])
    sizes = {name: [1] * len(chain.units) for name, chain in zoo.items()}
    sets = netsmith.partition(sizes, table.values, 3, eps=0.5, restarts=20)
    return {
        "similarity": table.values.tolist(),
        "biased": netsmith.similarity(
            [netsmith.represent(chain, pictures) for chain in zoo.values()], "cka", biased=True
        ).values.tolist(),
        "sets": [[str(block) for block in members] for members in sets.sets],
        "objective": sets.objective,
        "search": _search(),
        "adapters": {blocks: _stitched(blocks, zoo) for blocks in ("small[0:2] deep[3:6]", "deep[0:3] tokens[2:5]")},
    }


def _search() -> list[tuple[float, list[int]]]:
    """Costs and choices of the ten best of 6^4 assemblies under two bounds."""
    generator = torch.Generator().manual_seed(5)

    def number(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 9

    stages = [
        [
            netsmith.Choice(netsmith.Block(f"n{i % 3}", s, s + 1), i, float(number(1)), {"params": float(number(1))})
            for i in range(6)
        ]
        for s in range(4)
    ]
    costs = [number(6, 6).numpy() for _ in range(3)]
    best = netsmith.k_best(stages, costs, {"params": [number(6, 6).numpy() for _ in range(3)]}, {"params": (8, 24)}, 10)
    return [(found.cost, list(found.choices)) for found in best.assemblies]


def _stitched(blocks: str, zoo: Mapping[str, netsmith.Chain]) -> dict[str, Any]:
    recipe = netsmith.plan_recipe([netsmith.Block.parse(text) for text in blocks.split()], zoo, references())
    network = netsmith.assemble(recipe, zoo, probe=probe())
    with torch.no_grad():
        answers = network(images(4, seed=11)[0])
    return {"params": netsmith.count_params(network), "answers": answers.double().tolist()}


def record() -> dict[str, Any]:
    """All of it."""
    torch.set_num_threads(1)
    return {"names": sorted(netsmith.__all__), "methods": methods()}


if __name__ == "__main__":
    GOLDENS.write_text(json.dumps(record(), indent=1) + "\n")
