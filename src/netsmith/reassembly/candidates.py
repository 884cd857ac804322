"""From a partition to candidates: what every block costs, what every joint costs, and the best assemblies of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from netsmith.reassembly.adapters import AdapterSpec, build_adapter, spec_cost
from netsmith.reassembly.heads import head_cost, plan_head
from netsmith.reassembly.members import Parent, chains_of
from netsmith.reassembly.partition import Partition
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.stitch import join
from netsmith.reassembly.stitch_cost import CutOf, StitchCosts, stitch_costs
from netsmith.search.blocks import Block
from netsmith.search.budget import Budget
from netsmith.search.k_best import Choice, SearchResult, k_best
from netsmith.trace.chain import Chain
from netsmith.trace.cost import measure_latency, peak_bytes

Matrix = NDArray[np.float64]

BYTES = 4
"""Of a weight or an activation in float32, the precision that memory is stated for."""


@dataclass
class Candidate:
    """A recipe with what is known of it. `scores` are higher-is-better; accuracies are in 0..1 on validation."""

    recipe: Recipe
    cost: float
    params: int
    macs: int
    scores: dict[str, float]
    latency_ms: float | None = None
    memory_mb: float | None = None
    stitched: float | None = None
    finetuned: float | None = None


def stages_of(partition: Partition) -> tuple[tuple[Block, ...], ...]:
    """The blocks of all networks by their place: stage s holds the s-th block of every network."""
    return tuple(zip(*partition.blocks, strict=True))


def joints_of(stages: Sequence[Sequence[Block]]) -> tuple[list[CutOf], list[CutOf]]:
    """The cuts from which, and to which, an assembly of these stages can be stitched."""
    sources = [(b.network, b.stop) for stage in stages[:-1] for b in stage]
    targets = [(b.network, b.start) for stage in stages[1:] for b in stage]
    return sources, targets


def joint_costs(
    stages: Sequence[Sequence[Block]],
    parents: Sequence[Parent],
    images: Mapping[str, Float[Tensor, "n _ _ _"]],
    *,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> StitchCosts:
    """The stitch cost of every joint that an assembly of these stages can have (design, section 4.5)."""
    sources, targets = joints_of(stages)
    return stitch_costs(
        chains_of(parents), images, sources, targets, batch_size=batch_size, seed=seed, progress=progress
    )


def choices(
    stages: Sequence[Sequence[Block]],
    partition: Partition,
    parents: Sequence[Parent],
    classes: int,
    *,
    latency_batch: int | None = None,
    memory_batch: int = 1,
) -> tuple[tuple[Choice, ...], ...]:
    """Every block with what it costs by itself; stem and head count with the blocks of the first and the last stage.

    A block's own cost is its share, `1 / K`, of its network's error on validation: the cost of an assembly is then the
    mean error of those it is made from plus what is lost at the joints. Latency is measured (median, ms, in float32,
    at a batch of `latency_batch`) and left out when that is None; activations are those of `memory_batch` images.
    """
    by_name = {p.name: p for p in parents}
    found = []
    for place, stage in enumerate(stages):
        line = []
        for block in stage:
            parent = by_name[block.network]
            error = 0.0 if parent.accuracy is None else 1.0 - parent.accuracy
            resources = _block_resources(parent.chain, block, latency_batch)
            if place == 0:
                _add(resources, _end_resources(parent.chain, classes, "stem", latency_batch))
            if place == len(stages) - 1:
                _add(resources, _end_resources(parent.chain, classes, "head", latency_batch))
            resources["peak_bytes"] *= memory_batch
            line.append(Choice(block, partition.assignment[block], error / len(stages), resources))
        found.append(tuple(line))
    return tuple(found)


def adapter_resources(
    stages: Sequence[Sequence[Block]],
    chains: Mapping[str, Chain],
    style: str,
    *,
    latency_batch: int | None = None,
    memory_batch: int = 1,
) -> dict[str, list[Matrix]]:
    """What the adapters between every two neighbouring stages take, by resource: arrays (blocks before, after)."""
    measured: dict[AdapterSpec, float] = {}
    shapes = [(len(a), len(b)) for a, b in itertools.pairwise(stages)]
    names = ["params", "macs", "weight_bytes", "peak_bytes", *(["latency_ms"] if latency_batch else [])]
    resources = {name: [np.zeros(shape) for shape in shapes] for name in names}
    for joint, (before, after) in enumerate(itertools.pairwise(stages)):
        for (i, a), (j, b) in itertools.product(enumerate(before), enumerate(after)):
            spec = join(a, b, chains, style)
            if spec.style == "identity":
                continue
            params, macs = spec_cost(spec)
            size = math.prod(spec.source_shape) + math.prod(spec.target_shape)
            found: dict[str, float] = {"params": params, "macs": macs, "weight_bytes": BYTES * params}
            found["peak_bytes"] = BYTES * size * memory_batch
            if latency_batch:
                if spec not in measured:
                    measured[spec] = _latency(build_adapter(spec), spec.source_shape, latency_batch)
                found["latency_ms"] = measured[spec]
            for name, value in found.items():
                resources[name][joint][i, j] = value
    return resources


def latencies(
    stages: Sequence[Sequence[Block]],
    partition: Partition,
    parents: Sequence[Parent],
    classes: int,
    style: str,
    batch: int,
) -> dict[str, Any]:
    """Measured milliseconds of every block and every adapter, as JSON: what `with_latencies` adds.

    Apart from counting, so that it can be measured once, by one process, and remembered.
    """
    options = choices(stages, partition, parents, classes, latency_batch=batch)
    adapters = adapter_resources(stages, chains_of(parents), style, latency_batch=batch)
    return {
        "blocks": [[choice.resources["latency_ms"] for choice in line] for line in options],
        "adapters": [matrix.tolist() for matrix in adapters["latency_ms"]],
    }


def with_latencies(
    options: Sequence[Sequence[Choice]], adapters: Mapping[str, list[Matrix]], found: Mapping[str, Any]
) -> tuple[tuple[tuple[Choice, ...], ...], dict[str, list[Matrix]]]:
    """`choices` and `adapter_resources` with what `latencies` has measured."""
    timed = tuple(
        tuple(replace(c, resources={**c.resources, "latency_ms": ms}) for c, ms in zip(line, times, strict=True))
        for line, times in zip(options, found["blocks"], strict=True)
    )
    return timed, {**adapters, "latency_ms": [np.array(matrix) for matrix in found["adapters"]]}


def stitch_arrays(stages: Sequence[Sequence[Block]], costs: StitchCosts) -> list[Matrix]:
    """The stitch costs between every two neighbouring stages: arrays (blocks before, after)."""
    return [
        np.array([[costs.cost((a.network, a.stop), (b.network, b.start)) for b in after] for a in before])
        for before, after in itertools.pairwise(stages)
    ]


def search(
    options: Sequence[Sequence[Choice]],
    stitch: Sequence[Matrix],
    adapters: Mapping[str, Sequence[Matrix]],
    budget: Budget,
    k: int,
    *,
    distinct_sets: bool = True,
    mix: bool = True,
) -> SearchResult:
    """The k assemblies of least cost within the budget (design, section 4.4).

    `memory_mb` bounds the weights plus the largest activations of any one piece.

    Raises:
        BudgetError: no assembly fits; the message names the bound and the nearest feasible value.
    """
    limits = {name: (bound.min, bound.max) for name, bound in budget.bounds().items() if name != "memory_mb"}
    if budget.memory_mb is not None:
        low, high = budget.memory_mb.min, budget.memory_mb.max
        limits["memory_bytes"] = (None if low is None else low * 1e6, None if high is None else high * 1e6)
    return k_best(
        options,
        stitch,
        adapters,
        limits,
        k,
        distinct_groups=distinct_sets,
        mix=mix,
    )


def _block_resources(chain: Chain, block: Block, latency_batch: int | None) -> dict[str, float]:
    units = chain.units[block.start : block.stop]
    params = sum(u.params for u in units)
    resources = {
        "params": float(params),
        "macs": float(sum(u.macs for u in units)),
        "weight_bytes": float(sum(_weight_bytes(u.module) for u in units)),
        "peak_bytes": float(max(peak_bytes(u.module, u.in_shape) for u in units)),
    }
    if latency_batch:
        resources["latency_ms"] = _latency(chain.part(block.start, block.stop), units[0].in_shape, latency_batch)
    return resources


def _end_resources(chain: Chain, classes: int, end: str, latency_batch: int | None) -> dict[str, float]:
    module, shape = (chain.stem, chain.input_shape) if end == "stem" else (chain.head, chain.cuts[-1].shape)
    params, macs = (chain.stem_params, chain.stem_macs)
    extra = 0
    if end == "head":
        params, macs = head_cost(chain, plan_head(chain, classes))
        extra = params - chain.head_params  # a classifier for other classes has other weights
    resources = {
        "params": float(params),
        "macs": float(macs),
        "weight_bytes": float(_weight_bytes(module) + BYTES * extra),
        "peak_bytes": float(peak_bytes(module, shape)),
    }
    if latency_batch:
        resources["latency_ms"] = _latency(module, shape, latency_batch)
    return resources


def _add(resources: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        resources[name] = max(resources[name], value) if name == "peak_bytes" else resources[name] + value


def _weight_bytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def _latency(module: torch.nn.Module, shape: tuple[int, ...], batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    return measure_latency(module, torch.randn(batch, *shape, generator=generator))
